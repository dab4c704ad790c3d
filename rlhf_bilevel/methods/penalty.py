"""The penalty method: bilevel preference learning by a Hessian-free penalty on the value gap [arXiv 2503.17644].

phi descends      cross-entropy + [J(phi, lambda_a) - J(phi, lambda_b)] / (a - b)
learner k sees    r + tilt_k w c,  tilts (a, b) = (0, -sigma) one-sided, (0, sigma) forward, (sigma, -sigma) two-sided

with c the cost of the upper objective and w its weight there, Phi = cross-entropy + w G. lambda_a, unless two-sided, is
the best response to r: the policy a user gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rlhf_bilevel.bilevel.penalty import bounded, proxy, tilted, tilts, value
from rlhf_bilevel.config import Config, Fraction, Positive, Size, Weight
from rlhf_bilevel.methods.cost import CostOptions, CostState
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics, Occupancy, Preferences, RewardFn, RowReward


class PenaltyOptions(CostOptions):
    """``use_cost``: the cost in the learners' rewards; without it there is no gap either.

    The paper's own choice is ``sides="one"`` and ``cost="labels"``: it does worse (docs/search.md).
    """

    sigma: Positive = 30.0  # discounted return per nat of the upper objective
    sigma_spread: Weight = 0.0  # positive: sigma is set anew so that sigma c spreads so many times as far as r
    upper_weight: Positive = 1.0  # w of cross-entropy + w G: the penalised learner sees r - sigma w c
    gap_share: Weight = 0.0  # positive: the gap's gradient is so many times the labels' at most, whatever sigma says
    gap_surgery: bool = False  # with gap_share: less the part of it that is against the labels'
    sides: Literal["one", "forward", "two"] = "forward"  # one: the paper's proxy; forward: sigma negative; two: central
    careful_from: Literal["never", "last_label"] = "never"  # from then on sides=forward is sides=one
    fork_response: bool = False  # after each move of the reward, the other learner begins as a copy of the agent
    visit_episodes: Size = 2  # newest episodes of a learner that stand for its occupancy
    visit_batch: Size = 256  # their steps in each reward step
    visit_discount: Fraction = 1.0  # weight of step t is this to the power of t; gamma for the paper's occupancy
    use_gap: bool = True  # ablation: the value gap in the reward's loss

    def numbers(self, config: Config, inputs: int) -> int:
        return super().numbers(config, inputs) + self.visit_batch * config.ensemble_size * 2 * sum(
            config.reward_net_arch
        )


def sides(run: Run) -> tuple[float, float]:
    """(a, b): while labels come the second learner may explore, from the last label on it is careful if asked."""
    o, sigma = run.options, run.state.memory.get("sigma", run.options.sigma)
    careful = o.careful_from == "last_label" and len(run.prefs) >= run.config.labels
    return tilts(-sigma if o.sides == "forward" and not careful else sigma, o.sides == "two")


def sample_visits(run: Run) -> tuple[Occupancy, Occupancy] | None:
    """On-policy steps of both learners; None until both have acted on a learnt reward."""
    o = run.options
    recent = [run.store.episodes(writer, run.on_policy_since)[-o.visit_episodes :] for writer in (0, 1)]
    if not all(recent):
        return None
    settings = o.visit_batch, o.visit_discount, run.config.gamma, run.rng["visits"]
    first, second = (run.store.sample_visits(episodes, *settings) for episodes in recent)
    return first, second


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    loss = cross_entropy(logits, batch.label).mean()
    # Danskin's theorem holds at best responses. A session moves the reward by many steps with none in between, so the
    # gap acts in refreshes only, which are few steps each and far apart
    o, memory = run.options, run.state.memory
    visits = sample_visits(run) if o.use_gap and run.tracked else None
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
    """Whether a learner does worse on what it sees than the other does: then neither Danskin's theorem holds, and
    descending the gap would teach the reward to tell the two policies apart, at the labels' expense."""
    with torch.no_grad():
        own, others = (
            [value(reward, at).item() for reward, at in zip(rewards(run), order, strict=True)]
            for order in (visits, visits[::-1])
        )
    return own[0] <= others[0] or own[1] <= others[1]


def rewards(run: Run) -> Sequence[RewardFn]:
    if not run.options.use_cost:
        return [run.reward] * 2
    return [tilted(run.reward, run.state.cost, run.options.upper_weight * tilt) for tilt in sides(run)]


def learner_rewards(run: Run) -> Sequence[RowReward]:
    return [run.store.learned(reward) for reward in rewards(run)]


def update_estimates(run: Run) -> None:
    if run.options.use_cost:
        run.state.refit(run)
        if run.options.sigma_spread:
            set_sigma(run)
    if run.options.fork_response and run.learnt:
        best = agent(run.options)
        run.learners[1 - best].follow(run.learners[best])


def set_sigma(run: Run) -> None:
    """So that sigma w c spreads ``sigma_spread`` times as far as r over the newest rows."""
    o, newest = run.options, torch.arange(max(0, run.store.size - run.config.newest_rows), run.store.size)
    reward, cost = (run.store.learned(f)(newest).std().item() for f in (run.reward, run.state.cost))
    run.state.memory["sigma"] = o.sigma_spread * reward / max(o.upper_weight * cost, 1e-8)


def diagnose(run: Run) -> Metrics:
    visits, o, memory = sample_visits(run), run.options, run.state.memory
    if visits is None:
        return {}
    row = Metrics({"penalty/stale": float(stale(run, visits))})
    if o.use_cost:
        # Well above one, the penalised learner hardly heeds r: sigma is too large, or c is mostly noise
        reward, cost = (torch.cat([f(v.obs, v.act) for v in visits]).std().item() for f in (run.reward, run.state.cost))
        row["penalty/cost_to_reward"] = o.upper_weight * abs(sides(run)[1]) * cost / max(reward, 1e-8)
    known = {"labels_gradient", "gap_gradient", "gap_scale"} & memory.keys()
    row |= {f"penalty/{name}": memory[name] for name in sorted(known)}
    if o.sides != "two":
        # The true value gap, by the best response's critics: what the loss holds in its place lacks the entropies
        best, other = run.learners
        row["penalty/value_gap"] = best.value_gap(other, visits[1].obs)
    return row


def agent(options: PenaltyOptions) -> int:
    return 1 if options.sides == "two" else 0


PENALTY = Method(
    "penalty", 2, learner_rewards, reward_loss, agent, update_estimates, diagnose, state=CostState.of,
    options=PenaltyOptions,
    settings={"query": "uniform", "policy_aligned": True, "newest_share": 0.5, "other_every": 4},  # twin's
)  # fmt: skip
