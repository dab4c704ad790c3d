"""Checks how the documentation is written; ``make lint`` runs it. It prints what is wrong, a line each.

In README, the tutorials and the recipes a sentence has at most 30 words and three numbers. All links lead somewhere.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from site_tools.pages import ROOT, dead_links, sentences, written

WORDS, NUMBERS = 30, 3  # of a sentence, at most
README_LINES = 120


def plain_pages() -> list[Path]:
    """The pages that newcomers read first."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/tutorials/*.md")), *sorted(ROOT.glob("docs/how-to/*.md"))]


def long_sentences(page: Path) -> Iterator[str]:
    """What is wrong with the page's sentences, a line each."""
    for sentence in sentences(page):
        words, numbers = len(sentence.split()), len(re.findall(r"\d[\d,._]*", sentence))
        if words > WORDS:
            yield f"{page.relative_to(ROOT)}: {words} words: {sentence}"
        if numbers > NUMBERS:
            yield f"{page.relative_to(ROOT)}: {numbers} numbers: {sentence}"


def problems() -> Iterator[str]:
    """All that is wrong."""
    if (lines := len((ROOT / "README.md").read_text().splitlines())) > README_LINES:
        yield f"README.md: {lines} lines, and {README_LINES} at most are read"
    for page in plain_pages():
        yield from long_sentences(page)
    for page in written():
        yield from dead_links(page)


if __name__ == "__main__":
    found = list(problems())
    print("\n".join(found), file=sys.stderr, end="\n" * bool(found))
    sys.exit(bool(found))
