"""When does it help to tell the reward how the policy answers it? Exact random MDPs, float64, no deep network.

    python -m benchmarks.theory.coupling --mdps 48 --seed 0 --out coupling.csv [--workers 2]

Worlds: ``random_mdp`` with 20 states, 3 actions, gamma .9, beta .1 and a uniform reference policy. The reward class is
linear in 6 standard normal features. The true reward R is a random member of it plus a part orthogonal to the features
and to constants; ``misfit`` is the second's share of R's variance over state-action pairs. R has standard deviation
2, where a Boltzmann teacher, T_ij = sigmoid(R_i - R_j), agrees with R's order on about five pairs of six.

    return share   (V - V_ref) / (V_opt - V_ref) for V = E[sum_t gamma^t R], KL left out: of the learnt reward's best
                   response (KL-regularised), the uniform policy, and R's optimum (policy iteration, no KL)

Every method descends G + ridge |phi|^2 / 2 (the ridge bounds the reward) from the same fit to the reference's pairs:

    uniform          cross-entropy (CE) on the reference policy's pairs, which no reward changes
    naive            CE on the policy's own pairs, the policy held fixed at every step: PEBBLE's gradient
    preference_loss  the same G, coupled: grad Phi_sigma by ``penalty.proxy``, two-sided
    win_rate w       CE on the reference's pairs less w x the policy's chance to win against the reference, coupled
    table            naive with a reward for every pair in place of the class: what the class gives away (no misfit)

The last is no rival but a caution. A coupled method's answer to "what would the teacher say there?" is a table, so its
gain over ``naive`` is what that table tells a reward confined to the class; whoever may use the table as reward should.

Sweeps, one at a time around misfit .7, unlimited labels, no mistakes:

    misfit      of the reward class
    labels      drawn in 10 sessions from the policy's own pairs (the first from the reference's; all of them under
                ``uniform``). CE is that of the labels so far. Coupled methods also need the teacher on pairs never
                asked: T of a tabular Bradley-Terry utility fitted to the same labels. Both have standard normal priors
    mistakes    probability e that a label is flipped: T becomes (1 - 2e) T + e
    objective   the methods side by side at the default; level is the weight of the win rate, 0 where there is none

Why this sigma: tilting J by sigma G moves a log-probability by about sigma (1 - gamma) w / beta (``exactness.py``),
where w is the scale of G. SIGMA makes that 1/16: the two-sided gradient is then within 1e-3 of the closed form, and
descending either ends at the same return (tests/bilevel/test_coupling.py).

B worlds are solved at once, their J and G summed. Axes: B worlds, S states, A actions, N = S A pairs in row-major
order, F reward parameters.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import inf, isinf
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from benchmarks.rows import write
from rlhf_bilevel.bilevel.penalty import proxy, tilts
from rlhf_bilevel.bilevel.problems import differentiate
from rlhf_bilevel.bilevel.tabular import random_mdp
from rlhf_bilevel.evaluation.statistics import Interval, interval, mean

STATES, ACTIONS, FEATURES = 20, 3, 6
PAIRS = STATES * ACTIONS
GAMMA, BETA, REWARD_STD = 0.9, 0.1, 2.0
RIDGE = 1e-3  # of unlimited labels; n labels have 1 / n, a standard normal prior on phi
SIGMA = BETA / (1 - GAMMA) / 16
SESSIONS = 10
STEPS = 100  # of Adam; with labels, half as many in each of the sessions
CHUNK = 32  # worlds solved at once
CANDIDATES = 10  # pairs for each that is asked, where they are picked


class Method(NamedTuple):
    weight: float | None  # of the win rate; None where the objective is ``preference_loss``
    coupled: bool  # whether the reward's gradient includes the policy's answer
    own_pairs: bool = True  # whether sessions ask about the policy's pairs or about the reference's
    table: bool = False  # whether the reward class is every table, features left aside


METHODS = {
    "uniform": Method(0.0, coupled=False, own_pairs=False),
    "naive": Method(None, coupled=False),
    "preference_loss": Method(None, coupled=True),
    **{f"win_rate {weight}": Method(float(weight), coupled=True) for weight in (1, 4, 10)},
    "table": Method(None, coupled=False, table=True),
}


class Setting(NamedTuple):
    misfit: float = 0.7
    labels: float = inf
    mistakes: float = 0.0


SWEEPS: dict[str, tuple[float, ...]] = {
    "misfit": (0, 0.3, 0.5, 0.7, 0.9),
    "labels": (50, 200, 800, inf),
    "mistakes": (0, 0.15, 0.3),
}


class Row(NamedTuple):
    sweep: str
    level: float
    method: str
    mdp: int
    return_share: float
    objective_before: float  # Phi, ridge excluded, under unlimited labels, of the method's own G: at the first fit
    objective_after: float  # the same at the end


class Outcome(NamedTuple):
    """One method at one level: means over MDPs with 95 % bootstrap bounds."""

    sweep: str
    level: float
    method: str
    share: Interval
    gain: Interval  # in return share over ``naive`` in the same MDPs


class Pairs(NamedTuple):
    """Answered questions: how often each ordered pair was asked, and how often its first was preferred."""

    asked: Tensor  # (B, N, N) counts, or shares that sum to 1
    won: Tensor  # (B, N, N)

    def share(self) -> Pairs:
        total = self.asked.sum((1, 2), keepdim=True)
        return Pairs(self.asked / total, self.won / total)


@dataclass(frozen=True)
class Worlds:
    """B random MDPs with their features and true rewards."""

    transition: Tensor  # (B, S, A, S)
    initial: Tensor  # (B, S)
    features: Tensor  # (B, N, F)
    truth: Tensor  # (B, N) R

    def states(self, policy: Tensor) -> Tensor:
        """The discounted state occupancy (B, S) of policies (B, S, A)."""
        return torch.linalg.solve(self._bellman(policy).mT, self.initial)

    def visits(self, policy: Tensor) -> Tensor:
        """The discounted occupancy of pairs (B, N), summing to 1 / (1 - gamma)."""
        return (self.states(policy)[..., None] * policy).flatten(1)

    def action_values(self, policy: Tensor, table: Tensor, gain: Tensor) -> Tensor:
        """table (B, S, A) now, then what the policy gains per step in each state (B, S)."""
        values = torch.linalg.solve(self._bellman(policy), gain)
        return table + GAMMA * torch.einsum("bsat,bt->bsa", self.transition, values)

    def improve(self, policy: Tensor, reward: Tensor) -> Tensor:
        """One step of soft policy iteration for rewards (B, N); the reference is uniform, its log a constant."""
        table = reward.reshape(policy.shape)
        kl = torch.xlogy(policy, policy * ACTIONS).sum(-1)
        return torch.softmax(self.action_values(policy, table, (policy * table).sum(-1) - BETA * kl) / BETA, -1)

    def uniform(self) -> Tensor:
        return torch.full(self.transition.shape[:3], 1 / ACTIONS, dtype=torch.float64)

    def best(self, reward: Tensor) -> Tensor:
        """The best responses (B, S, A) to rewards (B, N), by soft policy iteration from the reference."""
        policy = self.uniform()
        for _ in range(100):
            policy, previous = self.improve(policy, reward), policy
            if (policy - previous).abs().max() < 1e-9:
                return policy
        raise RuntimeError("soft policy iteration did not converge")

    def optimum(self) -> Tensor:
        """The deterministic policies (B, S, A) that maximise the return without KL, by policy iteration."""
        policy, table = self.uniform(), self.truth.reshape(self.transition.shape[:3])
        for _ in range(100):
            values = self.action_values(policy, table, (policy * table).sum(-1))
            greedy = torch.nn.functional.one_hot(values.argmax(-1), ACTIONS).double()
            if torch.equal(greedy, policy):
                return policy
            policy = greedy
        raise RuntimeError("policy iteration did not converge")

    def return_share(self, policy: Tensor) -> Tensor:
        """Of policies (B, S, A), as the module's text defines it: (B,)."""
        own, low, high = (
            (self.visits(pi) * self.truth).sum(-1) for pi in (policy, self.uniform(), self.optimum())
        )  # fmt: skip
        return (own - low) / (high - low)

    def _bellman(self, policy: Tensor) -> Tensor:
        chain = (policy[..., None] * self.transition).sum(2)
        return torch.eye(STATES, dtype=torch.float64) - GAMMA * chain


