"""A suite: environments of one family, whose ids begin with its name. ``registries.SUITES`` has them by that name."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np


class Suite(ABC):
    """Of a suite that is called ``mine``, the environment of the task ``reach-v0`` has the id ``mine/reach-v0``.

    No simulator is imported before an environment is made.
    """

    @abstractmethod
    def tasks(self) -> Collection[str]:
        """Names of all tasks."""

    def aliases(self) -> Mapping[str, str]:
        """Other names by which the literature calls environments, to their tasks."""
        return {}

    @abstractmethod
    def make(self, task: str, protocol: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
        """The environment of one of the tasks, with Box spaces, the actions' bounded.

        ``protocol`` is the setting of that name, ``render_mode`` None or "rgb_array".
        """


def folders(package: str) -> list[Path]:
    """The folders of an installed package, found without importing it: names of tasks are read from its sources."""
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []


class SuiteEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment of a suite that tells more of itself than Gymnasium's do."""

    @property
    def limit(self) -> int | None:
        """Simulator steps after which an episode ends at the latest; None where that is not known."""
        return None

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names of the entries of observation and action; empty if they have none."""
        return [], []

    @property
    def simulator(self) -> tuple[Any, Any]:
        """MuJoCo's ``MjModel`` and ``MjData``, from which clips for people are drawn; None and None if it has none."""
        return None, None
