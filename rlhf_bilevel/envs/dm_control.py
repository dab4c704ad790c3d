"""Tasks of the dm_control suite as Gymnasium environments."""

from __future__ import annotations

import functools
import importlib
import math
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from gymnasium.spaces import Box

from rlhf_bilevel.envs.suite import Suite, SuiteEnv, folders


class DMControlSuite(Suite):
    """Tasks are called ``walker-walk-v0``, also without the suite's name, and in the literature ``walker_walk``."""

    @functools.cache  # noqa: B019  (there is one suite)
    def tasks(self) -> Collection[str]:
        """As ``Suite.tasks``."""
        sources = [path for folder in folders("dm_control") for path in folder.glob("suite/*.py")]
        return [
            f"{path.stem}-{task}-v0"
            for path in sources
            for task in re.findall(r"(?m)^@SUITE\.add\(.*\)\ndef (\w+)\(", path.read_text("utf-8"))
        ]

    @functools.cache  # noqa: B019
    def aliases(self) -> Mapping[str, str]:
        """As ``Suite.aliases``."""
        return {name: task for task in self.tasks() for name in (task.removesuffix("-v0").replace("-", "_", 1), task)}

    def make(self, task: str, protocol: str, render_mode: str | None) -> DMControlEnv:
        """As ``Suite.make``."""
        domain, _, name = task.removesuffix("-v0").partition("-")
        return DMControlEnv(domain, name, render_mode)


SUITE = DMControlSuite()


class DMControlEnv(SuiteEnv):
    """A task of the dm_control suite: observations joined in its order, actions scaled to [-1, 1], 1000 steps.

    ``env.unwrapped.physics`` and ``env.unwrapped.task`` are dm_control's own.
    """

    def __init__(self, domain: str, task: str, render_mode: str | None = None) -> None:
        self._env = _load_suite().load(domain, task)
        self.physics, self.task = self._env.physics, self._env.task
        # quadruped-escape wants an OpenGL context at every reset; with None it draws nothing
        self.physics._make_rendering_contexts = lambda: None
        spec = self._env.action_spec()
        self._centre, self._radius = (spec.maximum + spec.minimum) / 2, (spec.maximum - spec.minimum) / 2
        bound = 1.0 if self._radius.max() < 1e10 else np.inf  # 1e10 means "no limit" in MuJoCo
        self.action_space = Box(-bound, bound, spec.shape, np.float32)
        size = sum(int(np.prod(part.shape)) for part in self._env.observation_spec().values())
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float32)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / self._env.control_timestep())}
        self.render_mode = render_mode
        self.mujoco_renderer: Any = None

    @property
    def limit(self) -> int | None:
        """The most steps in an episode; None if there is no limit."""
        steps = self._env._step_limit
        return math.ceil(steps) if math.isfinite(steps) else None

    @property
    def simulator(self) -> tuple[Any, Any]:
        """As ``SuiteEnv.simulator``."""
        return self.physics.model.ptr, self.physics.data.ptr

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Names of the observation's entries, and names of the action's entries (the motors)."""
        parts = self._env.observation_spec().items()
        obs = [f"{key}[{i}]" if part.shape else key for key, part in parts for i in range(int(np.prod(part.shape)))]
        return obs, [self.physics.model.id2name(i, "actuator") for i in range(self.physics.model.nu)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts an episode: the first observation (o,) float32, and an empty info. ``seed`` fixes the start."""
        super().reset(seed=seed)
        if seed is not None:
            self.task.random.seed(seed)
        self.close()  # terrain is uploaded once for each renderer, so each episode needs a new one
        return _flatten(self._env.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One control step with ``action`` (a,) in [-1, 1]."""
        timestep = self._env.step(self._centre + self._radius * action)
        over = timestep.last()
        terminated = over and timestep.discount == 0
        return _flatten(timestep.observation), timestep.reward, terminated, over and not terminated, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """A frame (480, 480, 3) uint8 of the task's first camera, which follows the body where there is one."""
        if self.mujoco_renderer is None:
            from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

            self.mujoco_renderer = MujocoRenderer(*self.simulator, width=480, height=480, camera_id=0)
        return self.mujoco_renderer.render("rgb_array")

    def close(self) -> None:
        """Frees the renderer, if there is one."""
        if self.mujoco_renderer is not None:
            self.mujoco_renderer.close()
            self.mujoco_renderer = None


def _load_suite() -> Any:
    """dm_control.suite without its renderer, which starts OpenGL when it is imported; pictures are Gymnasium's."""
    import mujoco  # noqa: F401  (first, because it reads MUJOCO_GL too, and keeps its own renderer)

    user_choice = os.environ.pop("MUJOCO_GL", None)
    os.environ["MUJOCO_GL"] = "off"
    try:
        return importlib.import_module("dm_control.suite")
    finally:
        del os.environ["MUJOCO_GL"]
        os.environ |= {"MUJOCO_GL": user_choice} if user_choice else {}


def _flatten(observation: dict[str, Any]) -> np.ndarray:
    return np.concatenate(list(observation.values()), axis=None, dtype=np.float32)