def draw(seed: int, numbers: Sequence[int], misfit: float) -> Worlds:
    """The worlds of these numbers, each a function of (seed, number); ``misfit`` only mixes the two parts of R."""
    columns = []
    for number in numbers:
        rng = generator(seed, number, 0)
        mdp = random_mdp(rng, STATES, ACTIONS, GAMMA, BETA)
        features, phi, other = (
            torch.randn(shape, generator=rng, dtype=torch.float64)
            for shape in ((PAIRS, FEATURES), (FEATURES,), (PAIRS,))
        )
        basis, _ = torch.linalg.qr(torch.cat([features, torch.ones(PAIRS, 1, dtype=torch.float64)], 1))
        inside, outside = features @ phi, other - basis @ (basis.T @ other)
        truth = REWARD_STD * ((1 - misfit) ** 0.5 * unit(inside) + misfit**0.5 * unit(outside))
        columns.append((mdp.transition, mdp.initial, features, truth))
    return Worlds(*(torch.stack(column) for column in zip(*columns, strict=True)))


def generator(seed: int, number: int, purpose: int) -> torch.Generator:
    (state,) = np.random.SeedSequence((seed, number, purpose)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state >> 1))


def unit(values: Tensor) -> Tensor:
    return (values - values.mean()) / values.std(correction=0)


