"""An environment of your own, and an agent that learns on it from labels (20 seconds).

python examples/own_environment.py
"""

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from rlhf_bilevel import Agent


class Line(gymnasium.Env):
    """A point is pushed along a line. Its reward, the distance to a target, only measures the agent."""

    observation_space = Box(-2, 2, (1,), np.float32)
    action_space = Box(-1, 1, (1,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.x.copy(), {}

    def step(self, action):
        self.x = np.clip(self.x + 0.2 * action, -2, 2).astype(np.float32)
        near = 1 - abs(float(self.x[0]) - 0.5)
        return self.x.copy(), near, False, False, {"success": near > 0.9}


gymnasium.register("Line-v0", Line, max_episode_steps=50)


def main(steps: int = 3_000, labels: int = 60) -> None:
    agent = Agent("pebble", "Line-v0", labels=labels, preset="quick", action_repeat=1, segment_length=10).learn(steps)
    print(agent.evaluate(episodes=10).summary())


if __name__ == "__main__":
    main()
