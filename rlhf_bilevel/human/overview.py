"""What the owner of a run sees: how fast people label, what training does with it, and when the next pairs come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from itertools import pairwise

from pydantic import BaseModel

from rlhf_bilevel.human.records import Chosen, Labeller, Pending, Status
from rlhf_bilevel.human.tables import SKIP

BREAK = 300.0  # seconds without an answer, after which a person is not labelling any more
EPISODES = 10  # whose returns are averaged
SHORTEST = 180.0  # seconds of labelling, below which nothing is said of how fast it is


class Speed(BaseModel):
    """How fast one person labels. Skips are no answers."""

    name: str
    answers: int
    minutes: float  # spent on pairs, skipped ones included
    last_hour: int  # answers in the last hour
    per_hour: float | None  # answers an hour while they label, without breaks; None before SHORTEST of it


def labelling_seconds(choices: Sequence[Chosen]) -> float:
    """How long people looked at the pairs of these choices, in person-seconds. A look counts up to ``BREAK``."""
    looks = (c.answered_at - c.shown_at for c in choices if c.shown_at is not None)
    return sum(min(max(look, 0.0), BREAK) for look in looks)


class Returns(BaseModel):
    """The mean returns of the last episodes of training."""

    episodes: int
    true: float  # by the reward of the environment
    learned: float | None  # by the learned reward; None before there is one


def speeds(labellers: Sequence[Labeller], choices: Sequence[Chosen], now: float) -> list[Speed]:
    """How fast each labeller is, at the time ``now`` in seconds since 1970."""
    by_person = []
    for labeller in labellers:
        own = [c for c in choices if c.labeller.id == labeller.id]
        times = sorted(c.answered_at for c in own if c.choice != SKIP)
        gaps = [gap for gap in (after - before for before, after in pairwise(times)) if gap < BREAK]
        by_person.append(
            Speed(
                name=labeller.name,
                answers=len(times),
                minutes=labelling_seconds(own) / 60,
                last_hour=sum(time > now - 3600 for time in times),
                per_hour=3600 * len(gaps) / sum(gaps) if sum(gaps) >= SHORTEST else None,
            )
        )
    return by_person


def plain(value: float) -> str:
    """Three digits of a number, without an exponent: 1,700 and 0.000123."""
    return f"{Decimal(f'{value:.3g}'):,f}"


def recent_returns(progress: Sequence[Mapping[str, str]]) -> Returns | None:
    """The mean returns in the last rows of a run's progress.csv; None before the first episode ends.

    ValueError if a return in it is not a number.
    """
    episodes = [row for row in progress if row.get("rollout/true_return")][-EPISODES:]
    if not episodes:
        return None
    learned = [float(row["rollout/learned_return"]) for row in episodes if row.get("rollout/learned_return")]
    return Returns(
        episodes=len(episodes),
        true=sum(float(row["rollout/true_return"]) for row in episodes) / len(episodes),
        learned=sum(learned) / len(learned) if learned else None,
    )


def seconds_to_next_pairs(state: str, status: Status | None, now: float) -> float | None:
    """Seconds until training asks again, at its present speed; None if that is not known. See ``when_next_pairs``."""
    if status is None or status.next_session is None or state != "on":
        return None
    return max(0.0, status.next_session - max(0.0, now - status.updated_at))


def when_next_pairs(state: str, status: Status | None, pending: Pending, now: float) -> str:
    """One sentence that says when people can label the next pairs.

    ``state`` is the state of training, as the label server names it.
    """
    if pending.missing:
        return f"{pending.missing} {'pair waits' if pending.missing == 1 else 'pairs wait'} for an answer now."
    if status and status.policies:
        if state == "ended":
            return "No more pairs come: the choice is made."
        if state == "away":
            return "The next pair comes once the same rlhf-bilevel select command runs again."
        return "The next pair comes in some seconds."
    if state == "ended":
        return "No more pairs come: training has ended."
    if status and status.labels >= status.wanted:
        return "No more pairs come: training has all its labels."
    if status is None:
        return "The first pairs come some time after training has begun."
    if state == "away":
        return "It is not known when the next pairs come: training is not running."
    seconds = seconds_to_next_pairs(state, status, now)
    if seconds is None:
        return "It is not known yet when the next pairs come."
    if seconds < 60:
        return "The next pairs come in less than a minute."
    minutes = round(seconds / 60)
    time = f"{minutes} minute{'s' * (minutes > 1)}" if minutes < 90 else f"{minutes / 60:.0f} hours"
    return f"The next pairs come in about {time}, if training goes on as fast as now."