def differences(rewards: Tensor) -> Tensor:
    return rewards[..., :, None] - rewards[..., None, :]  # (B, N) to (B, N, N)


def asked_of(teacher: Tensor, share: Tensor) -> Pairs:
    """Unlimited answers of a teacher T (B, N, N) on pairs drawn from shares (B, N)."""
    asked = share[..., :, None] * share[..., None, :]
    return Pairs(asked, asked * teacher)


def sample(
    teacher: Tensor,
    first: Tensor,
    number: int,
    rngs: Sequence[torch.Generator],
    second: Tensor | None = None,
    score: Tensor | None = None,
) -> Pairs:
    """Counts of ``number`` answers a world: pairs of a step drawn from shares ``first`` (B, N) and one from ``second``,
    or both from ``first``, labelled by T. With ``score`` (B, N, N), those of CANDIDATES times as many that have most.
    """
    count = number * (CANDIDATES if score is not None else 1)
    noise = torch.stack([torch.rand(3, count, generator=rng, dtype=torch.float64) for rng in rngs], 1)
    shares = first, first if second is None else second
    edges = ((share / share.sum(-1, keepdim=True)).cumsum(-1)[:, :-1].contiguous() for share in shares)
    rows = [torch.searchsorted(edge, draws.contiguous()) for edge, draws in zip(edges, noise, strict=False)]
    index = rows[0] * PAIRS + rows[1]
    if score is not None:
        index = index.gather(1, score.flatten(1).gather(1, index).argsort(-1, descending=True)[:, :number])
    label = (noise[2][:, :number] < teacher.flatten(1).gather(1, index)).double()
    zero = torch.zeros_like(teacher).flatten(1)
    return Pairs(*(zero.scatter_add(1, index, x).reshape(teacher.shape) for x in (torch.ones_like(label), label)))


def cross_entropy(rewards: Tensor, pairs: Pairs) -> Tensor:
    """The Bradley-Terry loss (B,) of rewards (B, N), in nats when ``pairs`` are shares."""
    d = differences(rewards)
    return (pairs.asked * softplus(d) - pairs.won * d).sum((1, 2))


def bradley_terry(features: Tensor, pairs: Pairs, ridge: float, pull: Tensor | None = None) -> Tensor:
    """The minimisers phi (B, F) of ``cross_entropy(features @ phi)`` + ridge |phi|^2 / 2 + pull phi, by damped Newton
    steps; ``pull`` (B, F), or nothing."""
    phi = features.new_zeros(features.shape[0], features.shape[2])
    pull = torch.zeros_like(phi) if pull is None else pull

    def loss(phi: Tensor) -> Tensor:
        fit = cross_entropy((features @ phi[..., None])[..., 0], pairs)
        return fit + (ridge / 2 * phi.square() + pull * phi).sum(-1)

    for _ in range(50):
        odds = torch.sigmoid(differences((features @ phi[..., None])[..., 0]))
        residual, curvature = pairs.asked * odds - pairs.won, pairs.asked * odds * (1 - odds)
        slope = features.mT @ (residual.sum(2) - residual.sum(1))[..., None] + (ridge * phi + pull)[..., None]
        laplacian = torch.diag_embed(curvature.sum(2) + curvature.sum(1)) - curvature - curvature.mT
        hessian = features.mT @ laplacian @ features + ridge * torch.eye(features.shape[2], dtype=torch.float64)
        step = torch.linalg.solve(hessian, slope)[..., 0]
        here = loss(phi)
        for _ in range(30):  # halved where it would not descend
            worse = loss(phi - step) > here + 1e-12
            if not worse.any():
                break
            step = torch.where(worse[:, None], step / 2, step)
        phi = phi - step
        if step.abs().max() < 1e-9:
            return phi
    raise RuntimeError("the Bradley-Terry fit did not converge")


