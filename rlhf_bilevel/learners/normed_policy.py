"""Parts of SB3 policies: observations in units of their spread, and layer normalisation in SAC's critics.

Normalised observations [Lee et al., "SimBa", ICLR 2025] keep large entries, such as velocities, from outweighing the
others. A layer normalisation before each activation of the critics bounds what they extrapolate [Ba et al. 2016; Ball
et al. 2023, "Efficient Online Reinforcement Learning with Offline Data"].

A saved model has the code of these classes in it, so that SB3 loads it where this package is not installed.
"""

from __future__ import annotations

import sys
from typing import Any

import cloudpickle
import torch
from gymnasium.spaces import Space
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import FlattenExtractor, create_mlp
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class NormedObs(FlattenExtractor):
    """Observations counted from their mean, in standard deviations; entries that spread by less than 1 keep unit 1.

    Not to enlarge what hardly moves at first keeps it from filling the networks when it moves. Until ``measure`` has
    been called, observations pass as they are.
    """

    def __init__(self, observation_space: Space[Any]) -> None:
        super().__init__(observation_space)
        self.center: Tensor
        self.unit: Tensor
        self.measured: Tensor
        self.register_buffer("center", torch.zeros(self.features_dim))
        self.register_buffer("unit", torch.ones(self.features_dim))
        self.register_buffer("measured", torch.tensor(False))

    def forward(self, observations: Tensor) -> Tensor:
        """Observations (N, o) in these units, (N, o)."""
        return (super().forward(observations) - self.center) / self.unit

    def measure(self, obs: Tensor) -> None:
        """Takes mean and units from observations (N, o)."""
        self.center.copy_(obs.mean(0))
        self.unit.copy_(obs.std(0, correction=0).clamp(min=1))
        self.measured.fill_(True)

    def convert(self, obs: Tensor) -> None:
        """``forward`` in place."""
        obs.sub_(self.center).div_(self.unit)


def measure_once(policy: nn.Module, store: Any) -> None:
    """Before the first update: each ``NormedObs`` of the policy takes its units from the replay buffer's rows."""
    for part in policy.modules():
        if isinstance(part, NormedObs) and not part.measured:
            part.measure(store.obs[: store.size])


class NormedCritic(ContinuousCritic):
    """SB3's critics, linear layer by linear layer, with a layer normalisation after each hidden one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        inputs = kwargs["features_dim"] + get_action_dim(self.action_space)
        shape = kwargs["net_arch"], kwargs["activation_fn"]
        for number in range(self.n_critics):
            network = nn.Sequential(*create_mlp(inputs, 1, *shape, post_linear_modules=[nn.LayerNorm]))
            self.q_networks[number] = network
            self.add_module(f"qf{number}", network)


class NormedPolicy(SACPolicy):
    """SB3's SAC policy with ``NormedCritic``."""

    def make_critic(self, features_extractor: Any = None) -> NormedCritic:
        """The critics, on the policy's device."""
        arguments = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return NormedCritic(**arguments).to(self.device)
