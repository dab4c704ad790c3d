"""Draws every figure of the docs from the committed results: python -m benchmarks.figures."""

from pathlib import Path

from rlhf_bilevel.plot import draw, read_table

RESULTS, FIGURES = Path("benchmarks/results"), Path("docs/figures")


def main() -> None:
    for table in sorted(RESULTS.glob("*.csv")):
        print(draw(read_table(table), FIGURES / f"{table.stem}.svg"))


if __name__ == "__main__":
    main()