@dataclass(frozen=True)
class Objective:
    """``objectives.py`` for B worlds: ``win_rate`` where ``wins`` is given, else ``preference_loss``.

    Without ``data`` the latter judges the reward on the policy's own pairs. Labels drawn from the policy stand in for
    them in its partial gradient in phi; where the policy should go is still told by ``teacher``.
    """

    data: Pairs | None
    teacher: Tensor  # (B, N, N) T
    wins: Tensor | None  # (B, N) weight times the chance to win against the reference

    def __call__(self, rewards: Tensor, share: Tensor) -> Tensor:
        """G (B,) of rewards (B, N) and the policies' pairs, shares (B, N)."""
        loss = cross_entropy(rewards, self.data or asked_of(self.teacher, share))
        return loss if self.wins is None else loss - (share * self.wins).sum(-1)

    def cost(self, rewards: Tensor) -> Callable[[Tensor], Tensor]:
        """dG/dshare (B, N) as a function of the shares."""
        if self.wins is not None:
            return lambda share: -cast(Tensor, self.wins)
        d = differences(rewards)
        loss = softplus(d) - self.teacher * d
        loss = loss + loss.mT
        return lambda share: (loss @ share[..., None])[..., 0]


@dataclass(frozen=True)
class Batch:
    """Lower, upper and respond of a ``problems.Problem``: x is phi (B, F), a response the policies' visits (B, N)."""

    worlds: Worlds
    objective: Objective
    ridge: float = RIDGE

    def rewards(self, phi: Tensor) -> Tensor:
        return (self.worlds.features @ phi[..., None])[..., 0]

    def lower(self, phi: Tensor, visits: Tensor) -> Tensor:
        """J without its KL, which is free of phi."""
        return (visits * self.rewards(phi)).sum()

    def upper(self, phi: Tensor, visits: Tensor) -> Tensor:
        return self.objective(self.rewards(phi), (1 - GAMMA) * visits).sum() + self.ridge / 2 * phi.square().sum()

    def respond(self, phi: Tensor, tilt: float) -> Tensor:
        """As ``tabular.respond``; a visit costs 1 - gamma of what a share does, up to a constant that moves no one."""
        rewards, policy = self.rewards(phi), self.worlds.uniform()
        cost, visits = self.objective.cost(rewards), self.worlds.visits(policy)
        for _ in range(200):
            seen = rewards + tilt * (1 - GAMMA) * cost((1 - GAMMA) * visits)
            policy = self.worlds.improve(policy, seen)
            visits, previous = self.worlds.visits(policy), visits
            if (visits - previous).abs().max() * (1 - GAMMA) < 1e-10:
                return visits
        raise RuntimeError(f"the response to tilt {tilt:.3g} did not settle: use a smaller |tilt|")


def gradient(batch: Batch, method: Method, phi: Tensor) -> Tensor:
    """What ``method`` descends, (B, F): grad Phi_sigma, or the partial gradient at the policies' current visits."""
    if method.coupled:
        sides = tilts(SIGMA / max(1, method.weight or 1), two_sided=True)
        high, low = (batch.respond(phi, tilt) for tilt in sides)
        return differentiate(lambda x: proxy(partial(batch.lower, x), partial(batch.upper, x), (high, low), sides), phi)
    visits = batch.respond(phi, 0.0)
    return differentiate(lambda x: batch.upper(x, visits), phi)


def descend(slope: Callable[[Tensor], Tensor], phi: Tensor, steps: int) -> Tensor:
    """Adam, its step falling from .05 to 0 along a cosine; worlds do not mix, as Adam works by element."""
    phi = phi.clone().requires_grad_()
    adam = torch.optim.Adam([phi], lr=0.05)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    for _ in range(steps):
        phi.grad = slope(phi.detach())
        adam.step()
        decay.step()
    return phi.detach()


