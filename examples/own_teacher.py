"""A teacher of your own: it likes the cart to end further to the right, and leaves out what it cannot tell (10 s).

python examples/own_teacher.py
"""

from rlhf_bilevel import Agent
from rlhf_bilevel.types import Preferences, Queries


class LikesTheRight:
    """Prefers the segment whose cart ends further to the right. Entry 0 of an observation is the cart's place."""

    def __call__(self, queries: Queries) -> Preferences:
        first, second = (segments.obs[:, -1, 0] for segments in queries)
        sure = (first - second).abs() > 0.01
        judged = [type(segments)(*(part[sure] for part in segments)) for segments in queries]
        return Preferences(*judged, label=(first > second)[sure].float())


def main(steps: int = 1_000, labels: int = 40) -> float:
    agent = Agent("pebble", "dm_control/cartpole-balance-v0", teacher=LikesTheRight(), labels=labels, preset="quick")
    agent.learn(steps)
    env = agent.make_env()
    obs, over = env.reset()[0], False
    start = obs[0]
    while not over:
        obs, _, terminated, truncated, _ = env.step(agent.predict(obs)[0])
        over = terminated or truncated
    print(f"the cart went from {start:+.2f} m to {obs[0]:+.2f} m; its rail ends at 1.8 m")
    return float(obs[0])


if __name__ == "__main__":
    main()
