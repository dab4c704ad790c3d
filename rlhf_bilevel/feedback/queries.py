"""Which pairs to ask about: of candidates cut from recent episodes, the best by a score, or far from one another.

With p_m = P(first better) by member m of the ensemble, H the entropy of a yes or no in nats, and means over members:

    disagreement        standard deviation of p_m                                            [PEBBLE, B-Pref]
    entropy             mean H(p_m)                                                          [B-Pref's code]
    information_gain    H(mean p_m) - mean H(p_m)    [Biyik et al. 2019, APReL: members as the posterior's sample]

The last is the mutual information of the label and the reward: what members are sure of and do not agree on. Where
candidates are cut from (``policy_aligned``, [QPA]) is another matter: any rule goes with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf_bilevel.envs.foreign import refusing
from rlhf_bilevel.envs.interface import shown
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import QUERY_RULES
from rlhf_bilevel.rewards.bradley_terry import logits
from rlhf_bilevel.types import Preferences, Queries, RewardFn, Segments

Members = RewardFn
"""A reward with a leading axis of ensemble members: (..., o), (..., a) to (M, ...)."""

Score = Callable[[Members, Queries], Tensor]
"""The higher (B,), the rather is a pair asked."""

Rule = Callable[[Members, Queries, Preferences, int], Queries]
"""So many of the candidates, or all where they are fewer, given the pairs that were labelled before."""

Pairs = TypeVar("Pairs", Queries, Preferences)


def uniform(members: Members, candidates: Queries) -> Tensor:
    """All alike; candidates come in random order, so the first ones are a uniform draw."""
    return torch.zeros(len(candidates.first.obs))


def disagreement(members: Members, candidates: Queries) -> Tensor:
    return logits(members, candidates).sigmoid().std(0, correction=0)


def entropy(members: Members, candidates: Queries) -> Tensor:
    return _entropies(members, candidates)[1]


def entropy_of_mean(members: Members, candidates: Queries) -> Tensor:
    return _entropies(members, candidates)[0]


def information_gain(members: Members, candidates: Queries) -> Tensor:
    of_mean, mean = _entropies(members, candidates)
    return of_mean - mean


def _entropies(members: Members, candidates: Queries) -> tuple[Tensor, Tensor]:
    """H(mean p_m) and mean H(p_m), each (B,) in nats."""
    output = logits(members, candidates)  # (M, B)
    answers = torch.stack([output.sigmoid(), (-output).sigmoid()])  # 1 - p would round to 0 long before p's complement
    entr = torch.special.entr
    return entr(answers.mean(1)).sum(0), entr(answers).sum(0).mean(0)


def k_center(candidates: Queries, asked: Queries | Preferences | None, count: int) -> Queries:
    """Pairs far from one another and from those ``asked`` before: greedy k-center [Sener and Savarese 2018; B-Pref].

    A pair is the vector of its observations. Each pick is the candidate whose nearest chosen or asked pair is furthest,
    Euclidean; the first, where nothing was asked, is the first candidate.
    """
    points = _points(candidates)
    centre = points.mean(0)
    points = points - centre  # small numbers: |p - q|^2 = |p|^2 + |q|^2 - 2 p q then loses least, and reads p once
    squares, nearest = points.square().sum(1), torch.full((len(points),), torch.inf)  # squared distances
    for start in _points(asked).split(1000) if asked else ():
        nearest = nearest.minimum(torch.cdist(points, start - centre).square().amin(1))
    picks: list[int] = []
    for _ in range(min(count, len(points))):
        picks.append(pick := int(nearest.argmax()))
        nearest = nearest.minimum(squares + squares[pick] - 2 * (points @ points[pick]))
        nearest[pick] = -torch.inf  # once is enough, also where candidates repeat
    return _take(candidates, torch.tensor(picks))


def _points(pairs: Queries | Preferences) -> Tensor:
    """(B, 2 T o)."""
    return torch.cat([segments.obs.flatten(1) for segments in pairs[:2]], dim=1)


def best(candidates: Queries, score: Tensor, count: int) -> Queries:
    """The ``count`` candidates with the highest scores, ties in the order given."""
    return _take(candidates, score.argsort(descending=True, stable=True)[:count])


def _take(candidates: Queries, rows: Tensor) -> Queries:
    first, second = (Segments(*(column[rows] for column in segments)) for segments in candidates)
    return Queries(first, second)


def top(score: Score) -> Rule:
    return lambda members, candidates, asked, count: best(candidates, score(members, candidates), count)


def spread(score: Score, share: float = 0.5) -> Rule:
    """k-center among the ``share`` of the candidates that score highest: half of them in B-Pref."""

    def rule(members: Members, candidates: Queries, asked: Preferences, count: int) -> Queries:
        kept = max(count, int(share * len(candidates.first.obs)))
        return k_center(best(candidates, score(members, candidates), kept), asked, count)

    return rule


UNIFORM, DISAGREEMENT, ENTROPY, INFORMATION_GAIN = map(top, (uniform, disagreement, entropy, information_gain))
K_CENTER, K_CENTER_DISAGREEMENT = spread(uniform, share=1), spread(disagreement)
K_CENTER_ENTROPY, K_CENTER_INFORMATION_GAIN = spread(entropy), spread(information_gain)


class Asked:
    """The pairs that a run has asked, answered or not. A segment is known by its observations and actions."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], None] = {}  # in the order in which they were asked

    def __len__(self) -> int:
        return len(self._known)

    def new(self, candidates: Queries) -> Queries:
        """Those that a label can tell something of: of two different segments, not asked before, each once.

        Which segment comes first makes no difference. The candidates themselves where nothing is left out.
        """
        found: dict[tuple[int, int], int] = {}
        for row, pair in enumerate(_names(candidates)):
            if pair[0] != pair[1] and pair not in self._known:
                found.setdefault(pair, row)
        if len(found) == len(candidates.first.obs):
            return candidates
        return _take(candidates, torch.tensor([*found.values()], dtype=torch.long))

    def add(self, pairs: Queries) -> None:
        self._known |= dict.fromkeys(_names(pairs))

    def state(self) -> Tensor:
        """(N, 2) int64."""
        return torch.tensor([*self._known], dtype=torch.long).reshape(-1, 2)

    def load(self, state: Tensor) -> None:
        self._known = {(first, second): None for first, second in state.tolist()}


