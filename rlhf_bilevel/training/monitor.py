"""Whether the policy has gone where no label has been: four numbers about the newest episode.

A learner goes where the learnt reward is high, and it is also high where it is wrong. These numbers show it (x is the
observation and action of a step, each entry in the unit that the reward has for it):

    monitor/q               mean over the episode's steps of Q(s, a), by the agent's critics
    monitor/spread          mean over the steps of the members' standard deviation
    monitor/distance        median over the steps of the distance of x to the nearest labelled step, per root of entries
    monitor/beyond          best learned return per step of a segment of the episode, less that of the labelled segments

Nothing here draws a random number or changes the run.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics

STEPS, LABELLED = 256, 4096  # at most so many steps of the episode, and labelled steps, are compared


@torch.no_grad()
def newest_episode(run: Run) -> Metrics:
    """The metrics of the agent's newest episode that is as long as a segment.

    Empty if there is no such episode or no label yet.
    """
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
    """The highest mean reward per step of any ``length`` consecutive steps, of rewards (B, T)."""
    return reward.unfold(-1, length, 1).mean(-1).max()


def distance(run: Run, steps: tuple[Tensor, Tensor], labelled: tuple[Tensor, Tensor]) -> float:
    """The median over steps, obs (T, o) and act (T, a), of the distance to the nearest labelled step.

    A distance is the root mean square of the differences of the entries of x, in their units.
    """
    unit = run.reward.unit[: steps[0].shape[-1] + steps[1].shape[-1]]
    counts = (steps, STEPS), (labelled, LABELLED)
    here, there = (evenly(torch.cat(part, -1).flatten(0, -2), count) / unit for part, count in counts)
    return (torch.cdist(here, there).amin(1).median() / here.shape[1] ** 0.5).item()


def evenly(rows: Tensor, count: int) -> Tensor:
    """At most ``count`` of the rows (N, ...), evenly spaced."""
    return rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).long()]
