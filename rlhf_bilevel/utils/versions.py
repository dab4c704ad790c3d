"""Which versions and which commit a run was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("rlhf-bilevel", "torch", "stable-baselines3", "gymnasium", "numpy", "mujoco", "dm-control", "metaworld")
"""Packages whose versions affect a run. They are recorded with every run."""


def installed_versions() -> dict[str, str]:
    """Versions of Python and of PACKAGES; "missing" if one is not installed."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            installed[name] = "missing"
    return installed


def current_commit() -> str | None:
    """The commit of the checkout that this file is tracked in, with a + if files differ from it; None if there is none.

    An installed package may be inside some other repository, and git may be missing.
    """
    file = Path(__file__)
    # A git hook sets the variables that are left out
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    for words in (["ls-files", "--error-unmatch", file.name], ["describe", "--always", "--dirty=+", "--abbrev=12"]):
        try:
            call = subprocess.run(["git", *words], cwd=file.parent, env=environment, capture_output=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if call.returncode:
            return None
    return call.stdout.decode().strip() or None
