"""The whole algorithm. Two time scales: learners climb their rewards at every step, the reward model descends its
upper objective at every session and refresh.

Methods differ only in (a) the scalar that the reward model descends and (b) the reward that each learner sees.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch

from rlhf_bilevel.data.answers import answered, take
from rlhf_bilevel.envs.interface import FAULT
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback import queries
from rlhf_bilevel.rewards.bradley_terry import accuracy, bootstrap, cross_entropy, logits, smoothed
from rlhf_bilevel.training import monitor
from rlhf_bilevel.training.run import Run, show
from rlhf_bilevel.types import Queries, Row

ENDS = (
    "an episode ended early, and labels do not say what that is worth: a learnt reward can make ending, or not ending, "
    "attractive whatever people prefer. Remedies: termination=absorb or termination=nonnegative (docs/rewards.md)"
)
DRAWS = 10  # of candidates, at most, until there are enough that were not asked before


def train(run: Run) -> Iterator[Row]:
    """Yields after every environment step, with what was measured in it."""
    for row, updates in interact(run):
        if updates:
            for number, told in enumerate(run.improve(updates, run.step)):
                row |= {f"learner_{number}/{key}": value for key, value in told.items()}
        yield row


def interact(run: Run) -> Iterator[tuple[Row, int]]:
    """All but the learners' gradient steps: after every environment step, what was measured, and how many are due."""
    c, told = run.config, run.method.upper is None or not run.config.labels or run.config.termination != "as_is"
    while run.step < c.steps:
        who = turn(run)
        run.episode += 1
        learner, env = run.learners[who], run.envs[who]
        run.store.begin(who)
        obs, _ = env.reset()
        start, done = run.store.size, False
        while not done and run.step < c.steps:
            action, scaled = learner.act(obs, run.step)
            next_obs, truth, terminated, truncated, info = env.step(action)
            if FAULT in info:  # the environment failed: nothing of this step is stored, and the episode is cut
                break
            run.store.add(obs, scaled, next_obs, truth, terminated)
            obs, done = next_obs, terminated or truncated
            run.step, run.info = run.step + 1, info
            if terminated and not told:
                told = True
                warnings.warn(f"step {run.step}: {ENDS}", stacklevel=2)
            row, updates = move_reward(run)
            if run.step > c.learning_starts and run.step % c.update_every == 0:
                updates += c.updates
            if done:
                row |= episode_metrics(run, start)
            yield row, updates


def turn(run: Run) -> int:
    """Learners act an episode at a time, the agent's in all but every ``other_every``-th."""
    agent, (block, place) = run.method.agent(run.options), divmod(run.episode, run.config.other_every)
    others = [number for number in range(len(run.learners)) if number != agent]
    return others[block % len(others)] if others and place == run.config.other_every - 1 else agent


def move_reward(run: Run) -> tuple[Row, int]:
    """The upper level at this step: a session with new labels, a refresh without, or nothing; and updates due to it."""
    c = run.config
    since = run.step - run.on_policy_since
    if since < 0 or c.labels == 0 or run.method.upper is None:
        return {}, 0
    if since % c.session_every == 0 and (count := due(run)):
        if not ask(run, count):
            return {}, 0
        epochs, run.tracked = c.reward_epochs, False
    elif c.refresh_every and since % c.refresh_every == 0 and len(run.prefs):
        epochs, run.tracked = c.refresh_epochs, True
    else:
        return {}, 0
    if c.reward_clip and not run.tracked:
        run.reward.clip(*run.prefs.steps())
    if first := not run.learnt:
        if c.reward_units == "measured":
            run.reward.measure(*run.prefs.steps())
        run.method.prepare(run)
    row = update_reward(run, epochs)
    if fault := run.health.check(run.prefs, session=not run.tracked):
        warnings.warn(f"step {run.step}: {fault}; it is back where it was sound", stacklevel=2)
    run.method.estimate(run)
    show(run)
    row |= run.method.diagnose(run) | monitor.newest_episode(run)
    if not (first and run.learnt):
        return row, 0
    for learner in run.learners if c.reset_critics else ():  # values of the state entropy say nothing of the reward
        learner.reset_critic()
    return row, c.reset_updates


def due(run: Run) -> int:
    """How many labels this session asks for; what earlier ones had no new pair for comes on top."""
    c = run.config
    left = c.labels - len(run.prefs)
    to_come = [c.steps - step for step in range(run.step, c.steps + 1, c.session_every)]  # steps left, at each session
    if c.label_schedule == "constant":
        return min(left, max(c.session_labels, math.ceil((c.labels - len(run.asked)) / len(to_come))))
    return round(left * to_come[0] / sum(to_come)) if len(to_come) > 1 else left


