"""The types that all parts share.

Symbols: s state (here: observation), a action, r reward, pi policy, gamma discount per step.
Shapes: B pairs, T steps of a segment, N rows or samples, M members of the reward ensemble, Q critics,
o entries of an observation, a entries of an action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

Metrics = dict[str, float]
"""Numbers to be logged, by their key."""

RewardFn = Callable[[Tensor, Tensor], Tensor]
"""A reward r(s, a): takes obs (..., o) and act (..., a), returns one reward for each step (...)."""

RowReward = Callable[[Tensor], Tensor]
"""A reward of stored steps: takes row numbers (N,) of the replay buffer, returns the rewards of these rows (N,)."""

Steps = tuple[Tensor, Tensor]
"""obs (N, o) and act (N, a) of N single steps."""


class Segments(NamedTuple):
    """B segments. A segment is T consecutive steps of one episode."""

    obs: Tensor
    """(B, T, o) what the agent saw."""
    act: Tensor
    """(B, T, a) what it did, scaled to [-1, 1]."""
    env_reward: Tensor
    """(B, T) the environment's reward, for teachers and evaluation. It is NaN in what a method's loss gets."""


class Queries(NamedTuple):
    """B pairs of segments. The teacher is asked of each pair which segment is better."""

    first: Segments
    second: Segments


class Preferences(NamedTuple):
    """B answered pairs."""

    first: Segments
    second: Segments
    label: Tensor
    """(B,) is 1 if the first segment is better, 0 if the second is, 0.5 for a tie; between for a weaker preference."""


class Occupancy(NamedTuple):
    """Samples of a policy's discounted occupancy: where the policy goes.

    They estimate expectations: sum_n weight_n f(obs_n, act_n) = E_pi[sum_t gamma^t f(s_t, a_t)].
    """

    obs: Tensor  # (N, o)
    act: Tensor  # (N, a)
    weight: Tensor  # (N,) sums to 1 / (1 - gamma)


class Teacher(Protocol):
    """Answers queries: a script, a file or a person.

    It returns the pairs that it answered, with labels. A pair that it does not answer is left out. It may have an
    attribute ``seconds``: the labelling time of its newest call, with that of the pairs that it left out; None: not
    known.
    """

    def __call__(self, queries: Queries, /) -> Preferences:
        """The answers to B pairs. Pairs without an answer are left out."""


class Learner(Protocol):
    """An RL algorithm that learns from the replay buffer of the run.

    ``value_gap``, ``critics_after``, ``score_products`` and ``temperature`` are for the methods that name them in
    ``learner_needs``; every learner has the others.
    """

    model: Any
    """The Stable-Baselines3 algorithm, which holds the policy that a user gets; or an object that has its ``predict``,
    ``policy`` (a ``torch.nn.Module``), ``save``, ``observation_space``, ``action_space`` and ``num_timesteps``.
    """

    def act(self, obs: np.ndarray, step: int) -> tuple[np.ndarray, np.ndarray]:
        """An exploring action for ``obs`` (o,) at environment step ``step``.

        Returns it twice, each (a,): in the units of the environment, and scaled to [-1, 1].
        """

    def improve(self, updates: int, step: int) -> Metrics:
        """Takes ``updates`` gradient steps, each on a new batch, at environment step ``step``. Returns their metrics.

        Raises FloatingPointError if a loss is not finite.
        """

    def set_reward(self, reward: RowReward, cache: bool = True) -> None:
        """Learns from ``reward`` from now on.

        With ``cache``, the reward of a row is computed once and kept until the next call. Use ``cache=False`` for a
        reward that changes between calls.
        """

    def follow(self, other: Any) -> None:
        """Becomes a copy of ``other``, a learner of the same kind. From then on both draw the same batches."""

    def reset_critic(self) -> None:
        """Sets the critics to new random weights. The policy stays as it is."""

    def value_gap(self, other: Any, obs: Tensor) -> float:
        """J(self) - J(other) in discounted return, by the critics of this learner.

        ``obs`` (N, o) are states that ``other`` visits.
        """

    def value(self, obs: Tensor, act: Tensor) -> Tensor:
        """min_q Q_q(s, a) of obs (..., o) and act (..., a): shape (...), without gradient.

        PPO has no critic of actions and returns V(s).
        """

    def critics_after(self, rows: Tensor, reward: Tensor) -> RewardFn:
        """The critics after one step of gradient descent on stored rows (N,) with ``reward`` (N,).

        Returns a function of obs (N, o) and act (N, a) to (Q, N). It is differentiable in ``reward``.
        """

    def score_products(self, steps: Steps, others: Steps, weight: Tensor) -> Tensor:
        """<grad log pi(a_n|s_n), sum_m weight_m grad log pi(a_m|s_m)> for each step n: (N,).

        The gradients are by the policy's parameters; n counts ``steps``, m counts ``others``; weight is (M,). It is
        how much log pi(a_n|s_n) changes when the policy takes a small step along the weighted sum.
        """

    def temperature(self) -> float:
        """SAC's alpha: the reward that one nat of policy entropy is worth."""

    def state_dict(self) -> Any:
        """All that changes in the learner, as a tree of plain values and tensors, with text as keys. The tensors are
        not copied. ``utils.serialization.optimizer_state`` gives that of an optimizer.
        """

    def load_state_dict(self, state: Any) -> None:
        """Continues from the ``state_dict`` of a learner of the same kind. Its reward stays the one that is set."""


Improve = Callable[[int, int], Sequence[Metrics]]
"""Improves all learners of a run: takes (updates, step) as ``Learner.improve``, returns the metrics of each learner."""