def answers(worlds: Worlds, mistakes: float) -> Tensor:
    """T (B, N, N): how often the teacher's label prefers i to j, mistakes included."""
    return (1 - 2 * mistakes) * torch.sigmoid(differences(worlds.truth)) + mistakes


def winning(method: Method, teacher: Tensor, reference: Tensor) -> Tensor | None:
    """(B, N) the weighted chance that a teacher T prefers a pair to one of the reference's."""
    return None if method.weight is None else method.weight * (teacher @ reference[..., None])[..., 0]


def exact(worlds: Worlds, setting: Setting, method: Method) -> Batch:
    """The problem that ``method`` poses when labels are unlimited."""
    teacher, reference = answers(worlds, setting.mistakes), (1 - GAMMA) * worlds.visits(worlds.uniform())
    wins = winning(method, teacher, reference)
    return Batch(worlds, Objective(None if wins is None else asked_of(teacher, reference), teacher, wins))


def learn(
    worlds: Worlds, setting: Setting, method: Method, rngs: Sequence[torch.Generator], steps: int
) -> tuple[Tensor, Tensor]:
    """phi (B, F) after the first fit, to the reference's pairs, and at the end; ``rngs`` (B) draw the labels."""
    teacher, reference = answers(worlds, setting.mistakes), (1 - GAMMA) * worlds.visits(worlds.uniform())
    if isinf(setting.labels):
        first = bradley_terry(worlds.features, asked_of(teacher, reference), RIDGE)
        return first, descend(partial(gradient, exact(worlds, setting, method), method), first, steps)
    number, table = int(setting.labels) // SESSIONS, torch.eye(PAIRS, dtype=torch.float64).expand(len(rngs), -1, -1)
    labels = sample(teacher, reference, number, rngs)
    phi = first = bradley_terry(worlds.features, labels.share(), 1 / number)
    for session in range(1, SESSIONS + 1):
        prior = 1 / (number * session)  # its precision of 1, as loss per label
        utility = bradley_terry(table, labels.share(), prior)
        estimate = torch.sigmoid(differences(utility))
        batch = Batch(worlds, Objective(labels.share(), estimate, winning(method, estimate, reference)), prior)
        phi = descend(partial(gradient, batch, method), phi, steps // 2)
        if session < SESSIONS:
            policy = worlds.best(batch.rewards(phi)) if method.own_pairs else worlds.uniform()
            new = sample(teacher, worlds.visits(policy), number, rngs)
            labels = Pairs(labels.asked + new.asked, labels.won + new.won)
    return first, phi


class Task(NamedTuple):
    """What one process solves at once."""

    seed: int
    mdps: Sequence[int]
    setting: Setting
    method: str
    steps: int = STEPS


def solve(task: Task) -> list[tuple[float, float, float]]:
    """Return share, Phi before and Phi after in every world of the task."""
    worlds, method = draw(task.seed, task.mdps, task.setting.misfit), METHODS[task.method]
    if method.table:
        worlds = replace(worlds, features=torch.eye(PAIRS, dtype=torch.float64).expand(len(task.mdps), -1, -1))
    rngs = [generator(task.seed, number, 1) for number in task.mdps]  # every method meets the same luck
    batch = exact(worlds, task.setting, method)
    first, last = learn(worlds, task.setting, method, rngs, task.steps)
    share = worlds.return_share(worlds.best(batch.rewards(last)))
    before, after = (
        batch.objective(batch.rewards(phi), (1 - GAMMA) * batch.respond(phi, 0.0)) for phi in (first, last)
    )  # fmt: skip
    return list(zip(share.tolist(), before.tolist(), after.tolist(), strict=True))


def chunks(mdps: int) -> list[range]:
    """Numbers of worlds that are solved at once."""
    return [range(mdps)[start : start + CHUNK] for start in range(0, mdps, CHUNK)]


def side_by_side(solve: Callable[[Any], list[Any]], tasks: Sequence[Any], workers: int) -> list[list[Any]]:
    """What ``solve`` gives for each task, by so many processes of one thread each."""
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(pool.map(solve, tasks))


def experiment(mdps: int, seed: int, workers: int) -> list[Row]:
    """All sweeps; the default setting, which they share, is solved once."""
    points = [(sweep, level, Setting()._replace(**{sweep: level})) for sweep in SWEEPS for level in SWEEPS[sweep]]
    settings = sorted({setting for _, _, setting in points}, key=lambda setting: setting.labels)  # the slow ones first
    tasks = [Task(seed, chunk, setting, method) for setting, method, chunk in product(settings, METHODS, chunks(mdps))]
    solved: dict[tuple[Setting, str], list[tuple[float, float, float]]] = {}
    for task, found in zip(tasks, side_by_side(solve, tasks, workers), strict=True):
        solved.setdefault((task.setting, task.method), []).extend(found)
    rows = [
        Row(sweep, level, method, number, *found)
        for sweep, level, setting in points
        for method in METHODS
        for number, found in enumerate(solved[setting, method])
    ]
    return rows + [
        Row("objective", method.weight or 0.0, name, number, *found)
        for name, method in METHODS.items()
        for number, found in enumerate(solved[Setting(), name])
    ]


def summary(rows: Sequence[Row]) -> list[Outcome]:
    """Mean return share of each method at each level, and its paired gain over ``naive``, in the order of the rows."""
    shares: dict[tuple[str, float, str], list[float]] = {}
    for row in sorted(rows, key=lambda row: row.mdp):
        shares.setdefault(row[:3], []).append(row.return_share)
    outcomes = []
    for sweep, level, method in dict.fromkeys(row[:3] for row in rows):
        baseline = (sweep, 0.0 if sweep == "objective" else level, "naive")
        own, other = np.array([shares[sweep, level, method]]), np.array([shares[baseline]])
        share, gain = (interval(mean, values, corrected=False) for values in (own, own - other))
        outcomes.append(Outcome(sweep, level, method, share, gain))
    return outcomes


def panel(axes: Sequence[Any], rows: Sequence[Row]) -> None:
    """Draws return shares on four matplotlib axes: misfit, labels, mistakes, and the objectives side by side."""
    outcomes = summary(rows)
    names = {"misfit": "misfit of the reward class", "labels": "labels", "mistakes": "share of flipped labels"}
    for axis, sweep in zip(axes, [*names, "objective"], strict=True):
        for number, method in enumerate(METHODS):
            here = [outcome for outcome in outcomes if (outcome.sweep, outcome.method) == (sweep, method)]
            middle, low, high = np.array([outcome.share for outcome in here]).T
            if sweep == "objective":
                axis.errorbar([number], middle, [middle - low, high - middle], fmt="o", capsize=3, color=f"C{number}")
            else:
                axis.plot(range(len(here)), middle, marker=".", label=method, color=f"C{number}")
                axis.fill_between(range(len(here)), low, high, alpha=0.2, color=f"C{number}", linewidth=0)
        if sweep == "objective":
            axis.set_xticks(range(len(METHODS)), METHODS, rotation=30, ha="right")
        else:
            axis.set_xticks(range(len(here)), ["∞" if isinf(x.level) else f"{x.level:g}" for x in here])
        axis.set(xlabel=names.get(sweep, "upper objective"), ylabel="return share")
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize="small")


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, mdps: int) -> argparse.Namespace:
    """The options of ``parser``, and those of every experiment on these worlds."""
    parser.add_argument("--mdps", type=int, default=mdps, help="random MDPs, the same for every method and level")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    options = parser.parse_args(arguments)
    for name, least in ("mdps", 2), ("seed", 0), ("workers", 1):
        if getattr(options, name) < least:
            parser.exit(2, f"{parser.prog}: --{name} must be at least {least}, not {getattr(options, name)}\n")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="coupling", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the CSV file to write")
    options = parsed(parser, arguments, mdps=48)
    if not options.out.parent.is_dir() or options.out.is_dir():
        parser.exit(2, f"coupling: --out must be a file in a folder that exists, not {options.out}\n")
    rows = experiment(options.mdps, options.seed, options.workers)
    write(rows, options.out)
    print("| sweep | level | method | return share | over naive |\n|---|---|---|---|---|")
    for sweep, level, method, share, gain in summary(rows):
        shown = "{:.3f} [{:.3f}, {:.3f}] | {:+.3f} [{:+.3f}, {:+.3f}]".format(*share, *gain)
        print(f"| {sweep} | {level:g} | {method} | {shown} |")


if __name__ == "__main__":
    main()
