"""The files that the label page loads. All of them are installed with the package."""

from __future__ import annotations

from pathlib import Path

from rlhf_bilevel.errors import UserError

HUMAN = Path(__file__).parents[1]
THREE = HUMAN / "three"  # three.js, which build_backend.py puts there


def static_files() -> dict[str, Path]:
    """The paths of all scripts and styles, by name. UserError if three.js is missing."""
    three = {name: THREE / name for name in ("three.module.js", "three.core.js")}
    if not all(path.is_file() for path in three.values()):
        raise UserError(
            "three.js is missing, which draws clips: install rlhf-bilevel again where the npm registry can be reached"
        )
    return {path.name: path for path in (HUMAN / "static").iterdir() if path.suffix in (".js", ".css")} | three
