"""The paper's Figure 1 on true return and success: walker and door-open, the penalty method beside PEBBLE and controls.

    python -m benchmarks.learning.figure1 --scale smoke|cpu|tasks|paper|former [--workers 2] [--cohort] [--draw]

Runs what is missing, two side by side (on a GPU, the seeds of a variant at once); what was cut off goes on. Then draws.
``cpu`` has the settings of ``--preset figure1``, and so has ``tasks``, unchanged on other tasks. ``paper`` has those of
``--preset paper``. ``former`` has the ablations, with the defaults of their time. ``smoke`` sees in some minutes that
everything works. Its curves mean nothing, and go to ``runs/figure1-smoke``. ``--draw`` draws what is there.

Tables are ``benchmarks/results/figure1-SCALE-PANEL.csv``, which are committed. Figures are ``docs/figures/figure1``,
``tasks`` and, of ``former``, ``ablations``, each as SVG and PNG. Environment steps of both learners count, and all
variants of a panel have the same steps and labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.learning import evidence
from benchmarks.learning.evidence import (
    ALIGNED,
    CLIPPED,
    HYBRID,
    LATE,
    LINEAR,
    PAPER,
    QUADRATIC,
    SIZE,
    WIN_RATE,
    WITHOUT_GAP,
    Group,
    Settings,
    named,
)
from rlhf_bilevel.evaluation.plot import STEPS, draw_line, legend_label, save_figure
from rlhf_bilevel.evaluation.records import EvaluationRecord, read_table
from rlhf_bilevel.evaluation.scores import estimate
from rlhf_bilevel.evaluation.statistics import iqm
from rlhf_bilevel.evaluation.tasks import bounds, group_by_task

VARIANTS: dict[str, tuple[str, Settings]] = {
    "pebble": ("pebble", {}),
    "penalty": ("penalty", {}),
    "twin": ("twin", {}),
    "penalty without gap": ("penalty", WITHOUT_GAP),
    "penalty, one-sided": ("penalty", PAPER),
    "penalty, one-sided, without gap": ("penalty", PAPER | WITHOUT_GAP),
    "pebble, aligned": ("pebble", ALIGNED),
    "pebble, aligned, newest half": ("pebble", HYBRID),
}
"""``twin`` is the control, two learners without any coupling: what the penalty method is without its cost. One-sided is
the side that the paper takes, its cost the preference loss of the labels. The defaults of the two learners, and of the
penalty between them, are from a search on other seeds (docs/search.md). PEBBLE with the penalty method's queries and
batches shows what those are worth by themselves."""
MAIN, ABLATIONS = tuple(VARIANTS)[:3], tuple(VARIANTS)[3:]
ABLATED = *MAIN, "penalty, one-sided", "penalty, one-sided, without gap", "pebble, aligned, newest half"
"""What the figure of the ablations shows."""
FIGURES = Path("docs/figures")
WALKER, DOOR = "dm_control/walker-walk-v0", "Meta-World/door-open-v3"
WINS = WIN_RATE | {"penalty.sigma": 100}
NARROW = {"penalty": WINS, "penalty without gap": WINS | WITHOUT_GAP}
"""A reward that cannot say what the teacher means gains from another upper objective (docs/theory.md, d), closely
followed by its learners; what a user gets is still a best response to the linear reward."""
ONE_LEARNER = "pebble, aligned, newest half"
"""PEBBLE with all that the penalty method has over it here but the second learner."""


class Panel(NamedTuple):
    title: str
    env: str
    steps: int
    labels: int
    seeds: Mapping[str, int]  # of each variant, how many
    settings: Settings  # more of them, of all
    own: Mapping[str, Settings] = {}  # settings of a variant here, in place of its usual ones
    first: int = 0  # seed
    today: bool = False  # whether the defaults are those in force, and not those of when ``former`` was run


def seeds(main: int, ablations: int = 0) -> dict[str, int]:
    return dict.fromkeys(MAIN, main) | (dict.fromkeys(ABLATIONS, ablations) if ablations else {})


EIGHT = seeds(8, 3) | {ONE_LEARNER: 8}  # five before, with which penalty > pebble just held one half
NARROW_SEEDS = seeds(8) | {"penalty without gap": 8, ONE_LEARNER: 8}  # three before; decided on after two
THREE = seeds(3) | {ONE_LEARNER: 3}
QUADRATIC_SEEDS = THREE | {"penalty without gap": 3}  # decided on after the three with it had fallen
DOOR_SEEDS = THREE | {"pebble": 5, "penalty": 5}  # three against three cannot leave it out

PRESET: Settings = {"preset": "figure1"}
SMALL = {"preset": "quick", "net_arch": [32], "batch_size": 32, "n_eval_episodes": 1, "num_interact": 500}
SCALES = {
    "smoke": {
        "walker-100": Panel("walker-walk, 20 labels", WALKER, 2000, 20, seeds(2, 1), SMALL),
        "door-1000": Panel("door-open, 20 labels", DOOR, 2000, 20, seeds(2), SMALL, today=True),
    },
    "cpu": {
        "walker-100": Panel("walker-walk, 100 labels", WALKER, 125_000, 100, seeds(10), PRESET, first=330, today=True),
        "door-1000": Panel("door-open, 1000 labels", DOOR, 200_000, 1000, seeds(5), PRESET, first=330, today=True),
    },
    "tasks": {
        name: Panel(f"{name}, {labels} labels", env, steps, labels, {"pebble": 4}, PRESET, first=330, today=True)
        for name, env, steps, labels in (
            ("cheetah-run", "dm_control/cheetah-run-v0", 250_000, 100),
            ("walker-stand", "dm_control/walker-stand-v0", 125_000, 100),
            ("reacher-easy", "dm_control/reacher-easy-v0", 125_000, 100),
            ("drawer-open", "Meta-World/drawer-open-v3", 200_000, 1000),
            ("button-press", "Meta-World/button-press-v3", 200_000, 1000),
        )
    },
    "former": {
        "walker-100": Panel("walker-walk, 100 labels", WALKER, 75_000, 100, EIGHT, SIZE),
        "walker-500": Panel("walker-walk, 500 labels", WALKER, 75_000, 500, seeds(3), SIZE),
        "walker-linear": Panel(
            "walker-walk, linear reward", WALKER, 75_000, 100, NARROW_SEEDS, SIZE | LINEAR, NARROW
        ),
        "walker-quadratic": Panel(
            "walker-walk, quadratic reward", WALKER, 75_000, 100, QUADRATIC_SEEDS, SIZE | QUADRATIC, NARROW
        ),
        "door-1000": Panel(
            "door-open, 1000 labels", DOOR, 200_000, 1000, DOOR_SEEDS, SIZE | CLIPPED | LATE, first=10
        ),
    },
    "paper": {
        "walker-100": Panel("walker-walk, 100 labels", WALKER, 500_000, 100, seeds(10, 5), {"preset": "paper"}),
        "walker-500": Panel("walker-walk, 500 labels", WALKER, 500_000, 500, seeds(10), {"preset": "paper"}),
        "door-1000": Panel("door-open, 1000 labels", DOOR, 1_000_000, 1000, seeds(10), {"preset": "paper"} | CLIPPED),
    },
}  # fmt: skip


def group(scale: str, name: str, panel: Panel) -> Group:
    """Seed by seed, so that what is cut off has compared what it has."""
    return [
        named(table(scale, name), variant, method, panel.env, panel.first + seed, panel.steps,
              {**panel.settings, "labels": panel.labels, **panel.own.get(variant, own)}, panel.today)
        for seed in range(max(panel.seeds.values()))
        for variant, (method, own) in VARIANTS.items()
        if seed < panel.seeds.get(variant, 0)
    ]  # fmt: skip


def draw(tables: Mapping[str, Path], titles: Mapping[str, str], variants: Sequence[str], outs: Sequence[Path]) -> None:
    """A panel a table: true return or success of the variants against environment steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import EngFormatter

    rows = {name: read_table(table) for name, table in tables.items() if table.is_file()}
    figure, axes = pyplot.subplots(
        1, len(rows), figsize=(5 * len(rows), 4 + len(variants) / 4), layout="constrained", squeeze=False
    )
    for axis, (name, points) in zip(axes[0], rows.items(), strict=True):
        curves(axis, points, variants)
        axis.set_title(titles[name])
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))  # 150k
    for out in outs:
        save_figure(figure, out, dpi=100)  # a PNG below 300 kB
    pyplot.close(figure)


