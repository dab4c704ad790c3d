"""The files that a page loads, all of the installation: nothing is fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path

from rlhf_bilevel.errors import UserError

HERE = Path(__file__).parents[1]
THREE = HERE / "three"  # three.js, which build_backend.py puts there


def static_files() -> dict[str, Path]:
    """Scripts and styles, by name. UserError where three.js is missing."""
    three = {name: THREE / name for name in ("three.module.js", "three.core.js")}
    if not all(path.is_file() for path in three.values()):
        raise UserError(
            "three.js is missing, which draws clips: install rlhf-bilevel again where the npm registry can be reached"
        )
    return {path.name: path for path in (HERE / "static").iterdir() if path.suffix in (".js", ".css")} | three