def _names(pairs: Queries) -> list[tuple[int, int]]:
    """Two numbers for the segments of each pair, the smaller one first."""

    def number(obs: Tensor, act: Tensor) -> int:
        digest = hashlib.blake2b(obs.numpy().tobytes() + act.numpy().tobytes(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

    first, second = ([number(obs, act) for obs, act, _ in zip(*segments, strict=True)] for segments in pairs[:2])
    return [(min(pair), max(pair)) for pair in zip(first, second, strict=True)]


def joined(parts: Sequence[Queries]) -> Queries:
    """One after the other."""
    first, second = (Segments(*map(torch.cat, zip(*(part[side] for part in parts), strict=True))) for side in (0, 1))
    return Queries(first, second)


def choose(name: str, members: Members, candidates: Queries, asked: Preferences | None, count: int) -> Queries:
    """``count`` of the candidates, or all where they are fewer, by the rule of that name in ``QUERY_RULES``.

    ``asked`` are the labels that the members have learnt from. None before there are any: an untrained reward says
    nothing about a pair, and the choice is uniform whatever the rule [B-Pref]. UserError where a rule that is not ours
    fails, or gives anything but some of the candidates.
    """
    if asked is None:
        return best(candidates, uniform(members, candidates), count)
    rule = QUERY_RULES[name]
    if name in QUERY_RULES.ours:
        return rule(members, candidates, asked, count)
    own, known = _copied(candidates), _copied(asked)
    with refusing(f"query rule {name}"):
        chosen = rule(members, own, known, count)
    return _among(name, chosen, candidates, count)


def _copied(pairs: Pairs) -> Pairs:
    """In memory of their own, which others may change."""
    first, second = (Segments(*(column.clone() for column in segments)) for segments in pairs[:2])
    return pairs._replace(first=first, second=second)


def _among(name: str, chosen: Any, candidates: Queries, count: int) -> Queries:
    """The candidates that a rule of others has chosen; UserError where it has chosen something else."""
    with refusing(f"query rule {name} must return Queries, some of its candidates, not {shown(chosen)}"):
        names = _names(chosen)
    rows = {pair: row for row, pair in reversed([*enumerate(_names(candidates))])}
    if not set(names) <= rows.keys():
        raise UserError(f"query rule {name}: it must choose among its candidates, and has returned other pairs")
    if not 0 < len(names) <= count or len(set(names)) < len(names):
        told = f"{len(names)} pairs, {len(set(names))} of them different"
        raise UserError(f"query rule {name}: it must choose 1 to {count} different pairs, and has chosen {told}")
    return _take(candidates, torch.tensor([rows[pair] for pair in names]))
