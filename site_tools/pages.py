"""What is in a Markdown page: code blocks, commands, links and which of them are dead, anchors, sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^( *)```([\w+-]*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
LINK = re.compile(r"\]\(<?([^)\s>]+)>?(?: \"[^\"]*\")?\)|\b(?:src|href)=\"([^\"]+)\"")
EXTERNAL = re.compile(r"[a-z][a-z+.-]*:|//")
PROGRAMS = ("rlhf-bilevel", "make", "python")
slug = slugify(case="lower")


def written() -> list[Path]:
    """README, the other pages at the top and all of docs/, without what is generated only when the site is built."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/**/*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks in that language, ``""`` for those without one, as they stand in the page."""
    return [text for _, found, text in FENCE.findall(page.read_text()) if found == language]


def prose(text: str) -> str:
    """The page without code blocks and comments."""
    return COMMENT.sub("", FENCE.sub("", text))


def commands(page: Path) -> Iterator[str]:
    """Each line that runs one of ``PROGRAMS``, in blocks without a language; continuation lines are joined."""
    for text in blocks(page, ""):
        yield from (line for line in text.replace("\\\n", " ").splitlines() if line.partition(" ")[0] in PROGRAMS)


def links(page: Path) -> Iterator[str]:
    """Where the page's links and pictures lead, those to other sites left out."""
    text = re.sub(r"`[^`\n]*`", "", prose(page.read_text()))
    for in_markdown, in_html in LINK.findall(text):
        if not EXTERNAL.match(target := in_markdown or in_html):
            yield target


def anchors(page: Path) -> set[str]:
    """The names of the page's headings in links."""
    headings = re.findall(r"^#+ +(.+?) *#*$", FENCE.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {slug(re.sub(r"[`*]", "", heading), "-") for heading in plain}


def dead_links(page: Path) -> Iterator[str]:
    """What is wrong with the page's links, a line each."""
    for target in links(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists():
            yield f"{page.relative_to(ROOT)}: no file {target}"
        elif anchor and place.suffix == ".md" and anchor not in anchors(place):
            yield f"{page.relative_to(ROOT)}: no heading {target}"


def sentences(page: Path) -> Iterator[str]:
    """The page's sentences, from its paragraphs and lists. Headings, tables and code are left out; `code` is a word."""
    text = re.sub(r"!\[[^]]*\]\([^)]*\)|<[^>]+>", "", prose(page.read_text()))
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"^(#|\||!!!|    ).*$", "", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|^ *(?:[-*]|\d+\.) ", text, flags=re.MULTILINE):
        words = " ".join(paragraph.split())
        ends = [0, *(match.end() for match in re.finditer(r"[.!?:;](?=[*_\"')]*\s)[*_\"')]*\s", words)), len(words)]
        yield from (words[start:end].strip() for start, end in pairwise(ends) if words[start:end].strip(" -"))
