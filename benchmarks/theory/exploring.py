"""What is a second learner good for where labels are few and the reward can be anything? Exact random MDPs, float64.

    python -m benchmarks.theory.exploring [--mdps 128] [--seed 0] [--out FILE.csv] [--workers 2]

Worlds, teacher and return share are those of ``coupling``. The reward is a table, with a normal prior on every entry
whose standard deviation is the truth's. N labels come in 10 sessions, the first on the reference policy's pairs. In
each later one a pair is one step of one policy and one of another, and in between the reward is the most likely one
given all labels so far. Policies:

    own         best response to r, and the one whose return share is told
    reference   the uniform policy
    penalised   best response to r - sigma c     (sides=one, the paper's)
    explorer    best response to r + sigma c     (sides=forward)

G is the information about the reward that an answer gives, E over two independent steps of the policy of
H(E p) - E H(p), with r's Gaussian posterior (Laplace's approximation) in p = sigmoid(r_i - r_j), and c = dG/dvisits.
(1 - gamma) sigma, 4 or 16 here, is what a nat more an answer is worth in reward. With ``gap`` the reward descends the
value gap as well: J(own) - J(other) over a - b, by ``penalty.tilts``.

Pairs are asked as they are drawn (``uniform``), or the tenth of the candidates is asked whose answers tell most
(``information_gain``).
"""

import argparse
from collections.abc import Sequence
from itertools import product
from math import pi
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.rows import write
from benchmarks.theory import coupling
from benchmarks.theory.coupling import GAMMA, PAIRS, REWARD_STD, SESSIONS, Pairs, Worlds, differences, sample
from rlhf_bilevel.bilevel.penalty import tilts
from rlhf_bilevel.evaluation.statistics import interval, mean

PRECISION = 1 / REWARD_STD**2
LABELS = (50, 100, 200)
QUERIES = ("uniform", "information_gain")
ROUNDS = 5  # of best responses and reward, with the gap


class Method(NamedTuple):
    """Whose step is the second of a pair."""

    sigma: float = 0.0  # of the other learner, negative for an explorer; 0 where there is none
    reference: bool = False  # the reference policy's, where there is no other learner: else the same one's
    gap: bool = False


METHODS = {
    "own": Method(),
    "reference": Method(reference=True),
    **{
        f"{name} {sigma}{', gap' if gap else ''}": Method(sign * sigma, gap=gap)
        for (name, sign), sigma, gap in product({"penalised": 1.0, "explorer": -1.0}.items(), (40, 160), (False, True))
    },
}


class Row(NamedTuple):
    queries: str
    labels: int
    method: str
    mdp: int
    return_share: float


def posterior(reward: Tensor, labels: Pairs, precision: float = PRECISION) -> Tensor:
    """Covariance (B, N, N) of the reward given the labels, in Laplace's approximation around ``reward`` (B, N)."""
    odds = torch.sigmoid(differences(reward))
    curvature = labels.asked * odds * (1 - odds)
    hessian = torch.diag_embed(curvature.sum(2) + curvature.sum(1)) - curvature - curvature.mT
    return torch.linalg.inv(hessian + precision * torch.eye(PAIRS, dtype=torch.float64))


def information(reward: Tensor, covariance: Tensor) -> Tensor:
    """H(E p) - E H(p) of every pair of steps, (B, N, N) in nats."""
    own = covariance.diagonal(dim1=1, dim2=2)
    variance = (own[:, :, None] + own[:, None, :] - 2 * covariance).clamp(min=0)
    middle, spread = differences(reward), variance.sqrt()
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)  # of a standard normal's density
    within = torch.zeros_like(middle)
    for node, weight in zip(nodes, weights / weights.sum(), strict=True):
        within += weight * entropy(torch.sigmoid(middle + node * spread))
    return (entropy(torch.sigmoid(middle / (1 + pi * variance / 8).sqrt())) - within).clamp(min=0)


def entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p) + torch.special.entr(1 - p)


