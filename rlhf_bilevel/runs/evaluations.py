"""The evaluations of a run: in its own process, or in another one while the run goes on.

Both meet the same episodes with the same policies, so that they find the same, bit for bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from rlhf_bilevel.envs.subprocess import registered
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.rollout import Evaluation, evaluate
from rlhf_bilevel.learners.batched_sac import stackable
from rlhf_bilevel.runs.logger import Log
from rlhf_bilevel.training.query_session import labelling_minutes
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Learner, Metrics
from rlhf_bilevel.utils.child import Child, ProcessEndedError

NICE = 5  # how much the process of evaluations yields to the learners, which the run waits for


class Moment(NamedTuple):
    """When an evaluation was due."""

    step: int
    labels: int
    minutes: Metrics  # labelling minutes, if they are known


class Evaluations:
    """Evaluates the learners of ``run`` on whole episodes of the environment that ``make_env`` makes, and logs them.

    ``agent`` is the number of the learner whose policy a user gets. ``apart`` is what the environment is called, if
    evaluations go into a process of their own, which takes ``stackable`` learners; empty: they do not. UserError for
    what the environment does wrong.
    """

    def __init__(self, run: Run, make_env: Callable[[], Any], agent: int, log: Log, apart: str = "") -> None:
        self._run, self._agent, self._log = run, agent, log
        self._due: Moment | None = None
        self._child: Child | None = None
        if apart:
            policies = [learner.model.policy for learner in run.learners]
            made_as = [(type(policy), policy._get_constructor_parameters()) for policy in policies]
            make = partial(_Evaluator, registered(make_env, apart), made_as, run.config.n_eval_episodes)
            self._child = Child(make, what="the evaluation", option="--threads", parent=True)
        else:
            self._env = make_env()

    @property
    def pending(self) -> bool:
        """Whether an evaluation is going on in the other process."""
        return self._due is not None

    def begin(self) -> Metrics | None:
        """Evaluates the learners as they are now. The metrics, or None if ``end`` will give them."""
        run = self._run
        due = Moment(run.step, len(run.prefs), labelling_minutes(run))
        if self._child is None:
            return self._told(due, [self._evaluate_here(learner) for learner in run.learners])
        self._child.send(_Evaluator.evaluate, [_weights(learner.model.policy) for learner in run.learners])
        self._due = due
        return None

    def end(self, wait: bool = True) -> Metrics | None:
        """The metrics of the evaluation that is going on; None if there is none, or unless ``wait`` if it is not over.

        UserError if its process has ended.
        """
        if self._due is None or self._child is None or not (wait or self._child.ready):
            return None
        due, self._due = self._due, None
        try:
            return self._told(due, self._child.receive())
        except ProcessEndedError as error:
            raise UserError(f"step {due.step}: {error}: with --threads 1 the run evaluates by itself") from None

    def close(self) -> None:
        """Ends the process, if there is one."""
        if self._child:
            self._child.close()

    def _evaluate_here(self, learner: Learner) -> Evaluation:
        self._env.episode = 0  # the same episodes each time, so that only the policy makes a difference
        with _one_thread():
            return evaluate(greedy(learner.model), self._env, self._run.config.n_eval_episodes)

    def _told(self, due: Moment, results: Sequence[Evaluation]) -> Metrics:
        """Logs each episode. Returns the mean metrics.

        ``eval/return_per_minute`` is the agent's return divided by the labelling minutes so far.
        """
        row, minutes = dict(due.minutes), due.minutes.get("teacher/minutes")
        for number, result in enumerate(results):
            self._log.evaluation(result, due.step, due.labels, number, number == self._agent, minutes)
            prefix = "eval" if number == self._agent else "eval_other"
            row[f"{prefix}/true_return"] = float(result.returns.mean())
            if result.successes is not None:
                row[f"{prefix}/success"] = float(result.successes.mean())
        if minutes:
            row["eval/return_per_minute"] = row["eval/true_return"] / minutes
        return row


def greedy(model: Any) -> Callable[[np.ndarray], np.ndarray]:
    """The actions (a,) of an SB3 model at observations (o,), without exploration."""
    if stackable(model) and model.device.type == "cpu":
        return mean_policy(model.policy)
    return lambda obs: model.predict(obs, deterministic=True)[0]


def mean_policy(policy: Any) -> Callable[[np.ndarray], np.ndarray]:
    """As ``predict`` of a ``stackable`` SAC's policy without exploration, bit for bit, in a seventh of its time.

    It has the weights of now: the networks must not change while it is used.
    """
    actor = policy.actor
    layers = [layer for layer in [*actor.latent_pi, actor.mu] if isinstance(layer, nn.Linear)]
    *hidden, last = [(layer.bias.detach(), layer.weight.detach().T) for layer in layers]

    def act(obs: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            values = torch.as_tensor(obs[None], dtype=torch.float32)
            for bias, weight in hidden:
                values = torch.addmm(bias, values, weight).relu_()
            mean = torch.addmm(last[0], values, last[1])
            return policy.unscale_action(mean.tanh_().numpy())[0]

    return act


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, torch has one thread: an operation on one observation takes less time than to wake another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Evaluator:
    """The environment and the policies of the learners, in the process of evaluations."""

    def __init__(
        self, make_env: Callable[[], Any], policies: Sequence[tuple[type[Any], dict[str, Any]]], episodes: int
    ) -> None:
        if hasattr(os, "nice"):
            os.nice(NICE)
        torch.set_num_threads(1)
        self._env, self._episodes = make_env(), episodes
        self._policies = [kind(**arguments) for kind, arguments in policies]

    def evaluate(self, weights: Sequence[dict[str, np.ndarray]]) -> list[Evaluation]:
        """The episodes of all policies with these weights."""
        results = []
        for policy, values in zip(self._policies, weights, strict=True):
            policy.load_state_dict({name: torch.from_numpy(value) for name, value in values.items()}, strict=False)
            self._env.episode = 0
            results.append(evaluate(mean_policy(policy), self._env, self._episodes))
        return results


def _weights(policy: nn.Module) -> dict[str, np.ndarray]:
    """The weights of an actor-critic's actor."""
    weights = policy.state_dict().items()
    return {name: value.detach().numpy().copy() for name, value in weights if name.startswith("actor.")}
