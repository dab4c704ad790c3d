"""The algorithm, on two time scales.

    at every step        learner k:     max over pi_k of  E_{pi_k}[ sum_t gamma^t r_k(s_t, a_t) ]
    now and then         reward model:  min over phi of   Method.reward_loss, on the labelled pairs

The reward model moves in sessions, which first ask the teacher for new labels, and in refreshes, which do not. Methods
differ in two things only: the loss that phi descends, and the rewards r_k that the learners are given.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel.envs.interface import FAULT
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.rewards.bradley_terry import accuracy, bootstrap, smoothed
from rlhf_bilevel.training import monitor
from rlhf_bilevel.training.query_session import labels_due, query_session
from rlhf_bilevel.training.run import Run, set_learner_rewards
from rlhf_bilevel.types import Metrics, Preferences

EARLY_END = (
    "an episode ended early, and labels do not say what that is worth: a learnt reward can make ending, or not ending, "
    "attractive whatever people prefer. Remedies: termination=absorb or termination=nonnegative (docs/rewards.md)"
)
FEW_RIGHT, ENOUGH_LABELS = 0.75, 100
"""A reward that is no network is doubted if it orders a smaller share of so many labels rightly."""
MANY_UNITS = 10.0
"""A reward is doubted if an input of it spreads over more of its units."""


def train(run: Run) -> Iterator[Metrics]:
    """Trains ``run`` to its last step. Yields the metrics of every environment step."""
    for metrics, updates in interact(run):
        if updates:
            for number, learner_metrics in enumerate(run.improve(updates, run.step)):
                metrics |= {f"learner_{number}/{key}": value for key, value in learner_metrics.items()}
        yield metrics


def interact(run: Run) -> Iterator[tuple[Metrics, int]]:
    """``train`` without the learners' gradient steps.

    Yields after every environment step its metrics, and how many gradient steps each learner has to take now.
    """
    c, warned, doubted = run.config, not early_ends_matter(run), False
    while run.step < c.total_timesteps:
        number = acting_learner(run)
        learner, env = run.learners[number], run.envs[number]
        run.episode += 1
        run.store.begin(number)
        obs, _ = env.reset()
        start, done = run.store.size, False
        while not done and run.step < c.total_timesteps:
            action, scaled = learner.act(obs, run.step)
            next_obs, env_reward, terminated, truncated, info = env.step(action)
            if FAULT in info:  # the environment failed: this step is not stored, and the episode ends before it
                break
            run.store.add(obs, scaled, next_obs, env_reward, terminated)
            obs, done = next_obs, terminated or truncated
            run.step, run.info = run.step + 1, info
            if terminated and not warned:
                warned = True
                warnings.warn(f"step {run.step}: {EARLY_END}", stacklevel=2)
            metrics, updates = update_upper_level(run)
            if not doubted and (doubt := doubt_about(run, metrics)):
                doubted = True
                warnings.warn(f"step {run.step}: the {c.reward_form} reward {doubt} (docs/rewards.md)", stacklevel=2)
            if run.step > c.learning_starts and run.step % c.train_freq == 0:
                updates += c.gradient_steps
            if done:
                metrics |= episode_metrics(run, start)
            yield metrics, updates


def acting_learner(run: Run) -> int:
    """The number of the learner that acts in the next episode: the agent's, in all but every ``other_every``-th."""
    agent, (block, place) = run.method.agent(run.options), divmod(run.episode, run.config.other_every)
    others = [number for number in range(len(run.learners)) if number != agent]
    return others[block % len(others)] if others and place == run.config.other_every - 1 else agent


def update_upper_level(run: Run) -> tuple[Metrics, int]:
    """The upper level's move at this step: a session, a refresh or nothing.

    Returns its metrics, and how many extra gradient steps each learner has to take on the new reward.
    """
    c, phase = run.config, upper_level_phase(run)
    if phase is None:
        return {}, 0
    asked = Metrics()
    if phase == "session":
        answers, asked = query_session(run, labels_due(run))
        if not answers:
            return asked, 0
    run.in_refresh, first = phase == "refresh", not run.learnt
    prepare_reward(run, first)
    metrics = asked | update_reward(run, c.refresh_epochs if run.in_refresh else c.reward_epochs)
    if fault := run.health.check(run.prefs, session=not run.in_refresh):
        warnings.warn(f"step {run.step}: {fault}; it is back where it was sound", stacklevel=2)
    run.method.update_estimates(run)
    set_learner_rewards(run)
    metrics |= run.method.diagnose(run) | monitor.newest_episode(run)
    return metrics, reset_critics(run) if first and run.learnt else 0


def upper_level_phase(run: Run) -> str | None:
    """``"session"`` if labels are due at this step, ``"refresh"`` if the reward is fitted to the old ones, or None."""
    c, since = run.config, run.step - run.on_policy_since
    if since < 0 or c.labels == 0 or run.method.reward_loss is None:
        return None
    if since % c.num_interact == 0 and labels_due(run):
        return "session"
    return "refresh" if c.refresh_every and since % c.refresh_every == 0 and len(run.prefs) else None


def prepare_reward(run: Run, first: bool) -> None:
    """Sets the range and the units of the reward's inputs; before the ``first`` fit also what the method asks for."""
    if run.config.reward_clip and not run.in_refresh:
        run.reward.clip(*run.prefs.steps())
    if first:
        if run.config.reward_units == "measured":
            run.reward.measure(*run.prefs.steps())
        run.method.prepare(run)


