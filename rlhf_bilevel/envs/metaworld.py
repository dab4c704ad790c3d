"""Meta-World v3 tasks whose goal is drawn from the seed of each episode."""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Mapping
from typing import Any

import gymnasium
import numpy as np

from rlhf_bilevel.envs.suite import Suite, folders

PROTOCOLS = ("bpref", "mt1")
"""Meta-World's goal, random in every episode: hidden from the observation (as B-Pref ran it), or visible in it."""


class MetaWorldSuite(Suite):
    """Tasks are called ``door-open-v3``; ``door-open-v2`` and ``metaworld_door-open-v2`` run as that."""

    @functools.cache  # noqa: B019  (there is one suite)
    def tasks(self) -> Collection[str]:
        """As ``Suite.tasks``."""
        found = list[str]()
        for folder in folders("metaworld"):
            found += re.findall(r'(?m)^    "([\w-]+-v3)": envs\.', (folder / "env_dict.py").read_text("utf-8"))
        return found

    @functools.cache  # noqa: B019
    def aliases(self) -> Mapping[str, str]:
        """As ``Suite.aliases``."""
        called: dict[str, str] = {}
        for task in self.tasks():
            for name in (task, f"metaworld_{task}", f"Meta-World/{task}"):
                called |= dict.fromkeys([name, f"{name.removesuffix('-v3')}-v2"], task)
        return called

    def make(self, task: str, protocol: str, render_mode: str | None) -> MetaWorldEnv:
        """As ``Suite.make``."""
        return MetaWorldEnv(task, protocol, render_mode)


SUITE = MetaWorldSuite()


class MetaWorldEnv(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A Meta-World v3 task with episodes of 500 steps, whose goal is drawn from the seed given to ``reset``.

    Meta-World itself ignores that seed. Its own ``seed()`` would also reseed the action space, so that random actions
    would be the same in every episode.
    """

    def __init__(self, task: str, protocol: str, render_mode: str | None = None) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        env: Any = ALL_V3_ENVIRONMENTS[task](render_mode=render_mode, camera_name="corner2")  # type: ignore[arg-type]
        env._set_task_called = True  # nothing is fixed by set_task, above all not the goal
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True  # draw from the env's generator, not from numpy's global one
        env._partially_observable = protocol == "bpref"
        del env.sawyer_observation_space  # a cached space, which would clip the goal to zero
        env.observation_space = env.sawyer_observation_space
        super().__init__(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Starts an episode. ``seed`` fixes the goal and the start."""
        if seed is not None:
            self.unwrapped.np_random = np.random.default_rng(seed)
        return self.env.reset(options=options)

    def render(self) -> np.ndarray:  # type: ignore[override]
        """A frame (480, 480, 3) uint8; the camera hangs upside down, so it is turned by half a circle."""
        return np.ascontiguousarray(np.asarray(self.env.render())[::-1, ::-1])
