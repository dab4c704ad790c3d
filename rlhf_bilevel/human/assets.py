"""The scripts that a page needs to play clips, as files of the installation: nothing is fetched from elsewhere."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from rlhf_bilevel.errors import UserError

VIEWER = Path(__file__).parent / "static" / "viewer.js"
PACKAGE, VERSION = "jupyter-threejs-sage", 130  # which carries the built three.min.js of that release


def three_js() -> Path:
    """``three.min.js``. UserError where no installed package carries it."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))  # found, and not imported
    for folder in spec.submodule_search_locations or () if spec else ():
        path = Path(folder) / "static" / f"r{VERSION}" / "three.min.js"
        if path.is_file():
            return path
    raise UserError(f"three.js r{VERSION} is missing, which draws clips: pip install {PACKAGE}=={VERSION}")
