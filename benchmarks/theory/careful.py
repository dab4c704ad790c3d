"""Is a reward that distrusts its own best response better, where labels are few? Exact random MDPs, float64.

    python -m benchmarks.theory.careful [--mdps 128] [--seed 0] [--width 1] [--out FILE.csv] [--workers 2]

Worlds, teacher, table reward, its prior and the labels are those of ``exploring`` with ``own`` pairs, drawn as they
come. What is told is the true return share of the best response after the last label. With m the visits of the best
response to r, n labels, and u the posterior's standard deviation of r, whose mean over pairs is taken off:

    own             r fits labels and prior
    std k           own, whose policy is the best response to r - k u: what is known as pessimism
    learned k L     r also descends [J(r, own) - J(r, careful)] / sigma, careful the best response to r - k u:
                    the penalty method, one-sided, its cost the ensemble's uncertainty, k = sigma w (1 - gamma)
    labelled L      r also descends [J(r, own) - J(r, ref)] / sigma, ref the steps that were labelled, all alike
    best L          the same, ref the tenth of the labelled steps that r rates best

L = n / sigma / (1 - gamma) is the gap's weight beside n labels: the loss's slope is L (share - share of the other).
``always``: from the first label on, so that labels are asked about the careful reward's policy; else at the end.
``--width`` makes the prior's standard deviation so many times the truth's: the wider, the more a reward exaggerates.
With ref fixed the whole is convex in r, and averaging the best responses over rounds finds its minimum.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import write
from benchmarks.theory import coupling
from benchmarks.theory.coupling import GAMMA, SESSIONS, Pairs, Worlds, sample
from benchmarks.theory.exploring import LABELS, PRECISION, fit, posterior

ROUNDS = 10  # of best responses and reward


class Method(NamedTuple):
    other: str = ""  # whom the best response is held against
    weight: float = 0.0  # L
    caution: float = 0.0  # k
    always: bool = False


METHODS = {
    "own": Method(),
    **{f"std {k:g}": Method(caution=k) for k in (0.3, 1.0)},
    **{f"learned {k:g} {L:g}": Method("learned", L, k) for k, L in product((0.3, 1.0), (1.0, 3.0, 10.0))},
    **{f"{ref} {L:g}": Method(ref, L) for ref, L in product(("labelled", "best"), (1.0, 3.0, 10.0))},
    "learned 1 3, always": Method("learned", 3.0, 1.0, always=True),
    **{f"{ref} 3, always": Method(ref, 3.0, always=True) for ref in ("labelled", "best")},
}


class Row(NamedTuple):
    labels: int
    method: str
    mdp: int
    return_share: float


def spread(reward: Tensor, labels: Pairs, precision: float = PRECISION) -> Tensor:
    """u (B, N) of the posterior around ``reward``; its level, which labels leave open, is not in it."""
    covariance = posterior(reward, labels, precision)
    mean = covariance.mean(-1, keepdim=True)
    centred = covariance - mean - mean.mT + mean.mean(-2, keepdim=True)
    return centred.diagonal(dim1=1, dim2=2).clamp(min=0).sqrt()


def labelled(labels: Pairs, reward: Tensor | None = None) -> Tensor:
    """Shares (B, N) of labelled steps; with a reward, of the tenth of them that it rates best."""
    share = labels.asked.sum(2) + labels.asked.sum(1)
    share = share / share.sum(-1, keepdim=True)
    if reward is None:
        return share
    order = reward.argsort(-1, descending=True)
    taken = share.gather(-1, order)
    kept = (0.1 - (taken.cumsum(-1) - taken)).clamp(min=0).minimum(taken)
    return torch.zeros_like(share).scatter(-1, order, kept) / 0.1


def careful(worlds: Worlds, method: Method, labels: Pairs, precision: float = PRECISION) -> Tensor:
    """The reward (B, N) that fits ``labels`` and descends the gap."""
    reward = fit(labels, precision)
    if not method.weight:
        return reward
    caution = method.caution * spread(reward, labels, precision)
    reference = labelled(labels, reward if method.other == "best" else None)
    pull = torch.zeros_like(reward)
    for round in range(1, ROUNDS + 1):
        own = (1 - GAMMA) * worlds.visits(worlds.best(reward))
        if method.other == "learned":
            reference = (1 - GAMMA) * worlds.visits(worlds.best(reward - caution))
        pull = pull + (method.weight * (own - reference) - pull) / round
        reward = fit(labels, precision, pull)
    return reward


def learn(
    worlds: Worlds,
    methods: Sequence[Method],
    number: int,
    rngs: Sequence[torch.Generator],
    precision: float = PRECISION,
) -> list[Tensor]:
    """The last policies (B, S, A) of methods that ask for the same ``number`` labels."""
    teacher, reference = coupling.answers(worlds, 0.0), worlds.visits(worlds.uniform())
    labels = sample(teacher, reference, number // SESSIONS, rngs)
    for _ in range(1, SESSIONS):
        asking = careful(worlds, methods[0], labels, precision) if methods[0].always else fit(labels, precision)
        own = worlds.visits(worlds.best(asking))
        new = sample(teacher, own, number // SESSIONS, rngs)
        labels = Pairs(labels.asked + new.asked, labels.won + new.won)
    rewards = [careful(worlds, method, labels, precision) for method in methods]
    return [
        worlds.best(reward if method.weight else reward - method.caution * spread(reward, labels, precision))
        for method, reward in zip(methods, rewards, strict=True)
    ]


class Task(NamedTuple):
    """What one process solves at once."""

    seed: int
    mdps: Sequence[int]
    labels: int
    width: float = 1.0


def solve(task: Task) -> list[Row]:
    worlds = coupling.draw(task.seed, task.mdps, 0.7)
    groups = [[name for name, method in METHODS.items() if not method.always]]
    groups += [[name] for name, method in METHODS.items() if method.always]
    rows = []
    for group in groups:
        rngs = [coupling.generator(task.seed, number, 2) for number in task.mdps]  # every method meets the same luck
        policies = learn(worlds, [METHODS[name] for name in group], task.labels, rngs, PRECISION / task.width**2)
        for name, policy in zip(group, policies, strict=True):
            shares = worlds.return_share(policy).tolist()
            rows += [Row(task.labels, name, mdp, round(x, 4)) for mdp, x in zip(task.mdps, shares, strict=True)]
    return rows


def experiment(mdps: int, seed: int, width: float, workers: int) -> list[Row]:
    tasks = [Task(seed, chunk, labels, width) for labels, chunk in product(LABELS, coupling.chunks(mdps))]
    return [row for rows in coupling.side_by_side(solve, tasks, workers) for row in rows]


def table(rows: Sequence[Row]) -> list[str]:
    """A line a method: ``own``'s return share, or what is above it in the same MDPs, mean +- s.e.; and the mean of the
    tenth of the MDPs where the method does worst, less that of ``own``."""
    shares: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        shares.setdefault(row[:2], []).append(row.return_share)
    heads = [f"{labels} labels | worst tenth" for labels in LABELS]
    lines = [f"| reward | {' | '.join(heads)} |", "|---|" + "---|---|" * len(LABELS)]
    for method in METHODS:
        cells = []
        for labels in LABELS:
            got, own = np.array(shares[labels, method]), np.array(shares[labels, "own"])
            worst, least = (np.sort(values)[: max(1, len(values) // 10)].mean() for values in (got, own))
            shown = got if method == "own" else got - own
            sign, error = "" if method == "own" else "+", shown.std(ddof=1) / len(shown) ** 0.5
            told = worst if method == "own" else worst - least
            cells += [f"{shown.mean():{sign}.3f} ± {error:.3f}", f"{told:{sign}.2f}"]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="careful", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--width", type=float, default=1.0, help="of the prior, in standard deviations of the truth")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/theory-careful.csv"))
    options = coupling.parsed(parser, arguments, mdps=128)
    if not 0.01 <= options.width <= 100:
        parser.exit(2, f"careful: --width must lie between 0.01 and 100, not {options.width:g}\n")
    rows = experiment(options.mdps, options.seed, options.width, options.workers)
    write(rows, options.out)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
