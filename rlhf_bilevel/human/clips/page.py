"""Episodes as one HTML file that needs nothing else: no server, no network, and no renderer but the browser.

Its modules are ``data:`` URLs, and an import map gives them their names. The file's own policy forbids it to load
anything. The same episodes give the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf_bilevel.human.clips.assets import static_files
from rlhf_bilevel.human.clips.episodes import Episode, Episodes
from rlhf_bilevel.utils.json_yaml import to_json

ENTRY, STYLES = "watch.js", ("page.css", "watch.css")
IMPORT = re.compile(r"""(\bfrom\s*|\bimport\s*)(["'])\./([\w.]+\.js)\2""")
DIGITS = 6  # of a reward
COLUMNS = 2  # side by side


class Show(NamedTuple):
    """What one agent did: that of a run, as it was at a step of its training."""

    run: str
    method: str
    step: int
    steps: int  # of the whole run
    episodes: Episodes


def page(title: str, shows: Sequence[Show]) -> str:
    """HTML that shows two of ``shows`` side by side, on one clock; the reader chooses which. All have as many episodes.

    Two runs begin with the last show of each. A single run begins with its first show and its last.
    """
    files = static_files()
    style = "\n".join(files[name].read_text() for name in STYLES)
    imports = json.dumps({"imports": modules(files)})
    start = f'import "{ENTRY}";'
    scripts = " ".join(f"'{_hash(text)}'" for text in (imports, start))
    policy = f"default-src 'none'; script-src {scripts} data:; style-src '{_hash(style)}'; img-src data:"
    pages = Environment(loader=PackageLoader("rlhf_bilevel.human"), autoescape=True, undefined=StrictUndefined)
    inlined = {name: Markup(text) for name, text in (("style", style), ("imports", imports), ("start", start))}
    content = Markup(to_json(_content(shows)).replace("<", r"\u003c"))  # so that no text ends its element
    return pages.get_template("watch.html").render(
        title=title, columns=len(columns(shows)), policy=policy, content=content, **inlined
    )


def modules(files: Mapping[str, Path]) -> dict[str, str]:
    """ENTRY and all that it imports, as data: URLs by their names, by which they import each other."""
    urls: dict[str, str] = {}
    waiting = [ENTRY]
    while waiting:
        name = waiting.pop()
        if name in urls:
            continue
        text = files[name].read_text()
        waiting += [module for _, _, module in IMPORT.findall(text) if module in files]
        source = base64.b64encode(IMPORT.sub(r"\1\2\3\2", text).encode()).decode()
        urls[name] = f"data:text/javascript;base64,{source}"
    return urls


def _content(shows: Sequence[Show]) -> dict[str, Any]:
    """As static/watch.js reads it."""
    return {
        "scenes": {name: scene for show in shows for name, scene in show.episodes.scenes.items()},
        "shows": [
            show._asdict() | {"episodes": [_episode(episode) for episode in show.episodes.episodes]} for show in shows
        ],
        "columns": columns(shows),
    }


def columns(shows: Sequence[Show]) -> list[int]:
    """Which of ``shows`` stand side by side at first: at most two."""
    last = {show.run: number for number, show in enumerate(shows)}
    return list(last.values())[:COLUMNS] if len(last) > 1 else sorted({0, len(shows) - 1})


def _episode(episode: Episode) -> dict[str, Any]:
    learned = episode.learned_rewards
    return {
        "clip": episode.clip,
        "envRewards": _rounded(episode.env_rewards),
        "learnedRewards": None if learned is None else _rounded(learned),
        "success": episode.success,
    }


def _rounded(rewards: Any) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in rewards.tolist()]


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
