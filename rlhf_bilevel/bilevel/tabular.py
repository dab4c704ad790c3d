"""The exact lower level of a finite MDP, in float64: best responses with a KL penalty, occupancies, hypergradients.

    J(phi, pi) = E_pi[ sum_t gamma^t ( r_phi(s_t, a_t) - beta log(pi(a_t|s_t) / pi_ref(a_t|s_t)) ) ]
    pi*        = pi_ref exp((Q* - V*) / beta),    V* = beta log sum_a pi_ref exp(Q* / beta),    Q* = r + gamma P V*
    lambda_t   = argmax_pi J + t G:  the pi* of the reward r + t c, where c = dG/dvisits at lambda_t itself
    grad Phi   = d_phi G + sum_s d(s) sum_a dpi*(a|s) Q_c(s, a),    dpi* = pi* / beta (dQ* - dV*)

d is the discounted state occupancy and Q_c are the values of c under pi*. dQ* = dr + gamma P dV* are the values of dr
under pi*, because the derivative of a maximum is taken at the maximiser. So the last line needs only linear solves. It
shares no step with the penalty, and can be compared with it.

Shapes: S states, A actions, N = S A pairs in row-major order, F reward parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from rlhf_bilevel.bilevel.objectives import Objective
from rlhf_bilevel.bilevel.penalty import tilted, value
from rlhf_bilevel.types import Occupancy, RewardFn


@dataclass(frozen=True)
class MDP:
    """A finite discounted MDP, with an agent that pays for its KL to a reference policy. All tensors are float64.

    ValueError if a shape or a value is wrong.
    """

    transition: Tensor  # (S, A, S) P(s' | s, a)
    initial: Tensor  # (S,) distribution of the first state
    reference: Tensor  # (S, A) pi_ref, positive
    gamma: float  # discount per step, in [0, 1)
    beta: float  # weight of the KL, in units of reward; SAC's alpha when pi_ref is uniform

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < 1 or not self.beta > 0:
            raise ValueError(f"an MDP needs 0 <= gamma < 1 and beta > 0, not gamma {self.gamma} and beta {self.beta}")
        states, actions = self.reference.shape
        for name, shape in ("transition", (states, actions, states)), ("initial", (states,)), ("reference", None):
            rows = getattr(self, name)
            if shape not in (None, rows.shape):
                raise ValueError(f"{name} has shape {tuple(rows.shape)}, expected {shape}")
            if (rows < 0).any() or (rows.sum(-1) - 1).abs().max() > 1e-9:
                raise ValueError(f"{name} holds a row that is no distribution")
        if self.reference.min() <= 0:
            raise ValueError("reference must be positive: the KL to it is infinite elsewhere")


def random_mdp(rng: torch.Generator, states: int, actions: int, gamma: float = 0.9, beta: float = 0.5) -> MDP:
    """An MDP whose distributions, also the reference policy's, are drawn uniformly from their simplex."""

    def simplex(*shape: int) -> Tensor:
        draws = torch.empty(shape, dtype=torch.float64).exponential_(generator=rng)
        return draws / draws.sum(-1, keepdim=True)

    return MDP(simplex(states, actions, states), simplex(states), simplex(states, actions), gamma, beta)


def table_reward(table: Tensor) -> RewardFn:
    """The reward function of a table (S, A), for one-hot observations and actions. Differentiable in the table."""
    return lambda obs, act: ((obs @ table) * act).sum(-1)


def reward_table(mdp: MDP, reward: RewardFn) -> Tensor:
    """The inverse of ``table_reward``: the reward of every state and action, (S, A)."""
    return reward(*_pairs(mdp)).reshape(mdp.reference.shape)


@torch.no_grad()
def best_response(mdp: MDP, reward: RewardFn) -> Tensor:
    """pi* (S, A), exact up to float64 rounding, by soft policy iteration from pi_ref.

    This is Newton's method on the soft Bellman equation: the values rise at every step and converge quadratically.
    RuntimeError if they do not, as with a reward that is not finite.
    """
    policy, table = mdp.reference, reward_table(mdp, reward)
    for _ in range(100):
        policy, previous = _improve(mdp, policy, table), policy
        if (policy - previous).abs().max() < 1e-9:  # what is left is of the order of its square
            return policy
    raise RuntimeError(f"soft policy iteration did not converge for rewards in [{table.min():.3g}, {table.max():.3g}]")


@torch.no_grad()
def visits(mdp: MDP, policy: Tensor) -> Occupancy:
    """The exact occupancy of a policy (S, A): one-hot obs (N, S), one-hot act (N, A) and weight (N,)."""
    obs, act = _pairs(mdp)
    return Occupancy(obs, act, (_states(mdp, policy)[:, None] * policy).flatten())


def soft_value(mdp: MDP, reward: RewardFn, visits: Occupancy) -> Tensor:
    """J, with the KL term, of the policy that has these ``visits``: a scalar, differentiable in r."""
    weight = visits.weight.reshape(mdp.reference.shape)
    unregularised = weight.sum(1, keepdim=True) * mdp.reference  # where pi_ref would act in the same states
    return value(reward, visits) - mdp.beta * (torch.xlogy(weight, weight) - torch.xlogy(weight, unregularised)).sum()


