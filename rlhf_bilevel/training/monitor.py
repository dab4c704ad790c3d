"""Whether the reward is followed to where no label has been: what a run's newest episode looks like to its reward.

A learner that climbs a learned reward goes where the reward is high, and the reward is high where it is wrong. Four
numbers tell of it (x is a step's observation and action, each entry in the reward's own unit):

    monitor/q               mean over the episode's steps of Q(s, a), by the agent's critics
    monitor/spread          mean over the steps of the members' standard deviation
    monitor/distance        median over the steps of the distance of x to the nearest labelled step, per root of entries
    monitor/beyond          best learned return per step of a segment of the episode, less that of the labelled segments

Nothing here draws a random number or moves the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics

if TYPE_CHECKING:
    from rlhf_bilevel.training.run import Run

STEPS, LABELLED = 256, 4096  # that are looked at, evenly spaced


@torch.no_grad()
def newest_episode(run: Run) -> Metrics:
    """The metrics of the agent's newest episode that is as long as a segment; none before there is a label or one."""
    agent = run.method.agent(run.options)
    length = run.config.segment_length
    episodes = run.store.episodes(agent, since=run.on_policy_since, least=length)
    if not episodes or not len(run.prefs):
        return {}
    rows = torch.arange(*episodes[-1])
    obs, act, labelled = run.store.obs[rows], run.store.act[rows], run.prefs.segments()
    members = run.reward.members(obs, act)  # (M, T)
    learned = run.reward(obs, act)
    here, there = best(learned[None], length), best(run.reward(labelled.obs, labelled.act), length)
    return {
        "monitor/q": run.learners[agent].value(obs, act).mean().item(),
        "monitor/spread": members.std(0, correction=0).mean().item(),
        "monitor/distance": distance(run, (obs, act), (labelled.obs, labelled.act)),
        "monitor/beyond": (here - there).item(),
    }


def best(reward: Tensor, length: int) -> Tensor:
    """The highest mean of a segment of so many steps, of rewards (B, T)."""
    return reward.unfold(-1, length, 1).mean(-1).max()


def distance(run: Run, steps: tuple[Tensor, Tensor], labelled: tuple[Tensor, Tensor]) -> float:
    """The median distance of obs (T, o), act (T, a) to the nearest labelled step, in root mean squares of entries."""
    unit = run.reward.unit[: steps[0].shape[-1] + steps[1].shape[-1]]
    counts = (steps, STEPS), (labelled, LABELLED)
    here, there = (evenly(torch.cat(part, -1).flatten(0, -2), count) / unit for part, count in counts)
    return (torch.cdist(here, there).amin(1).median() / here.shape[1] ** 0.5).item()


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most so many of them, evenly spaced."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]