def curves(axis: Any, points: Sequence[EvaluationRecord], variants: Sequence[str]) -> None:
    """IQM over seeds; of the main methods with its 95 % interval."""
    (task,) = group_by_task(points, together=False)
    within = bounds(task.env, task.measure)
    for variant in [name for name in variants if name in task.groups]:
        group = task.groups[variant]
        found = estimate(iqm, group.values.T[:, None], within)
        color = f"C{list(VARIANTS).index(variant)}"  # one in all figures
        if variant in MAIN:
            draw_line(axis, group.steps, found, legend_label(variant, [task]), color)
        else:  # their intervals, which hide the others, are in docs/results.md
            axis.plot(group.steps, found.value, "--", color=color, linewidth=1, label=legend_label(variant, [task]))
    axis.set(xlabel=STEPS, ylabel=task.measure.replace("_", " "))
    axis.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.18))  # below the panel


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    evidence.running(parser)
    parser.add_argument("--draw", action="store_true", help="run nothing")
    args = parser.parse_args(argv)
    results, figures = (Path("runs/figure1-smoke"),) * 2 if args.scale == "smoke" else (evidence.RESULTS, FIGURES)
    panels = SCALES[args.scale].items()
    groups = {table(args.scale, name): group(args.scale, name, panel) for name, panel in panels}
    evidence.gather(groups, 0 if args.draw else args.workers, results, args.cohort)
    outs = draw_scale(args.scale, results, figures)
    if not outs:
        raise SystemExit(f"there is nothing to draw yet in {results}")
    print(*outs, sep="\n")


def table(scale: str, panel: str) -> str:
    return f"figure1-{scale}-{panel}"


def draw_scale(scale: str, results: Path, figures: Path) -> list[Path]:
    """The files drawn: none where no run has ended yet."""
    name, panels, variants = "tasks" if scale == "tasks" else "figure1", SCALES[scale], list(MAIN)
    if scale == "former":
        name, panels, variants = "ablations", {"walker-100": panels["walker-100"]}, list(ABLATED)
    tables = {panel: results / f"{table(scale, panel)}.csv" for panel in panels}
    if not any(file.is_file() for file in tables.values()):
        return []
    outs = [figures / f"{name}.{kind}" for kind in ("svg", "png")]
    draw(tables, {panel: told.title for panel, told in panels.items()}, variants, outs)
    return outs


if __name__ == "__main__":
    main()
