"""Whether the labels and segments of a run fit into its steps."""

from __future__ import annotations

import math

from rlhf_bilevel.config.schema import Config
from rlhf_bilevel.errors import UserError


def check_budget(config: Config) -> Config:
    """Returns ``config``. UserError if its query sessions cannot ask for all ``labels``.

    This is not one of ``Config``'s own checks, so that runs made before this check existed can still be read.
    """
    c, labels = config, config.training_labels
    most_labels = c.sessions * c.queries_per_session
    if c.sessions and c.initial_labels:
        most_labels += c.initial_labels - c.queries_per_session
    if labels <= most_labels or (c.label_schedule == "decreasing" and c.sessions):
        return c
    problem = f"labels={labels}: only {most_labels} can be asked in {c.total_timesteps} steps"
    if not c.sessions:
        raise UserError(f"{problem}, as no session comes: num_interact={c.total_timesteps} or less")
    start, needed = c.learning_starts + c.pretrain_steps, math.ceil(labels / c.queries_per_session)
    every = (c.total_timesteps - start) // (needed - (start > 0))
    suggestion = f"queries_per_session={math.ceil(labels / c.sessions)}"
    if every:
        suggestion += f" or num_interact={every}"
    raise UserError(
        f"{problem} ({c.sessions} sessions of queries_per_session={c.queries_per_session}): {suggestion} would do"
    )


def fit_segment_length(config: Config, limit: int | None, chosen: bool) -> tuple[Config, str]:
    """The settings with segments that fit into an episode, and a sentence about what was changed (empty: nothing).

    ``limit`` is the most simulator steps of an episode, None if that is not known. If ``segment_length`` is too long,
    it is shortened; UserError if it was ``chosen`` by the user.
    """
    last = config.first_session + (config.sessions - 1) * config.num_interact  # step of the last session
    steps = math.inf if limit is None else math.ceil(limit / config.action_repeat)
    if config.segment_length <= steps and config.segment_length < last:  # a pair has two segments
        return config, ""
    longest = int(steps) if steps < last else max(1, last // 2)
    reason = f"the last labels are asked at step {last} of {config.total_timesteps}"
    if config.segment_length > steps:
        reason = f"an episode has at most {steps} steps"
        if config.action_repeat > 1:
            reason += f" (the environment's {limit}, with action_repeat={config.action_repeat})"
    problem = f"segment_length={config.segment_length} is too long: {reason}"
    if chosen:
        raise UserError(f"{problem}; segment_length={longest} would do")
    return config.model_copy(update={"segment_length": longest}), f"{problem}; it is {longest} in this run"
