"""The comparison of units, on labels that are told by a small quantity beside a large one."""

import torch

from benchmarks.learning.units import fitted, judged
from rlhf_bilevel.config import Config
from rlhf_bilevel.types import Preferences, Segments


def test_a_reward_that_sees_units_of_spread_finds_a_small_quantity_beside_a_large_one() -> None:
    rng = torch.Generator().manual_seed(0)
    obs, act = torch.randn(2, 160, 10, 2, generator=rng), torch.zeros(2, 160, 10, 1)
    truth = obs[..., 0].clone()  # of unit spread, before it becomes small
    obs *= torch.tensor([0.1, 20.0])
    first, second = (Segments(obs[i], act[i], truth[i]) for i in range(2))
    answers = Preferences(first, second, (truth[0].sum(-1) > truth[1].sum(-1)).float())
    found = {}
    config = Config(total_timesteps=1000, queries_per_session=20, reward_form="network", reward_net_arch=(32, 32))
    for units in "measured", "raw":
        found[units] = judged(fitted(answers, 60, config, units), Preferences(
            *(Segments(*(column[60:] for column in part)) for part in (first, second)), answers.label[60:]
        ))  # fmt: skip
    for good, bad in zip(found["measured"], found["raw"], strict=True):
        assert good > 0.75 and bad < good - 0.2
