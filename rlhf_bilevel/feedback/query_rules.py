"""Which of the candidate pairs to ask about: those with the highest score, or those far from one another.

With p_m = P(first better) by member m of the ensemble, and H(p) = -p log p - (1 - p) log(1 - p) in nats, scores are

    disagreement        std_m p_m                             [PEBBLE; B-Pref]
    entropy             mean_m H(p_m)                         [B-Pref's code]
    information_gain    H(mean_m p_m) - mean_m H(p_m)         [Biyik et al. 2019, APReL]

The last is the mutual information of the label and the reward, if members are samples of the posterior: it is high
where each member is sure and they do not agree. ``Run.sample_pairs`` decides which episodes candidates come from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_bilevel.envs.interface import value_text
from rlhf_bilevel.envs.user_code import faults_as_user_errors
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.pairs import pair_hashes, take
from rlhf_bilevel.registries import QUERY_RULES
from rlhf_bilevel.rewards.bradley_terry import logits
from rlhf_bilevel.types import Preferences, Queries, RewardFn, Segments

Members = RewardFn
"""The rewards of all ensemble members: takes obs (..., o) and act (..., a), returns (M, ...)."""

Score = Callable[[Members, Queries], Tensor]
"""Takes the members and B candidates, returns a score for each (B,). Pairs with a high score are asked about first."""

Rule = Callable[[Members, Queries, Preferences, int], Queries]
"""Takes the members, the candidates, the labelled pairs and a count, returns at most ``count`` of the candidates."""

Pairs = TypeVar("Pairs", Queries, Preferences)


def uniform(members: Members, candidates: Queries) -> Float[Tensor, " B"]:
    """Zeros (B,): candidates come in random order, so that the first ones are a uniform draw."""
    return torch.zeros(len(candidates.first.obs))


def disagreement(members: Members, candidates: Queries) -> Float[Tensor, " B"]:
    """std_m p_m, (B,)."""
    return logits(members, candidates).sigmoid().std(0, correction=0)


def entropy(members: Members, candidates: Queries) -> Float[Tensor, " B"]:
    """mean_m H(p_m), (B,) in nats."""
    return _entropies(members, candidates)[1]


def entropy_of_mean(members: Members, candidates: Queries) -> Float[Tensor, " B"]:
    """H(mean_m p_m), (B,) in nats."""
    return _entropies(members, candidates)[0]


def information_gain(members: Members, candidates: Queries) -> Float[Tensor, " B"]:
    """H(mean_m p_m) - mean_m H(p_m), (B,) in nats."""
    of_mean, mean = _entropies(members, candidates)
    return of_mean - mean


def _entropies(members: Members, candidates: Queries) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
    """H(mean_m p_m) and mean_m H(p_m), each (B,) in nats."""
    output = logits(members, candidates)  # (M, B)
    answers = torch.stack([output.sigmoid(), (-output).sigmoid()])  # 1 - p would round to 0
    entr = torch.special.entr
    return entr(answers.mean(1)).sum(0), entr(answers).sum(0).mean(0)


def k_center(candidates: Queries, labelled: Queries | Preferences | None, count: int) -> Queries:
    """``count`` candidates far from one another and from labelled pairs [Sener and Savarese 2018; B-Pref].

    Greedy k-center: a pair is the vector of its observations (2 T o,), and each step picks the candidate whose distance
    to the nearest pair picked or labelled is largest. If no pair is labelled, it begins with the first candidate.
    """
    points = _points(candidates)
    centre = points.mean(0)
    points = points - centre  # |p - q|^2 = |p|^2 + |q|^2 - 2 p q, below, loses less precision with small numbers
    squares, nearest = points.square().sum(1), torch.full((len(points),), torch.inf)  # squared distances
    for start in _points(labelled).split(1000) if labelled else ():
        nearest = nearest.minimum(torch.cdist(points, start - centre).square().amin(1))
    picks: list[int] = []
    for _ in range(min(count, len(points))):
        picks.append(pick := int(nearest.argmax()))
        nearest = nearest.minimum(squares + squares[pick] - 2 * (points @ points[pick]))
        nearest[pick] = -torch.inf  # never twice, also if candidates repeat
    return take(candidates, torch.tensor(picks))


def _points(pairs: Queries | Preferences) -> Float[Tensor, "B x"]:
    """Each pair as the vector of its observations: (B, 2 T o)."""
    return torch.cat([segments.obs.flatten(1) for segments in pairs[:2]], dim=1)


def best(candidates: Queries, score: Float[Tensor, " B"], count: int) -> Queries:
    """The ``count`` candidates with the highest scores (B,); of equal scores the earlier ones."""
    return take(candidates, score.argsort(descending=True, stable=True)[:count])


def top(score: Score) -> Rule:
    """The rule that asks about the pairs with the highest score."""
    return lambda members, candidates, labelled, count: best(candidates, score(members, candidates), count)


def spread(score: Score, share: float = 0.5) -> Rule:
    """The rule that picks by k-center among the ``share`` of the candidates with the highest score (B-Pref: half)."""

    def rule(members: Members, candidates: Queries, labelled: Preferences, count: int) -> Queries:
        kept = max(count, int(share * len(candidates.first.obs)))
        return k_center(best(candidates, score(members, candidates), kept), labelled, count)

    return rule


UNIFORM, DISAGREEMENT, ENTROPY, INFORMATION_GAIN = map(top, (uniform, disagreement, entropy, information_gain))
K_CENTER, K_CENTER_DISAGREEMENT = spread(uniform, share=1), spread(disagreement)
K_CENTER_ENTROPY, K_CENTER_INFORMATION_GAIN = spread(entropy), spread(information_gain)


def choose(name: str, members: Members, candidates: Queries, labelled: Preferences | None, count: int) -> Queries:
    """At most ``count`` of the candidates, chosen by the rule ``name`` of ``QUERY_RULES``.

    ``labelled`` are the pairs that the members have learnt from. If it is None there are none yet, an untrained
    reward says nothing about a pair, and the choice is uniform whatever the rule [B-Pref]. UserError if a rule that is
    not ours fails, or returns anything but some of the candidates.
    """
    if labelled is None:
        return best(candidates, uniform(members, candidates), count)
    rule = QUERY_RULES[name]
    if name in QUERY_RULES.ours:
        return rule(members, candidates, labelled, count)
    own, known = _copied(candidates), _copied(labelled)
    with faults_as_user_errors(f"query rule {name}"):
        chosen = rule(members, own, known, count)
    return _among(name, chosen, candidates, count)


def _copied(pairs: Pairs) -> Pairs:
    """A copy, which code of others may change."""
    first, second = (Segments(*(column.clone() for column in segments)) for segments in pairs[:2])
    return pairs._replace(first=first, second=second)


def _among(name: str, chosen: Any, candidates: Queries, count: int) -> Queries:
    """The candidates that a rule of others has chosen. UserError if it has returned something else."""
    with faults_as_user_errors(
        f"query rule {name} must return Queries, some of its candidates, not {value_text(chosen)}"
    ):
        hashes = pair_hashes(chosen)
    rows = {pair: row for row, pair in reversed([*enumerate(pair_hashes(candidates))])}
    if not set(hashes) <= rows.keys():
        raise UserError(f"query rule {name}: it must choose among its candidates, and has returned other pairs")
    if not 0 < len(hashes) <= count or len(set(hashes)) < len(hashes):
        counts = f"{len(hashes)} pairs, {len(set(hashes))} of them different"
        raise UserError(f"query rule {name}: it must choose 1 to {count} different pairs, and has chosen {counts}")
    return take(candidates, torch.tensor([rows[pair] for pair in hashes]))
