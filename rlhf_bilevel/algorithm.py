"""The whole algorithm. Two time scales: learners climb their rewards at every step, the reward model descends its
upper objective at every session and refresh.

Methods differ only in (a) the scalar that the reward model descends and (b) the reward that each learner sees.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel import health, monitor, query
from rlhf_bilevel.config import Config, Options, complete
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.explore import entropy_signal
from rlhf_bilevel.interface import FAULT
from rlhf_bilevel.preference import (
    PreferenceStore,
    accuracy,
    bootstrap,
    cross_entropy,
    logits,
    smoothed,
    take,
    weighed,
)
from rlhf_bilevel.replay import Store
from rlhf_bilevel.reward import RewardEnsemble
from rlhf_bilevel.teacher import answered
from rlhf_bilevel.tree import Tree
from rlhf_bilevel.types import Improve, Learner, Preferences, Queries, Row, Segments, Signal, Teacher

ENDS = (
    "an episode ended early, and labels do not say what that is worth: a learnt reward can make ending, or not ending, "
    "attractive whatever people prefer. Remedies: termination=absorb or termination=nonnegative (docs/rewards.md)"
)
DRAWS = 10  # of candidates, at most, until there are enough that were not asked before


class MethodState(Protocol):
    """What a method keeps from one reward step to the next: checkpoints hold it, ``Run.state`` is where it is."""

    def state_dict(self) -> Tree: ...

    def load_state_dict(self, state: Tree, /) -> None:
        """Go on from what ``state_dict`` of the same method gave."""


class Memory(dict[str, float]):
    """Numbers by name: all that most methods keep, if anything."""

    def state_dict(self) -> Tree:
        return {"memory": dict(self)}

    def load_state_dict(self, state: Tree) -> None:
        self.clear()
        self.update(state["memory"])


@dataclass(frozen=True)
class Method:
    name: str
    learners: int
    sees: Callable[[Run], Sequence[Signal]]
    """What each learner is rewarded with; asked at the start and after each move of the reward model. Moves nothing."""
    upper: Callable[[Run, Preferences, Tensor], Tensor] | None = None
    """The scalar that the reward model descends, from labelled pairs and the members' logits on them (M, B).
    None: no reward is learnt and no label is asked."""
    agent: Callable[[Any], int] = lambda options: 0
    """The learner whose policy a user gets, by its options."""
    estimate: Callable[[Run], None] = lambda run: None
    """What is estimated anew after each move of the reward model, before learners see it."""
    diagnose: Callable[[Run], Row] = lambda run: {}
    """Metrics at each move of the reward model."""
    prepare: Callable[[Run], None] = lambda run: None
    """What happens to the reward model before its first label."""
    state: Callable[[Run], MethodState] = lambda run: Memory()
    """What it keeps, at the start of a run. Initial weights come from ``run.generator``."""
    settings: Mapping[str, Any] = field(default_factory=dict)  # where the published method leaves Config's defaults
    options: type[Options] = Options  # hyper-parameters of its own, with their published values
    keep: bool = True  # whether a row's reward stays as it is until the reward model moves
    algorithm: str = "SAC"  # its learners', by the name that SB3 has for it
    densities: bool = False  # whether it needs their actions' probabilities: no deterministic policy will do
    arguments: Callable[[Any], Mapping[str, Any]] = lambda options: {}  # of that algorithm

    def options_of(self, config: Config) -> Any:
        """Its ``options``, as they are in a run with these settings."""
        return complete(self.options, config.options, f"{self.name}.")


@dataclass
class Run:
    """Everything that moves during training."""

    method: Method
    config: Config
    envs: Sequence[Any]  # gymnasium environments, one a learner
    learners: Sequence[Learner]
    teacher: Teacher
    store: Store
    reward: RewardEnsemble
    generator: torch.Generator  # of weights: the reward's have been drawn from it, then come the method's own
    improve: Improve
    prefs: PreferenceStore = field(default_factory=PreferenceStore)
    asked: query.Asked = field(default_factory=query.Asked)
    step: int = 0
    episode: int = 0  # of all learners together
    info: dict[str, Any] = field(default_factory=dict)  # what the environment told of the newest step
    tracked: bool = False  # whether learners have had time to answer the reward as it is
    weights: Tensor | None = None  # (M, B) of the labels of this reward step; None where all weigh alike

    def __post_init__(self) -> None:
        self.reward_optimizer = torch.optim.Adam(self.reward.parameters(), self.config.reward_learning_rate)
        self.health = health.Health(self.reward, self.reward_optimizer)
        # One generator a purpose, so that switching one part off leaves the draws of the others as they were
        purposes = ("query", "reward", "visits", "entropy", "method")
        self.rng = {purpose: np.random.default_rng([self.config.seed, i]) for i, purpose in enumerate(purposes)}
        self.options = self.method.options_of(self.config)
        self.state: Any = self.method.state(self)
        show(self)

    @property
    def learnt(self) -> bool:
        """Whether the reward has been fitted to any label."""
        return bool(self.reward_optimizer.state)

    @property
    def on_policy_since(self) -> int:
        """First row that was written after a reward had been learnt (a row is a step)."""
        return self.config.learning_starts + self.config.pretrain_steps

    def sample_pairs(self, count: int) -> Queries:
        """Random pairs of segments from recent episodes, those that ``query_source`` says if any is long enough."""
        c, episodes = self.config, partial(self.store.episodes, least=self.config.segment_length)
        recent = c.aligned_episodes if c.policy_aligned else c.recent_episodes
        two = len(self.learners) == 2
        sources = {"all": (None, None), "second": (1, 1), "cross": (0, 1)}[c.query_source if two else "all"]
        pools = [episodes(writer)[-recent:] or episodes()[-recent:] for writer in sources]
        first, second = (self.store.sample_segments(p, count, c.segment_length, self.rng["query"]) for p in pools)
        return Queries(first, second)

    def sample_anchored(self, count: int) -> Queries:
        """Random pairs of a segment of the newest episodes and an anchor: the newest is compared with what there was.

        Anchors are the ``anchor_segments`` labelled segments that the reward rates best, or any since labels began.
        """
        c, rng = self.config, self.rng["query"]
        episodes = partial(self.store.episodes, least=c.segment_length)
        new = self.store.sample_segments(episodes()[-c.aligned_episodes :], count, c.segment_length, rng)
        if c.anchor == "past":
            past = episodes(since=self.on_policy_since) or episodes()
            return Queries(new, self.store.sample_segments(past, count, c.segment_length, rng))
        labelled = self.prefs.segments()
        with torch.no_grad():
            rating = self.reward(labelled.obs, labelled.act).sum(-1)
        best = rating.argsort(descending=True, stable=True)[: c.anchor_segments]
        drawn = best[torch.from_numpy(rng.integers(len(best), size=count))]
        return Queries(new, Segments(*(column[drawn] for column in labelled)))

    def weigh(self, logits: Tensor) -> Tensor:
        """The members' logits (M, B) on this reward step's labels, so that each label counts as it weighs."""
        return logits if self.weights is None else weighed(logits, self.weights)


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
                found.append(query.choose(c.query, run.reward.members, candidates, known, number))
            run.asked.add(found[-1])
    return query.joined(found) if found else None


def candidates_for(run: Run, count: int, sample: Callable[[int], Queries]) -> Queries | None:
    """``oversample`` random pairs for each of ``count`` labels, without those that no label would tell anything of.

    Draws more only where fewer than ``count`` are left; with a warning where that stays so. None where none is left.
    """
    c, found = run.config, list[Queries]()
    try:
        for _ in range(DRAWS):
            found.append(sample(count * c.oversample))
            candidates = run.asked.new(query.joined(found) if len(found) > 1 else found[0])
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
    return {
        "reward/loss": float(np.mean(losses)),
        "reward/accuracy": right,
        "reward/epochs": passed,
        "reward/labels": len(run.prefs),
        "reward/fresh_loss": run.prefs.fresh_loss[-c.session_labels :].mean().item(),
    }


def show(run: Run) -> None:
    """Let each learner see its reward as it is now: state entropy until a reward has been learnt."""
    careful = run.config.pessimism_from == "start" or len(run.prefs) >= run.config.labels
    run.reward.pessimism = run.config.pessimism if careful else 0.0
    pretraining = run.method.upper is not None and not run.learnt
    exploring = entropy_signal(run.store, run.config, run.rng["entropy"])
    signals = [exploring] * len(run.learners) if pretraining else run.method.sees(run)
    for learner, signal in zip(run.learners, signals, strict=True):
        learner.see(signal, keep=run.method.keep and not pretraining)


def episode_metrics(run: Run, start: int) -> Row:
    rows = torch.arange(start, run.store.size)
    row = {"rollout/true_return": run.store.truth[rows].sum().item(), "rollout/length": float(len(rows))}
    if run.learnt:  # a diagnostic only: a rising learned return proves nothing
        row["rollout/learned_return"] = run.store.learned(run.reward)(rows).sum().item()
    return row
