"""The penalty method: bilevel preference learning by a Hessian-free penalty on the value gap [arXiv 2503.17644].

phi descends      cross-entropy + [J(phi, lambda_a) - J(phi, lambda_b)] / (a - b)
learner k sees    r + tilt_k w c,  tilts (a, b) = (0, -sigma) one-sided, (0, sigma) forward, (sigma, -sigma) two-sided

with c the cost of the upper objective and w its weight there, Phi = cross-entropy + w G. lambda_a, unless two-sided, is
the best response to r: the policy a user gets.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from rlhf_bilevel.algorithm import Method, Run
from rlhf_bilevel.config import Config
from rlhf_bilevel.penalty import bounded, proxy, tilted, tilts, value
from rlhf_bilevel.preference import cross_entropy
from rlhf_bilevel.types import Preferences, RewardFn, Row, Signal, Visits


def sides(run: Run) -> tuple[float, float]:
    """(a, b): while labels come the second learner may explore, from the last label on it is careful if asked."""
    c, sigma = run.config, run.memory.get("sigma", run.config.sigma)
    careful = c.careful_from == "last_label" and len(run.prefs) >= c.labels
    return tilts(-sigma if c.sides == "forward" and not careful else sigma, c.sides == "two")


def upper(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    loss = cross_entropy(logits, batch.label).mean()
    # Danskin's theorem holds at best responses. A session moves the reward by many steps with none in between, so the
    # gap acts in refreshes only, which are few steps each and far apart
    c = run.config
    visits = run.sample_visits() if c.use_gap and run.tracked else None
    if visits is None or (stale(run, visits) and not c.gap_share):
        return loss
    if not c.gap_share:
        return proxy(partial(value, run.reward), lambda _: loss, visits, sides(run))
    gap = proxy(partial(value, run.reward), lambda _: 0 * loss, visits, sides(run))
    norms = run.memory.get("labels_gradient", 0.0), run.memory.get("gap_gradient", 0.0)
    total, norms, scale = bounded(loss, gap, list(run.reward.parameters()), norms, c.gap_share, c.gap_surgery)
    run.memory |= {"labels_gradient": norms[0], "gap_gradient": norms[1], "gap_scale": scale}
    return total


def stale(run: Run, visits: tuple[Visits, Visits]) -> bool:
    """Whether a learner does worse on what it sees than the other does: then neither Danskin's theorem holds, and
    descending the gap would teach the reward to tell the two policies apart, at the labels' expense."""
    with torch.no_grad():
        own, others = (
            [value(reward, at).item() for reward, at in zip(rewards(run), order, strict=True)]
            for order in (visits, visits[::-1])
        )
    return own[0] <= others[0] or own[1] <= others[1]


def rewards(run: Run) -> Sequence[RewardFn]:
    if not run.config.use_cost:
        return [run.reward] * 2
    return [tilted(run.reward, run.cost, run.config.upper_weight * tilt) for tilt in sides(run)]


def sees(run: Run) -> Sequence[Signal]:
    return [run.store.learned(reward) for reward in rewards(run)]


def estimate(run: Run) -> None:
    fit_cost(run)
    if run.config.fork_response and run.learnt:
        best = agent(run.config)
        run.learners[1 - best].follow(run.learners[best])


def fit_cost(run: Run) -> None:
    c = run.config
    if not c.use_cost:
        return
    run.cost.refit(c, run.prefs, run.reward.members, run.sample_pairs)
    if c.sigma_spread:
        newest = torch.arange(max(0, run.store.size - c.newest_rows), run.store.size)
        reward, cost = (run.store.learned(f)(newest).std().item() for f in (run.reward, run.cost))
        run.memory["sigma"] = c.sigma_spread * reward / max(c.upper_weight * cost, 1e-8)


def diagnose(run: Run) -> Row:
    visits = run.sample_visits()
    if visits is None:
        return {}
    row = Row({"penalty/stale": float(stale(run, visits))})
    if run.config.use_cost:
        # Well above one, the penalised learner hardly heeds r: sigma is too large, or c is mostly noise
        reward, cost = (torch.cat([f(v.obs, v.act) for v in visits]).std().item() for f in (run.reward, run.cost))
        row["penalty/cost_to_reward"] = run.config.upper_weight * abs(sides(run)[1]) * cost / max(reward, 1e-8)
    known = {"labels_gradient", "gap_gradient", "gap_scale"} & run.memory.keys()
    row |= {f"penalty/{name}": run.memory[name] for name in sorted(known)}
    if run.config.sides != "two":
        # The true value gap, by the best response's critics: what the loss holds in its place lacks the entropies
        best, other = run.learners
        row["penalty/value_gap"] = best.value_gap(other, visits[1].obs)
    return row


def agent(config: Config) -> int:
    return 1 if config.sides == "two" else 0


# What stands on the first line is twin's. The paper's own choice is one-sided, its cost the labels' loss: it does
# worse (docs/search.md)
PENALTY = Method(
    "penalty", 2, sees, upper, agent, estimate, diagnose,
    settings={
        "query": "uniform", "policy_aligned": True, "newest_share": 0.5, "other_every": 4,
        "sides": "forward", "cost": "information", "sigma": 30.0,
    },
)  # fmt: skip
