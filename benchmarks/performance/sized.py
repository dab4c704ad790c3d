"""An environment of walker's sizes that costs next to nothing, for every library that speaks Gymnasium."""

import gymnasium
import numpy as np

OBS, ACT, EPISODE = 24, 6, 250


class Sized(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-10, 10, (OBS,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (ACT,), np.float32)

    def reset(self, *, seed=None, options=None):  # type: ignore[no-untyped-def]
        super().reset(seed=seed)
        self._obs = self.np_random.normal(size=OBS).astype(np.float32)
        self._t = 0
        return self._obs, {}

    def step(self, action):  # type: ignore[no-untyped-def]
        self._obs = 0.9 * self._obs
        self._obs[:ACT] += 0.3 * action
        self._t += 1
        return self._obs, float(1 - np.square(self._obs[0] - 0.5)), False, self._t == EPISODE, {}


gymnasium.register("Sized-v0", Sized)  # type: ignore[arg-type]
