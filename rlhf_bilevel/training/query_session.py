"""A query session: how many labels are due, which pairs are asked about, and what comes of the answers.

It logs

    query/difference        median over the asked pairs of how different their segments look (``pairs.differences``)
    teacher/minutes         labelling minutes of all answers so far, if the teacher tells (``Teacher``)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf_bilevel.data.answers import ask_teacher, seconds_of, select
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback import query_rules
from rlhf_bilevel.feedback.pairs import differences, joined, take
from rlhf_bilevel.rewards.bradley_terry import cross_entropy, logits
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Metrics, Queries

DRAWS = 10  # at most so many times candidates are drawn for one session


def labels_due(run: Run, step: int | None = None) -> int:
    """How many labels to ask for in a session at this step, or at a later ``step`` if there is none before it.

    Labels that earlier sessions did not get, because there was no new pair to ask about, are asked for in addition.
    """
    c, at = run.config, run.step if step is None else step
    left = c.training_labels - len(run.prefs)
    if c.initial_labels and not run.learnt:
        return min(left, c.initial_labels)
    # How many steps are left at this session and at each later one
    steps_left = [c.total_timesteps - step for step in range(at, c.total_timesteps + 1, c.num_interact)]
    if c.label_schedule == "constant":
        return min(left, max(c.queries_per_session, math.ceil((c.training_labels - len(run.asked)) / len(steps_left))))
    return round(left * steps_left[0] / sum(steps_left)) if len(steps_left) > 1 else left


def steps_to_session(run: Run) -> int:
    """Environment steps until the next moment of a session, at which labels may be due: at least 1."""
    since = run.step - run.on_policy_since
    return -since if since < 0 else run.config.num_interact - since % run.config.num_interact


def query_session(run: Run, count: int) -> tuple[int, Metrics]:
    """Asks the teacher about ``count`` pairs and adds the answers to ``run.prefs``.

    Returns how many answers came, and the session's metrics.
    """
    pairs = select_queries(run, count)
    if pairs is None:
        return 0, {}
    with torch.no_grad():
        answers = ask_teacher(run.teacher, pairs)
        # A teacher may also answer older queries now, so that more answers come than were asked for
        answers = select(answers, slice(run.config.training_labels - len(run.prefs)))
        # Before the first session the reward is untrained, and its loss means nothing
        output = logits(run.reward, answers) if run.learnt else torch.zeros_like(answers.label)
        run.prefs.add(answers, cross_entropy(output, answers.label))
    seconds, before = seconds_of(run.teacher), run.labelling_seconds
    run.labelling_seconds = None if seconds is None or before is None else before + seconds
    if not len(answers.label):
        warnings.warn(f"step {run.step}: the teacher answered none of {len(pairs.first.obs)} queries", stacklevel=2)
    metrics = {"query/difference": differences(pairs, observation_unit(run)).median().item()}
    return len(answers.label), metrics | labelling_minutes(run)


def labelling_minutes(run: Run) -> Metrics:
    """``teacher/minutes``; empty if they are not known."""
    return {} if run.labelling_seconds is None else {"teacher/minutes": run.labelling_seconds / 60}


def observation_unit(run: Run) -> Tensor:
    """The standard deviation (o,) of each entry of the observations of all steps so far; 1 if it does not vary.

    The reward's own unit is not known in the first session.
    """
    spread = run.store.obs[: run.store.size].std(0)
    return torch.where(spread > 1e-6, spread, 1.0)


def select_queries(run: Run, count: int) -> Queries | None:
    """The pairs to ask about, at most ``count``: chosen by the rule ``query``. None if there is no pair to ask about.

    A share ``anchor_share`` of them, the last ones, are compared with an anchor (see ``Run.sample_anchored``).
    """
    c, selected = run.config, list[Queries]()
    anchored = round(c.anchor_share * count) if run.learnt else 0
    labelled = run.prefs[:] if run.learnt else None
    for number, sample in ((count - anchored, run.sample_pairs), (anchored, run.sample_anchored)):
        if number and (candidates := sample_candidates(run, number, sample)):
            if c.least_difference:
                candidates = leave_out_alike(run, candidates, number)
            with torch.no_grad():
                selected.append(query_rules.choose(c.query, run.reward.members, candidates, labelled, number))
            run.asked.add(selected[-1])
    return joined(selected) if selected else None


def sample_candidates(run: Run, count: int, sample: Callable[[int], Queries]) -> Queries | None:
    """``large_batch`` random pairs for each of ``count`` labels, without pairs whose label would tell nothing new.

    If fewer than ``count`` are left, more are drawn, at most ``DRAWS`` times; if that does not help, a warning says so.
    None if no pair is left.
    """
    candidates: Queries | None = None
    try:
        for _ in range(DRAWS):
            drawn = sample(count * run.config.large_batch)
            candidates = run.asked.new(drawn if candidates is None else joined([candidates, drawn]))
            if (available := len(candidates.first.obs)) >= count:
                return candidates
    except UserError as too_short:
        warnings.warn(f"no queries at step {run.step}: {too_short}", stacklevel=4)
        return None
    shortage = f"{available} of {count} queries at step {run.step}" if available else f"no queries at step {run.step}"
    warnings.warn(f"{shortage}: there are no more pairs of two segments that were not asked before", stacklevel=4)
    return candidates if available else None


def leave_out_alike(run: Run, candidates: Queries, count: int) -> Queries:
    """The candidates that differ by at least ``least_difference``; if they are fewer than ``count``, the ``count`` that
    differ most, with a warning.
    """
    least = run.config.least_difference
    difference = differences(candidates, observation_unit(run))
    kept = (difference >= least).nonzero().flatten()
    if len(kept) < count <= len(difference):
        told = f"{len(kept)} of {len(difference)} candidates have least_difference={least:g}, and {count} are asked"
        warnings.warn(f"step {run.step}: {told}: those that differ most", stacklevel=5)
    if len(kept) < count:
        kept = difference.argsort(descending=True, stable=True)[:count].sort().values
    return take(candidates, kept)


def why_no_label(run: Run) -> str | None:
    """Why a run that has ended got no label, in one sentence. None if it got one, asks for none or has not ended."""
    c = run.config
    if run.step < c.total_timesteps or run.method.reward_loss is None or not c.labels or len(run.prefs):
        return None
    outcome = f"no label was given in {c.total_timesteps} steps, and no reward was learnt: "
    if run.asked:
        return outcome + f"the teacher gave no answer that can be used to any of {len(run.asked)} queries"
    longest = max(end - start for start, end in run.store.episodes())
    steps = f"{longest} steps" + (f" of {c.action_repeat} each (action_repeat)" if c.action_repeat > 1 else "")
    if longest < c.segment_length:
        return outcome + f"segment_length={c.segment_length} is longer than every episode (longest: {steps})"
    return outcome + f"no two different segments of segment_length={c.segment_length} (longest episode: {steps})"
