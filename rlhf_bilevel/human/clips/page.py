"""Episodes as one HTML file that needs nothing else: no server, no network, no renderer but the browser.

Modules are inlined as ``data:`` URLs, which an import map gives their names. The file's own policy forbids it to load
anything from anywhere. The same episodes give the same bytes.
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
from rlhf_bilevel.utils.files import to_json

ENTRY, STYLES = "watch.js", ("page.css", "watch.css")
IMPORT = re.compile(r"""(\bfrom\s*|\bimport\s*)(["'])\./([\w.]+\.js)\2""")
DIGITS = 6  # of a reward


class Show(NamedTuple):
    """What one run shows."""

    name: str
    about: str  # whose episodes these are
    episodes: Episodes


def page(title: str, shows: Sequence[Show]) -> str:
    """HTML. Episode k of all shows is shown side by side, on one clock."""
    files = static_files()
    style = "\n".join(files[name].read_text() for name in STYLES)
    imports = json.dumps({"imports": modules(files)})
    start = f'import "{ENTRY}";'
    scripts = " ".join(f"'{_hash(text)}'" for text in (imports, start))
    policy = f"default-src 'none'; script-src {scripts} data:; style-src '{_hash(style)}'; img-src data:"
    pages = Environment(loader=PackageLoader("rlhf_bilevel.human"), autoescape=True, undefined=StrictUndefined)
    inlined = {name: Markup(text) for name, text in (("style", style), ("imports", imports), ("start", start))}
    told = Markup(to_json(_told(shows)).replace("<", r"\u003c"))  # no text ends the element that it is in
    return pages.get_template("watch.html").render(title=title, shows=shows, policy=policy, told=told, **inlined)


def modules(files: Mapping[str, Path]) -> dict[str, str]:
    """ENTRY and all that it imports, as data: URLs by their names, by which they import each other."""
    found: dict[str, str] = {}
    todo = [ENTRY]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        text = files[name].read_text()
        todo += [module for _, _, module in IMPORT.findall(text) if module in files]
        source = base64.b64encode(IMPORT.sub(r"\1\2\3\2", text).encode()).decode()
        found[name] = f"data:text/javascript;base64,{source}"
    return found


def _told(shows: Sequence[Show]) -> dict[str, Any]:
    """As static/watch.js takes it."""
    return {
        "scenes": {number: scene for show in shows for number, scene in show.episodes.scenes.items()},
        "shows": [[_episode(episode) for episode in show.episodes.found] for show in shows],
    }


def _episode(episode: Episode) -> dict[str, Any]:
    learnt = None if episode.learnt is None else _short(episode.learnt.tolist())
    return {"clip": episode.clip, "truth": _short(episode.truth.tolist()), "learnt": learnt, "success": episode.success}


def _short(rewards: Sequence[float]) -> list[float]:
    return [float(f"{value:.{DIGITS}g}") for value in rewards]


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