def update_reward(run: Run, epochs: int) -> Metrics:
    """Adam on ``reward_objective`` over all labels, until ``reward_accuracy`` is reached or ``epochs`` have passed."""
    c, losses, fitted, epoch = run.config, list[float](), 0.0, 0
    weights = bootstrap(len(run.prefs), c.ensemble_size, c.seed) if c.member_weights == "bootstrap" else None
    while epoch < epochs and fitted < c.reward_accuracy:
        fitted, epoch = 0.0, epoch + 1
        for rows in run.prefs.batches(c.reward_batch, run.rng["reward"]):
            run.batch_rows = rows
            run.label_weights = None if weights is None else weights[:, rows]
            objective, info = reward_objective(run, run.prefs[rows])
            run.reward_optimizer.zero_grad()
            objective.backward()
            run.reward_optimizer.step()
            losses.append(info["loss"])
            fitted += info["accuracy"] * len(rows) / len(run.prefs)
    run.reward.labels = len(run.prefs)
    return {
        "reward/loss": float(np.mean(losses)),
        "reward/accuracy": fitted,
        "reward/epochs": epoch,
        "reward/labels": len(run.prefs),
        "reward/fresh_loss": run.prefs.fresh_loss[-c.queries_per_session :].mean().item(),
    }


def reward_objective(run: Run, batch: Preferences) -> tuple[Tensor, Metrics]:
    """What phi descends on a batch of labelled pairs: the method's loss, damping times the mean square of f, the lasso.

    Returns this scalar, and the batch's ``loss`` (nats) and ``accuracy`` (share, mean over members). UserError if the
    method's loss is no scalar with a gradient, or is not finite where the logits are.
    """
    assert run.method.reward_loss is not None
    logits, mean_square = run.reward.compare(batch)  # (M, B)
    target = hidden(batch)._replace(label=smoothed(batch.label, run.config.label_smoothing))
    loss = run.method.reward_loss(run, target, run.weigh(logits))
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        shape = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        detached = " that does not depend on the logits" if isinstance(loss, Tensor) and loss.numel() == 1 else ""
        raise UserError(
            f"the loss of method {run.method.name} is {shape}{detached}: "
            "it must be one number, a tensor with a gradient by the logits, such as cross_entropy(...).mean()"
        )
    if not loss.isfinite() and logits.isfinite().all():
        value = "NaN" if loss.isnan() else "infinite"
        raise UserError(
            f"the loss of method {run.method.name} is {value}, and the logits are not: "
            "does it read env_reward, which is NaN for a loss, or divide by zero?"
        )
    info = {"loss": loss.item(), "accuracy": accuracy(logits, batch.label).mean().item()}
    if run.config.reward_lasso:
        loss = loss + run.config.reward_lasso * run.reward.lasso()
    return loss + run.config.reward_damping * mean_square, info


def hidden(batch: Preferences) -> Preferences:
    """The same pairs, with NaN for the environment's reward: a loss that computes with it is NaN."""
    unknown = torch.full_like(batch.first.env_reward, torch.nan)
    return batch._replace(
        first=batch.first._replace(env_reward=unknown), second=batch.second._replace(env_reward=unknown)
    )


def reset_critics(run: Run) -> int:
    """After the first fit: critics forget the values of state entropy. Returns the gradient steps that follow."""
    for learner in run.learners if run.config.reset_critics else ():
        learner.reset_critic()
    return run.config.reset_updates


def doubt_about(run: Run, metrics: Metrics) -> str | None:
    """What is doubtful of the reward after a session: inputs that have outgrown their units; few of many labels learnt.

    Only a reward that is no network is doubted for its labels.
    """
    c, reward, labels = run.config, run.reward, len(run.prefs)
    if run.in_refresh or "reward/accuracy" not in metrics:
        return None
    with torch.no_grad():
        spread = (reward.clipped_features(*run.prefs.steps()).std(0) / reward.unit).max().item()
        varies = (reward(*run.prefs.steps()).std() / reward.bound).item()
    if c.reward_units == "measured" and spread > MANY_UNITS:
        return (
            f"has an input that varies {spread:.0f} times as much as when its unit was measured, at the first labels, "
            "and may rest on it alone: initial_comparison_frac or pretrain_steps shows more before"
        )
    if reward.linear and labels >= ENOUGH_LABELS and metrics["reward/accuracy"] < FEW_RIGHT:
        return (
            f"orders only {metrics['reward/accuracy']:.0%} of {labels} labels rightly: the teacher errs, or what it "
            "likes depends on two entries of the observation together, which reward_form=network can say"
        )
    decided = bool((run.prefs[:].label != 0.5).any())  # of ties alone, a reward that does not vary is right
    if reward.linear and c.reward_lasso and varies < 2 * c.reward_lr and labels >= c.training_labels and decided:
        # This is what Adam's steps leave of weights that the lasso keeps at 0
        return f"hardly varies over its {labels} labels: reward_lasso={c.reward_lasso:g} is too strong for them"
    return None


def early_ends_matter(run: Run) -> bool:
    """Whether an episode that ends early may mislead the learnt reward: see ``EARLY_END``."""
    return run.method.reward_loss is not None and bool(run.config.labels) and run.config.termination == "as_is"


def episode_metrics(run: Run, start: int) -> Metrics:
    """Return and length of the episode that began at row ``start`` and has just ended."""
    rows = torch.arange(start, run.store.size)
    metrics = {"rollout/true_return": run.store.env_reward[rows].sum().item(), "rollout/length": float(len(rows))}
    if run.learnt:  # a diagnostic only: a rising learned return proves nothing
        metrics["rollout/learned_return"] = run.store.learned(run.reward)(rows).sum().item()
    return metrics