def ask(run: Run, count: int) -> int:
    """One query session; the number of answers."""
    c = run.config
    left = c.labels - len(run.prefs)
    queries = chosen(run, count)
    if queries is None:
        return 0
    with torch.no_grad():
        answers = answered(run.teacher, queries)
        answers = take(answers, slice(left))  # late answers may come on top of those asked for now
        # Before the first session the reward is untrained, and its loss means nothing
        output = logits(run.reward, answers) if run.learnt else torch.zeros_like(answers.label)
        run.prefs.add(answers, cross_entropy(output, answers.label))
    if not len(answers.label):
        warnings.warn(f"step {run.step}: the teacher answered none of {len(queries.first.obs)} queries", stacklevel=2)
    return len(answers.label)


def chosen(run: Run, count: int) -> Queries | None:
    """The pairs of a session: anchored ones come last. None where there is none to ask about."""
    c, found = run.config, list[Queries]()
    anchored = round(c.anchor_share * count) if run.learnt else 0
    known = run.prefs[:] if run.learnt else None
    for number, sample in ((count - anchored, run.sample_pairs), (anchored, run.sample_anchored)):
        if number and (candidates := candidates_for(run, number, sample)):
            with torch.no_grad():
                found.append(queries.choose(c.query, run.reward.members, candidates, known, number))
            run.asked.add(found[-1])
    return queries.joined(found) if found else None


def candidates_for(run: Run, count: int, sample: Callable[[int], Queries]) -> Queries | None:
    """``oversample`` random pairs for each of ``count`` labels, without those that no label would tell anything of.

    Draws more only where fewer than ``count`` are left; with a warning where that stays so. None where none is left.
    """
    c, found = run.config, list[Queries]()
    try:
        for _ in range(DRAWS):
            found.append(sample(count * c.oversample))
            candidates = run.asked.new(queries.joined(found) if len(found) > 1 else found[0])
            found = [candidates]
            if (there := len(candidates.first.obs)) >= count:
                return candidates
    except UserError as too_short:
        warnings.warn(f"no queries at step {run.step}: {too_short}", stacklevel=4)
        return None
    told = f"{there} of {count} queries at step {run.step}" if there else f"no queries at step {run.step}"
    warnings.warn(f"{told}: there are no more pairs of two segments that were not asked before", stacklevel=4)
    return candidates if there else None


def fruitless(run: Run) -> str | None:
    """Why a run that has come to its end has learnt no reward; None where it has, or was never to learn one."""
    c = run.config
    if run.step < c.steps or run.method.upper is None or not c.labels or len(run.prefs):
        return None
    told = f"no label was given in {c.steps} steps, and no reward was learnt: "
    if run.asked:
        return told + f"the teacher gave no answer that can be used to any of {len(run.asked)} queries"
    longest = max(end - start for start, end in run.store.episodes())
    steps = f"{longest} steps" + (f" of {c.action_repeat} each (action_repeat)" if c.action_repeat > 1 else "")
    if longest < c.segment_length:
        return told + f"segment_length={c.segment_length} is longer than every episode (longest: {steps})"
    return told + f"no two different segments of segment_length={c.segment_length} (longest episode: {steps})"


def update_reward(run: Run, epochs: int) -> Row:
    """Adam on the method's upper objective, damped, until the labels are fitted or ``epochs`` have passed."""
    c, upper = run.config, run.method.upper
    assert upper is not None
    losses, right, passed = list[float](), 0.0, 0
    weights = bootstrap(len(run.prefs), c.members, c.seed) if c.member_weights == "bootstrap" else None
    while passed < epochs and right < c.reward_accuracy:
        right, passed = 0.0, passed + 1
        for rows in run.prefs.batches(c.reward_batch, run.rng["reward"]):
            batch = run.prefs[rows]
            output, size = run.reward.compare(batch)  # (M, B)
            run.weights = None if weights is None else weights[:, rows]
            target = batch._replace(label=smoothed(batch.label, c.label_smoothing))
            loss = upper(run, target, run.weigh(output))
            run.reward_optimizer.zero_grad()
            (loss + c.reward_damping * size).backward()
            run.reward_optimizer.step()
            losses.append(loss.item())
            right += accuracy(output, batch.label).mean().item() * len(batch.label) / len(run.prefs)
    run.reward.labels = len(run.prefs)
    return {
        "reward/loss": float(np.mean(losses)),
        "reward/accuracy": right,
        "reward/epochs": passed,
        "reward/labels": len(run.prefs),
        "reward/fresh_loss": run.prefs.fresh_loss[-c.session_labels :].mean().item(),
    }


def episode_metrics(run: Run, start: int) -> Row:
    rows = torch.arange(start, run.store.size)
    row = {"rollout/true_return": run.store.truth[rows].sum().item(), "rollout/length": float(len(rows))}
    if run.learnt:  # a diagnostic only: a rising learned return proves nothing
        row["rollout/learned_return"] = run.store.learned(run.reward)(rows).sum().item()
    return row