def respond(worlds: Worlds, reward: Tensor, gained: Tensor, tilt: float) -> Tensor:
    """The policies (B, S, A) that maximise J + tilt G, G = share' gained share."""
    policy = worlds.best(reward)
    for _ in range(4):  # G is quadratic in the shares: a few steps of its linearisation
        share = (1 - GAMMA) * worlds.visits(policy)
        policy = worlds.best(reward + tilt * (1 - GAMMA) * 2 * (gained @ share[..., None])[..., 0])
    return policy


def fit(labels: Pairs, precision: float = PRECISION, pull: Tensor | None = None) -> Tensor:
    """The most likely table (B, N), as ``coupling.bradley_terry``."""
    table = torch.eye(PAIRS, dtype=torch.float64).expand(len(labels.asked), -1, -1)
    return coupling.bradley_terry(table, labels, precision, pull)


def learn(worlds: Worlds, method: Method, queries: str, number: int, rngs: Sequence[torch.Generator]) -> Tensor:
    """The last policy (B, S, A) after ``number`` labels."""
    teacher, reference = coupling.answers(worlds, 0.0), worlds.visits(worlds.uniform())
    labels = sample(teacher, reference, number // SESSIONS, rngs)
    for session in range(1, SESSIONS + 1):
        reward = fit(labels)
        gained = information(reward, posterior(reward, labels))
        pull = torch.zeros_like(reward)
        for round in range(1, ROUNDS + 1 if method.gap else 2):
            own = worlds.best(reward)
            _, tilt = tilts(method.sigma, two_sided=False)
            other = worlds.uniform() if method.reference else respond(worlds, reward, gained, tilt) if tilt else own
            if method.gap:  # a loss a label, hence once for each; its mean over rounds, so that it settles
                gap = (worlds.visits(own) - worlds.visits(other)) / -tilt
                pull = pull + (labels.asked.sum((1, 2))[:, None] * gap - pull) / round
                reward = fit(labels, pull=pull)
        if session < SESSIONS:
            score = gained if queries == "information_gain" else None
            new = sample(teacher, worlds.visits(own), number // SESSIONS, rngs, worlds.visits(other), score)
            labels = Pairs(labels.asked + new.asked, labels.won + new.won)
    return worlds.best(reward)


class Task(NamedTuple):
    """What one process solves at once."""

    seed: int
    mdps: Sequence[int]
    queries: str
    labels: int
    method: str


def solve(task: Task) -> list[Row]:
    worlds = coupling.draw(task.seed, task.mdps, 0.7)
    rngs = [coupling.generator(task.seed, number, 2) for number in task.mdps]  # every method meets the same luck
    policy = learn(worlds, METHODS[task.method], task.queries, task.labels, rngs)
    shares = worlds.return_share(policy).tolist()
    return [
        Row(task.queries, task.labels, task.method, mdp, round(share, 4))
        for mdp, share in zip(task.mdps, shares, strict=True)
    ]


def experiment(mdps: int, seed: int, workers: int) -> list[Row]:
    settings = product(QUERIES, LABELS, METHODS, coupling.chunks(mdps))
    tasks = [Task(seed, chunk, queries, labels, method) for queries, labels, method, chunk in settings]
    return [row for rows in coupling.side_by_side(solve, tasks, workers) for row in rows]


def table(rows: Sequence[Row]) -> list[str]:
    """A line a method, its return share, or what it is above ``own`` in the same MDPs, by queries and labels."""
    shares: dict[tuple[str, int, str], list[float]] = {}
    for row in rows:
        shares.setdefault(row[:3], []).append(row.return_share)
    points = list(product(QUERIES, LABELS))
    heads = [f"{queries}, {labels} labels" for queries, labels in points]
    lines = [f"| second step of a pair | {' | '.join(heads)} |", "|---|" + "---|" * len(points)]
    for method in METHODS:
        cells = []
        for point in points:
            own, other = np.array([shares[(*point, method)]]), np.array([shares[(*point, "own")]])
            share, gain = (interval(mean, values, corrected=False) for values in (own, own - other))
            told = f"{share[0]:.2f} [{share[1]:.2f}, {share[2]:.2f}]"
            cells.append(told if method == "own" else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*gain))
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="exploring", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/theory-exploring.csv"))
    options = coupling.parsed(parser, arguments, mdps=128)
    rows = experiment(options.mdps, options.seed, options.workers)
    write(rows, options.out)
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
