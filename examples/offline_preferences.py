"""Preferences that were given elsewhere: a file of them, a reward fitted to it, a policy on that reward (a minute).

python examples/offline_preferences.py
"""

import torch

from rlhf_bilevel import Agent
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.studies.offline_fit import fit_reward
from rlhf_bilevel.types import Queries, Segments


def segments(count: int, steps: int = 20) -> Segments:
    """Clips of a pendulum that turns: cosine and sine of its angle, its speed, and a random torque in [-1, 1]."""
    angle = 6.3 * torch.rand(count, 1) + 0.05 * torch.arange(steps) * torch.randn(count, 1)
    obs = torch.stack([angle.cos(), angle.sin(), angle.diff(dim=1, append=angle[:, -1:]) / 0.05], -1)
    return Segments(obs, torch.rand(count, steps, 1) * 2 - 1, torch.full((count, steps), torch.nan))


def main(pairs: int = 300, steps: int = 5_000) -> float:
    torch.manual_seed(0)
    first, second = segments(pairs), segments(pairs)
    label = (first.obs[..., 0].mean(1) > second.obs[..., 0].mean(1)).float()  # who is upright for longer is better
    data = Dataset.of(Queries(first, second), label, env_id="Pendulum-v1", labeller="me", sampler="uniform")
    data.write("upright.parquet")

    fitted = fit_reward("upright.parquet", "Pendulum-v1", reward_net_arch=(64, 64), reward_lr=0.003)
    fitted.write("upright")
    print("right on pairs that it has not seen:", fitted.report["test"]["accuracy"])

    agent = Agent("pebble", "Pendulum-v1", reward="upright/reward.safetensors", preset="quick", action_repeat=1).learn(
        steps
    )
    print(agent.evaluate(episodes=5).summary()["true_return"])
    return fitted.report["test"]["accuracy"]["mean"]


if __name__ == "__main__":
    main()
