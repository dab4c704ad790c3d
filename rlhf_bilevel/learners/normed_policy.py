"""SB3's SAC policy with a layer normalisation before each activation of the critics, which bounds what they
extrapolate [Ba et al. 2016; Ball et al. 2023, "Efficient Online Reinforcement Learning with Offline Data"].

A saved model has the code of these classes in it, so that SB3 loads it where this package is not installed.
"""

from __future__ import annotations

import sys
from typing import Any

import cloudpickle
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import create_mlp
from stable_baselines3.sac.policies import SACPolicy
from torch import nn

cloudpickle.register_pickle_by_value(sys.modules[__name__])


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
