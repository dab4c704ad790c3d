"""The penalty method: bilevel preference learning by a Hessian-free penalty on the value gap [arXiv 2503.17644].

    phi descends      cross-entropy + [J(phi, pi_a) - J(phi, pi_b)] / (a - b)
    learner a gets    r_phi + a w c                one-sided    (a, b) = (0, -sigma), the paper's
    learner b gets    r_phi + b w c                forward      (a, b) = (0, sigma)
                                                   two-sided    (a, b) = (sigma, -sigma)

The upper objective is Phi = cross-entropy + w G, and c(s, a) = dG/dvisits(s, a) is its cost (see ``cost``). Unless
two-sided, a = 0 and pi_a is the best response to r_phi: this is the policy that a user gets. The gap J(phi, pi_a) -
J(phi, pi_b) is estimated on steps of both learners' newest episodes; its gradient holds both policies fixed
(Danskin's theorem, see ``rlhf_bilevel.bilevel.penalty``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rlhf_bilevel.bilevel.penalty import bounded, proxy, tilted, tilts, value
from rlhf_bilevel.config import Config
from rlhf_bilevel.config.fields import Fraction, Positive, Size, Weight
from rlhf_bilevel.methods.cost import CostOptions, CostState
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics, Occupancy, Preferences, RewardFn, RowReward


class PenaltyOptions(CostOptions):
    """Options of the penalty method, with the values that did best (docs/search.md).

    The paper's own choice is ``sides="one"`` with ``cost="labels"``. Without ``use_cost`` both learners get r, so that
    there is no gap either.
    """

    sigma: Positive = 30.0
    """Penalty, in discounted return per nat of the upper objective."""
    sigma_spread: Weight = 0.0
    """If positive, sigma follows from it: std(sigma w c) = sigma_spread std(r)."""
    upper_weight: Positive = 1.0
    """Weight w of the distribution term G: Phi = cross-entropy + w G."""
    gap_share: Weight = 0.0
    """If positive: the gap's gradient is at most this many times as long as the labels'."""
    gap_surgery: bool = False
    """With gap_share: whether the gap's gradient loses its part against the labels' gradient."""
    sides: Literal["one", "forward", "two"] = "forward"
    """Finite difference: one-sided (the paper's), forward (the second learner explores), or two-sided."""
    careful_from: Literal["never", "last_label"] = "never"
    """From then on sides=forward becomes sides=one."""
    fork_response: bool = False
    """Whether the second learner restarts as a copy of the agent after each move of the reward."""
    visit_episodes: Size = 2
    """Newest episodes of a learner from which its occupancy is estimated."""
    visit_batch: Size = 256
    """Steps of these episodes in each reward step."""
    visit_discount: Fraction = 1.0
    """Weight of a step relative to the one before. gamma would be the paper's occupancy."""
    use_gap: bool = True
    """Whether the value gap is in the reward's loss (ablation)."""

    def numbers(self, config: Config, inputs: int) -> int:
        """How many floats the method needs at most; ``inputs`` is o + a."""
        return super().numbers(config, inputs) + self.visit_batch * config.ensemble_size * 2 * sum(
            config.reward_net_arch
        )


def sides(run: Run) -> tuple[float, float]:
    """(a, b), in discounted return per nat.

    With ``careful_from=last_label`` the forward side turns into the one-sided one when all labels have been given.
    """
    o, sigma = run.options, run.state.memory.get("sigma", run.options.sigma)
    careful = o.careful_from == "last_label" and len(run.prefs) >= run.config.training_labels
    return tilts(-sigma if o.sides == "forward" and not careful else sigma, o.sides == "two")


def sample_visits(run: Run) -> tuple[Occupancy, Occupancy] | None:
    """Samples of both learners' occupancies; None until both have acted on a learnt reward."""
    o = run.options
    recent = [run.store.episodes(writer, run.on_policy_since)[-o.visit_episodes :] for writer in (0, 1)]
    if not all(recent):
        return None
    settings = o.visit_batch, o.visit_discount, run.config.gamma, run.rng["visits"]
    first, second = (run.store.sample_visits(episodes, *settings) for episodes in recent)
    return first, second


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    """Cross-entropy plus the value gap over a - b, in nats. ``logits`` are (M, B).

    The gap is left out where Danskin's theorem does not hold: in sessions, where the reward makes many steps without
    the policies answering, and where a learner is no best response (``stale``), unless ``gap_share`` bounds the gap.
    """
    loss = cross_entropy(logits, batch.label).mean()
    o, memory = run.options, run.state.memory
    visits = sample_visits(run) if o.use_gap and run.in_refresh else None
    if visits is None or (stale(run, visits) and not o.gap_share):
        return loss
    if not o.gap_share:
        return proxy(partial(value, run.reward), lambda _: loss, visits, sides(run))
    gap = proxy(partial(value, run.reward), lambda _: 0 * loss, visits, sides(run))
    norms = memory.get("labels_gradient", 0.0), memory.get("gap_gradient", 0.0)
    total, norms, scale = bounded(loss, gap, list(run.reward.parameters()), norms, o.gap_share, o.gap_surgery)
    memory |= {"labels_gradient": norms[0], "gap_gradient": norms[1], "gap_scale": scale}
    return total


def stale(run: Run, visits: tuple[Occupancy, Occupancy]) -> bool:
    """Whether a learner earns less of its own reward than the other learner earns of it.

    Then it is no best response, and Danskin's theorem does not hold. To descend the gap would only teach the reward to
    tell the two policies apart, at the expense of the labels.
    """
    first, second = rewards(run)
    with torch.no_grad():
        mine = value(first, visits[0]).item(), value(second, visits[1]).item()
        others = value(first, visits[1]).item(), value(second, visits[0]).item()
    return mine[0] <= others[0] or mine[1] <= others[1]


def rewards(run: Run) -> Sequence[RewardFn]:
    """r + a w c and r + b w c, of observations and actions."""
    if not run.options.use_cost:
        return [run.reward] * 2
    return [tilted(run.reward, run.state.cost, run.options.upper_weight * tilt) for tilt in sides(run)]


def learner_rewards(run: Run) -> Sequence[RowReward]:
    """r + a w c and r + b w c, of rows of the replay buffer."""
    return [run.store.learned(reward) for reward in rewards(run)]


def update_estimates(run: Run) -> None:
    """Fits the cost, sets sigma if ``sigma_spread`` asks for it, and copies the agent if ``fork_response`` does."""
    if run.options.use_cost:
        run.state.refit(run)
        if run.options.sigma_spread:
            set_sigma(run)
    if run.options.fork_response and run.learnt:
        best = agent(run.options)
        run.learners[1 - best].follow(run.learners[best])


def set_sigma(run: Run) -> None:
    """Sets sigma such that std(sigma w c) = sigma_spread std(r) over the newest rows."""
    o, newest = run.options, torch.arange(max(0, run.store.size - run.config.newest_rows), run.store.size)
    reward, cost = (run.store.learned(f)(newest).std().item() for f in (run.reward, run.state.cost))
    run.state.memory["sigma"] = o.sigma_spread * reward / max(o.upper_weight * cost, 1e-8)


def diagnose(run: Run) -> Metrics:
    """Whether the gap is stale, the spread of the cost against r's, and the value gap; empty before there is one."""
    visits, o, memory = sample_visits(run), run.options, run.state.memory
    if visits is None:
        return {}
    metrics = Metrics({"penalty/stale": float(stale(run, visits))})
    if o.use_cost:
        # Well above one, the other learner hardly follows r: sigma is too large, or c is mostly noise
        reward, cost = (torch.cat([f(v.obs, v.act) for v in visits]).std().item() for f in (run.reward, run.state.cost))
        metrics["penalty/cost_to_reward"] = o.upper_weight * abs(sides(run)[1]) * cost / max(reward, 1e-8)
    measured = {"labels_gradient", "gap_gradient", "gap_scale"} & memory.keys()
    metrics |= {f"penalty/{name}": memory[name] for name in sorted(measured)}
    if o.sides != "two":
        # By the critics of the best response, entropies included; the gap in the loss lacks them
        best, other = run.learners
        metrics["penalty/value_gap"] = best.value_gap(other, visits[1].obs)
    return metrics


def agent(options: PenaltyOptions) -> int:
    """The learner whose policy a user gets: pi_a, the best response; two-sided pi_b, the careful one."""
    return 1 if options.sides == "two" else 0


PENALTY = Method(
    "penalty", 2, learner_rewards, reward_loss, agent, update_estimates, diagnose, state=CostState.of,
    options=PenaltyOptions,
    settings={"other_every": 4},  # twin's
    learner_needs=("value_gap",),
)  # fmt: skip