def exact_cost(objective: Objective, reward: RewardFn, visits: Occupancy) -> Tensor:
    """c = dG/dvisits, (N,), without gradient: how much one more discounted visit of a pair adds to G."""
    with torch.enable_grad():
        weight = visits.weight.detach().requires_grad_()
        return torch.autograd.grad(objective(reward, visits._replace(weight=weight)), weight)[0]


@torch.no_grad()
def respond(mdp: MDP, reward: RewardFn, objective: Objective, tilt: float) -> Occupancy:
    """The occupancy of lambda_t = argmax J + tilt G: soft policy iteration on r + tilt c, with a new c at every step.

    It converges if |tilt| (1 - gamma) is small against beta / (curvature of G). RuntimeError if it does not.
    """
    policy = best_response(mdp, reward)
    here = visits(mdp, policy)
    for _ in range(200):
        cost = exact_cost(objective, reward, here).reshape(policy.shape)
        policy = _improve(mdp, policy, reward_table(mdp, tilted(reward, table_reward(cost), tilt)))
        here, previous = visits(mdp, policy), here
        change = float((here.weight - previous.weight).abs().max()) * (1 - mdp.gamma)
        if change < 1e-13:
            return here
    raise RuntimeError(f"the response to tilt {tilt:.3g} still moves {change:.1e} of its visits: use a smaller |tilt|")


@dataclass(frozen=True)
class RewardLearning:
    """Learning a reward by its best response, as a ``problems.Problem``: x is phi (F,), a response an ``Occupancy``."""

    mdp: MDP
    objective: Objective  # G
    reward: Callable[[Tensor], RewardFn]  # phi to r_phi

    def lower(self, phi: Tensor, visits: Occupancy) -> Tensor:
        """J, with the KL term."""
        return soft_value(self.mdp, self.reward(phi), visits)

    def upper(self, phi: Tensor, visits: Occupancy) -> Tensor:
        """G."""
        return self.objective(self.reward(phi), visits)

    def respond(self, phi: Tensor, tilt: float) -> Occupancy:
        """The occupancy that maximises J + tilt G."""
        return respond(self.mdp, self.reward(phi), self.objective, tilt)

    def gradient(self, phi: Tensor) -> Tensor:
        """grad Phi (F,) in closed form: the last line of the formulas at the top, by linear solves."""
        phi, mdp = phi.detach(), self.mdp
        policy = best_response(mdp, self.reward(phi))  # (S, A)
        best, weights = visits(mdp, policy), policy[..., None]  # (S, A, 1)
        shape = (*policy.shape, -1)
        dr = jacobian(lambda x: reward_table(mdp, self.reward(x)), phi).reshape(shape)  # (S, A, F)
        dq = _action_values(mdp, policy, dr, (weights * dr).sum(1))
        dpi = weights / mdp.beta * (dq - (weights * dq).sum(1, keepdim=True))
        cost = exact_cost(self.objective, self.reward(phi), best).reshape(shape)  # (S, A, 1)
        cost_values = _action_values(mdp, policy, cost, (weights * cost).sum(1))
        moved: Tensor = (_states(mdp, policy)[:, None, None] * dpi * cost_values).sum((0, 1))
        return moved + jacobian(lambda x: self.upper(x, best), phi)


def _pairs(mdp: MDP) -> tuple[Tensor, Tensor]:
    """All states and actions, one-hot: (N, S) and (N, A)."""
    states, actions = mdp.reference.shape
    obs, act = torch.eye(states, dtype=torch.float64), torch.eye(actions, dtype=torch.float64)
    return obs.repeat_interleave(actions, 0), act.repeat(states, 1)


def _bellman(mdp: MDP, policy: Tensor) -> Tensor:
    """1 - gamma P_pi, (S, S)."""
    chain = (policy[:, None] @ mdp.transition)[:, 0]  # (S, S)
    return torch.eye(len(chain), dtype=torch.float64) - mdp.gamma * chain


def _states(mdp: MDP, policy: Tensor) -> Tensor:
    """d, the discounted state occupancy: (S,), sums to 1 / (1 - gamma)."""
    return torch.linalg.solve(_bellman(mdp, policy).T, mdp.initial)


def _improve(mdp: MDP, policy: Tensor, table: Tensor) -> Tensor:
    """One step of soft policy iteration: pi_ref exp(Q / beta) for the soft action values Q of ``policy``."""
    kl = torch.xlogy(policy, policy / mdp.reference).sum(1)
    q = _action_values(mdp, policy, table, (policy * table).sum(1) - mdp.beta * kl)
    return torch.softmax(mdp.reference.log() + q / mdp.beta, 1)


def _action_values(mdp: MDP, policy: Tensor, table: Tensor, gain: Tensor) -> Tensor:
    """Action values (S, A, ...): ``table`` (S, A, ...) in the first step, and ``gain`` (S, ...) in each later state."""
    values: Tensor = torch.linalg.solve(_bellman(mdp, policy), gain)
    return table + mdp.gamma * (mdp.transition @ values)
