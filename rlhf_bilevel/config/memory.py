"""How much memory a run needs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from rlhf_bilevel.config.schema import Config, Options


class Networks(NamedTuple):
    """Units of the hidden layers of a learner's policy and of each critic, and the number of critics."""

    policy: tuple[int, ...]
    critic: tuple[int, ...]
    critics: int


def network_sizes(config: Config, arguments: Mapping[str, Any], critics: int) -> Networks:
    """The networks of an SB3 algorithm with these ``arguments``; ``config`` has what ``policy_kwargs`` leave out.

    ``critics`` is the number of critics if nothing says it. A user's own policy class may take other arguments: what is
    not as SB3 has it counts as no layers, and so do SB3's own defaults, which are small.
    """
    policy_kwargs = arguments.get("policy_kwargs", {"net_arch": config.net_arch})
    network_kwargs: Mapping[str, Any] = policy_kwargs if isinstance(policy_kwargs, Mapping) else {}
    arch, number = network_kwargs.get("net_arch"), network_kwargs.get("n_critics")
    parts = (arch.get("pi"), arch.get("qf", arch.get("vf"))) if isinstance(arch, Mapping) else (arch, arch)
    policy, critic = (
        tuple(units for units in part if isinstance(units, int)) if isinstance(part, list | tuple) else ()
        for part in parts
    )
    return Networks(policy, critic, number if isinstance(number, int) else critics)


def num_weights(*units: int) -> int:
    """Number of weights between fully connected layers of ``units`` units each."""
    return sum(i * j for i, j in pairwise(units))


def memory_needed(
    config: Config,
    options: Options,
    obs_size: int,
    act_size: int,
    learners: int,
    arguments: Mapping[str, Any] | None = None,
) -> int:
    """About the most memory of a run, in bytes.

    It counts the replay buffer and the labels; all weights with their gradients, Adam's moments and copies; and what is
    computed at a time: a batch of each learner, a batch of the reward model, the candidates of a session. ``options``
    say what the method adds. ``arguments``, those of the learners' SB3 algorithm, take precedence over ``config``.
    """
    c, arguments, inputs = config, arguments or {}, obs_size + act_size
    policy, critic, critics = network_sizes(c, arguments, critics=2)
    row = 2 * obs_size + act_size + 2 + 2 * learners  # floats, with the rewards that learners keep
    nets = learners * (4 * num_weights(inputs, *policy, 1) + 5 * critics * num_weights(inputs, *critic, 1))
    nets += 7 * c.ensemble_size * num_weights(inputs, *c.reward_net_arch, 1)
    labels = 2 * c.labels * 2 * c.segment_length * (inputs + 1)
    candidates = min(max(c.queries_per_session, c.initial_labels), c.labels) * c.large_batch * pair_size(c, inputs)
    batch = learners * c.batch_size * (row + 2 * (sum(policy) + critics * sum(critic)))
    batch += c.entropy_states * (obs_size + 2 + c.batch_size)
    reward = min(c.reward_batch, c.labels) * 2 * c.segment_length * c.ensemble_size * 2 * sum(c.reward_net_arch)
    rollout = arguments["n_steps"] * row if isinstance(arguments.get("n_steps"), int) else 0  # PPO's
    numbers = c.total_timesteps * row + labels + nets + candidates + batch + reward + rollout
    return 4 * (numbers + options.numbers(c, inputs))


def pair_size(config: Config, inputs: int) -> int:
    """Numbers in memory for one unlabelled pair, with the reward that each ensemble member gives to its steps."""
    return 2 * config.segment_length * (3 * (inputs + 1) + 2 * config.ensemble_size)
