"""The schedule: every phase comes, in order, within its budget; and learning on a probe whose answer is known."""

import warnings
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from benchmarks.learning import ending, evidence, figure1
from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.config import Config
from rlhf_bilevel.config.budget import check_budget, fit_segment_length
from rlhf_bilevel.config.presets import PRESETS
from rlhf_bilevel.data.answers import select
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.records import read_records
from rlhf_bilevel.evaluation.rollout import evaluate
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.rewards.bradley_terry import cross_entropy, logits
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.studies.worker import all_settings
from rlhf_bilevel.training.loop import train
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences, Queries
from rlhf_bilevel.utils.json_yaml import read_yaml
from tests.conftest import SMALL, Steer, build


class Lasting(Steer):
    """Episode k lasts ``first + more k`` steps, at most 50, and ends for good if told so."""

    def __init__(self, first: int, more: int = 0, ends: bool = False) -> None:
        self.length, self.more, self.ends = first - more, more, ends

    def reset(self, **given: Any) -> tuple[np.ndarray, dict]:
        self.length += self.more
        return super().reset(**given)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, _, truncated, info = super().step(action)
        over = self.t >= self.length
        return obs, reward, over and self.ends, truncated or (over and not self.ends), info


gymnasium.register("Short-v0", entry_point=Lasting, kwargs={"first": 10})  # and does not tell
gymnasium.register("Growing-v0", entry_point=Lasting, kwargs={"first": 5, "more": 3})
gymnasium.register("Falling-v0", entry_point=Lasting, kwargs={"first": 20, "ends": True}, max_episode_steps=50)
gymnasium.register("Limited-v0", entry_point=Lasting, kwargs={"first": 50}, max_episode_steps=30)


class Recorder:
    """An oracle that notes when it was asked, and skips or ties as told."""

    def __init__(self, run: Run, skip: bool = False, tie: bool = False) -> None:
        self.run, self.skip, self.tie = run, skip, tie
        self.asked: list[tuple[int, int]] = []

    def __call__(self, queries: Queries) -> Preferences:
        count = len(queries.first.env_reward)
        self.asked.append((self.run.step, count))
        if self.skip:
            none = torch.zeros(0, dtype=torch.long)
            first, second = (type(part)(*(column[none] for column in part)) for part in queries)
            return Preferences(first, second, torch.zeros(0))
        label = (queries.first.env_reward.sum(1) > queries.second.env_reward.sum(1)).float()
        return Preferences(*queries, torch.full_like(label, 0.5) if self.tie else label)


def test_phases_scale_with_the_number_of_steps() -> None:
    long, short = Config(total_timesteps=500_000, labels=1000), Config(total_timesteps=1500, labels=50)
    assert (long.learning_starts, long.pretrain_steps) == (1000, 9000)  # B-Pref's
    for config in (long, short):
        last_session = config.learning_starts + config.pretrain_steps + 9 * config.num_interact
        assert 0 < config.learning_starts < config.pretrain_steps + config.learning_starts < config.total_timesteps / 5
        assert 0.3 * config.total_timesteps < last_session < 0.8 * config.total_timesteps
        assert config.initial_labels + 9 * config.queries_per_session >= config.labels
        assert config.refresh_every < config.total_timesteps / 10


def test_a_setting_that_is_given_stays_and_unknown_ones_are_refused() -> None:
    assert Config(total_timesteps=1000, pretrain_steps=7).pretrain_steps == 7
    with pytest.raises(ValueError, match="sigmaa"):
        Config(total_timesteps=1000, sigmaa=3)
    for name in PRESETS:
        Config(**{"total_timesteps": 1000, **PRESETS[name]})


def test_labels_are_asked_in_sessions_within_their_budget() -> None:
    settings = {"learning_starts": 10, "pretrain_steps": 20, "num_interact": 15, "queries_per_session": 12}
    run = build("pebble", total_timesteps=200, labels=40, **settings)
    run.teacher = Recorder(run)
    rows = list(train(run))
    assert run.teacher.asked == [(30, 12), (45, 12), (60, 12), (75, 4)]
    assert len(run.prefs) == 40 and len(rows) == 200
    counts = [row["reward/labels"] for row in rows if "reward/labels" in row]
    assert sorted(set(counts)) == [12, 24, 36, 40] and counts == sorted(counts)
    assert len(counts) > 4  # refreshes in between and after
    assert [i + 1 for i, row in enumerate(rows) if "rollout/true_return" in row] == [50, 100, 150, 200]


def test_fresh_losses_are_those_of_the_reward_before_it_was_trained_on_the_labels() -> None:
    run = build("pebble", total_timesteps=200, queries_per_session=12, labels=40)
    teacher, by_the_reward_as_it_is = run.teacher, []

    def spy(queries: Queries) -> Preferences:
        answers = teacher(queries)
        by_the_reward_as_it_is.append(cross_entropy(logits(run.reward, answers), answers.label))
        return answers

    run.teacher = spy
    list(train(run))
    assert len(run.prefs) == 40
    assert run.prefs.fresh_loss[:12].numpy() == pytest.approx(np.log(2))  # even odds, before there is a reward
    assert torch.equal(run.prefs.fresh_loss[12:], torch.cat(by_the_reward_as_it_is[1:]))


@pytest.mark.parametrize("fault", ["skip", "tie"])
def test_a_teacher_that_skips_or_ties_all_stops_nothing(fault: str) -> None:
    run = build("pebble", total_timesteps=120)
    run.teacher = Recorder(run, skip=fault == "skip", tie=fault == "tie")
    before = [p.clone() for p in run.reward.parameters()]
    assert len(list(train(run))) == 120
    assert len(run.prefs) == (0 if fault == "skip" else 40)
    moved = any(not torch.equal(a, b) for a, b in zip(before, run.reward.parameters(), strict=True))
    assert moved == (fault == "tie")


def test_answers_that_come_a_session_late_are_used_within_the_budget() -> None:
    run = build("pebble", total_timesteps=200, queries_per_session=12, labels=40)
    oracle, waiting = run.teacher, list[Queries]()

    def late(queries: Queries) -> Preferences:
        waiting.append(queries)
        if len(waiting) == 1:
            return oracle(Queries(*(type(part)(*(column[:0] for column in part)) for part in queries)))
        return oracle(waiting[-2])

    run.teacher = late
    with pytest.warns(UserWarning, match="answered none of 12 queries"):
        assert len(list(train(run))) == 200
    assert len(run.prefs) == 40 and len(waiting) == 5
    assert torch.equal(run.prefs[:12].first.obs, waiting[0].first.obs)


def test_a_budget_that_the_sessions_cannot_reach_is_refused_with_what_would_do() -> None:
    ones = {"labels": 500, "queries_per_session": 1, "initial_comparison_frac": 0}
    with pytest.raises(ValueError, match=r"labels=500: only 19 .* queries_per_session=27 or num_interact=3 would do"):
        check_budget(Config(total_timesteps=2000, **ones))
    assert Config(total_timesteps=2000, labels=500, queries_per_session=27).sessions == 19
    check_budget(Config(total_timesteps=2000, labels=500, queries_per_session=27))
    more, fewer = (Config(total_timesteps=2000, num_interact=every, **ones).sessions for every in (3, 4))
    assert more >= 500 > fewer
    with pytest.raises(ValueError, match=r"labels=500: only 19 .* queries_per_session=27 would do"):
        check_budget(Config(total_timesteps=200, **ones))
    at_once = {"learning_starts": 0, "pretrain_steps": 0}
    with pytest.raises(ValueError, match=r"only 0 can be asked .* no session comes: num_interact=30 or less"):
        check_budget(Config(total_timesteps=30, num_interact=31, **at_once))
    assert Config(total_timesteps=30, num_interact=30, **at_once).queries_per_session == 100  # of its own accord


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_sessions_are_counted_as_they_come() -> None:
    for settings in ({}, {"learning_starts": 0, "pretrain_steps": 0}, {"num_interact": 7}, {"num_interact": 90}):
        many = {"total_timesteps": 100, "labels": 1000, "segment_length": 3, "train_freq": 100}
        run = build("pebble", **many | settings)
        run.teacher = Recorder(run, skip=True)
        list(train(run))
        asked = [step for step, _ in run.teacher.asked]
        assert len(asked) == run.config.sessions and asked[0] == run.config.first_session


def test_all_runs_of_the_repository_reach_their_labels() -> None:
    figures = (
        figure1.group(scale, name, panel) for scale, panels in figure1.SCALES.items() for name, panel in panels.items()
    )
    groups = chain(evidence.GROUPS.values(), evidence.SEARCH.values(), figures)
    kinds = {replace(run, out=None).having(seed=0) for group in groups for _, run in group}
    for run in kinds:
        run.resolve()
    assert len(kinds) > 100


def test_what_had_no_segment_is_asked_later_in_equal_parts() -> None:
    run = build("pebble", "Growing-v0", total_timesteps=400, segment_length=25, num_interact=60, queries_per_session=7)
    run.teacher = Recorder(run)
    with pytest.warns(UserWarning, match=r"no queries at step 100: segment_length=25 .*longest: 23"):
        list(train(run))
    assert run.teacher.asked == [(160, 8), (220, 8), (280, 8), (340, 8), (400, 8)] and len(run.prefs) == 40


def test_a_default_segment_is_shortened_to_the_episode_and_one_that_was_set_is_refused(tmp_path: Path) -> None:
    settings = {key: value for key, value in SMALL.items() if key != "segment_length"}
    told = (
        r"segment_length=25 is too long: an episode has at most 8 steps .*30, with action_repeat=4\); it is 8 in this"
    )
    with pytest.warns(UserWarning, match=told):
        agent = Agent("pebble", "Limited-v0", preset="quick", out=tmp_path / "run", **settings).learn(300)
    assert agent.run is not None and len(agent.run.prefs) == 40
    assert read_yaml(tmp_path / "run" / "config.yaml")["settings"]["segment_length"] == 8
    # As a sweep sees it that goes on
    run = RunSpec.of("pebble", "Limited-v0", settings | {"total_timesteps": 300}, preset="quick")
    assert all_settings(run, 30)["segment_length"] == 8
    with pytest.raises(UserError, match=r"segment_length=9 is too long: .* segment_length=8 would do"):
        Agent("pebble", "Limited-v0", preset="quick", out=tmp_path / "no", segment_length=9, **settings).learn(300)
    assert not (tmp_path / "no").exists()
    for method, labels in (("sac", 40), ("pebble", 0)):  # which ask for no label
        few = {"total_timesteps": 300, "segment_length": 31, "labels": labels}
        all_settings(RunSpec.of(method, "Limited-v0", few, preset="quick"), 30)
    config = Config(total_timesteps=300, segment_length=30)
    assert fit_segment_length(config, 30, chosen=True) == fit_segment_length(config, None, chosen=True) == (config, "")
    with pytest.raises(UserError, match="the last labels are asked at step 30 of 30; segment_length=15 would do"):
        fit_segment_length(Config(total_timesteps=30, segment_length=30), None, chosen=True)


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_was_given_no_label_fails_and_keeps_its_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [f"--set={key}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for key, v in SMALL.items()
             if key != "labels"]  # fmt: skip
    out = tmp_path / "run"
    command = ["train", "pebble", "--env", "Short-v0", "--steps", "200", *words, "--set=segment_length=11"]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--out", str(out), "--set=action_repeat=2"])
    assert stop.value.code == 2
    line = "no label was given in 200 steps, and no reward was learnt: segment_length=11 is longer than every episode "
    assert line + "(longest: 5 steps of 2 each (action_repeat))" in capsys.readouterr().err
    assert [point.labels for point in read_records(out)][-1] == 0 and not RunFolder(out).ended
    with pytest.raises(UserError, match="no answer that can be used to any of 76 queries"):
        Agent("pebble", "Steer-v0", teacher=unusable, **SMALL).learn(200)
    Agent("pebble", "Steer-v0", **SMALL | {"labels": 0}).learn(60)
    Agent("random", "Short-v0", **SMALL).learn(60)


def unusable(queries: Queries) -> Preferences:
    return Preferences(*queries, torch.full((len(queries.first.env_reward),), torch.nan))


@pytest.mark.parametrize(
    ("method", "settings", "warned"),
    [
        ("pebble", {}, 1),
        ("pebble", {"labels": 0}, 0),
        ("pebble", {"termination": "nonnegative"}, 0),
        ("sac", {}, 0),
    ],
)
def test_the_first_episode_that_ends_early_is_told_where_a_reward_is_learnt(
    method: str, settings: dict[str, Any], warned: int
) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        list(train(build(method, "Falling-v0", total_timesteps=100, **settings)))
    found = [str(one.message) for one in told if "an episode ended early" in str(one.message)]
    assert len(found) == warned
    assert all("step 20: " in line and "termination=absorb or termination=nonnegative" in line for line in found)


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({}, 0),
        ({"teacher_mistake": 0.5}, 1),  # nobody can learn what it likes
        ({"teacher_mistake": 0.5, "reward_form": "network"}, 0),
        ({"teacher_mistake": 0.5, "labels": 90}, 0),  # too few to tell
    ],
)
def test_a_reward_that_is_no_network_and_cannot_say_what_the_labels_say_is_told_once(
    settings: dict[str, Any], warned: int
) -> None:
    run = build(
        "pebble",
        **{"labels": 120, "queries_per_session": 60, "num_interact": 20, "reward_epochs": 20, "total_timesteps": 80}
        | settings,
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        list(train(run))
    found = [str(one.message) for one in told if "which reward_form=network can say" in str(one.message)]
    assert len(found) == warned and all("the additive reward orders only" in line for line in found)


@pytest.mark.parametrize(("lasso", "warned"), [(0.01, 0), (50.0, 1)])
def test_a_reward_that_the_lasso_has_emptied_is_told_once(lasso: float, warned: int) -> None:
    run = build("pebble", labels=40, reward_lasso=lasso, reward_epochs=60)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        list(train(run))
    found = [str(one.message) for one in told if "is too strong for them" in str(one.message)]
    assert len(found) == warned and all("hardly varies over its 40 labels: reward_lasso=50" in one for one in found)


@pytest.mark.parametrize(("form", "units", "warned"), [
    ("additive", "measured", 1), ("network", "measured", 1), ("network", "raw", 0)
])  # fmt: skip
def test_an_input_that_outgrows_its_unit_is_told_once(form: str, units: str, warned: int) -> None:
    run = build("pebble", reward_form=form, reward_units=units, labels=40, queries_per_session=10)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in train(run):
            if run.learnt and run.step % 10 == 0:  # as if the first labels had shown much less
                run.reward.unit[0] = 1e-3
    found = [str(one.message) for one in told if "may rest on it alone" in str(one.message)]
    assert len(found) == warned


def test_with_absorbing_states_all_episodes_are_equally_long_and_their_true_return_stays() -> None:
    settings = {key: value for key, value in SMALL.items() if key != "n_eval_episodes"} | {"eval_freq": 100}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = Agent("pebble", "Falling-v0", termination="absorb", **settings).learn(150)
    run = agent.run
    assert run is not None and run.store.episodes() == [(0, 50), (50, 100), (100, 150)]
    assert not run.store.terminated.any()
    alive = run.store.obs[:, 1] == 0
    assert torch.equal(alive.reshape(3, 50), (torch.arange(50) < 20).expand(3, 50))
    assert not run.store.env_reward[~alive].any() and (run.store.env_reward[alive] != 0).all()
    plain = Agent("pebble", "Falling-v0", **SMALL)
    plain.config = agent.config.model_copy(update={"termination": "as_is"})
    policy = lambda obs: agent.predict(np.append(obs, np.float32(0)))[0]  # noqa: E731
    assert np.array_equal(agent.evaluate(3).returns, evaluate(policy, plain.make_env(), 3).returns)


@pytest.mark.slow
def test_with_either_remedy_no_run_ends_what_is_worth_going_on_with() -> None:
    """Without one some do, on the same seeds: table in docs/rewards.md."""
    settings = {"steps": 4000, "episodes": 10}
    ended = {
        way: sum((ending.lengths("pebble", way, seed, **settings) < ending.LIMIT).sum() for seed in (500, 501))
        for way in ("as_is", "absorb", "nonnegative")
    }
    assert ended["as_is"] > 0 == ended["absorb"] == ended["nonnegative"]


@pytest.mark.parametrize("schedule", ["constant", "decreasing"])
def test_the_first_session_may_get_a_share_of_the_labels(schedule: str) -> None:
    settings = {"labels": 50, "num_interact": 40, "learning_starts": 50, "pretrain_steps": 100, "aligned_episodes": 1}
    settings |= {"label_schedule": schedule, "policy_aligned": True, "initial_comparison_frac": 0.4}
    run = build("pebble", total_timesteps=430, **settings)
    counts = np.diff([0, *(len(run.prefs) for _ in train(run))])
    first, *later = counts[counts > 0]
    assert first == 20 and sum(later) == 30 and max(later) < 10
    assert counts[run.config.first_session - 1] == first
    # They are about all episodes of pre-training, and not about the newest one alone
    rows = run.store.rows_of(run.prefs[:20].first)
    assert len({int(row) // 50 for row in rows}) > 2


def test_a_budget_counts_the_share_of_the_first_session() -> None:
    settings = {"total_timesteps": 2000, "labels": 100, "num_interact": 1000, "initial_comparison_frac": 0.5}
    assert Config(**settings).queries_per_session == 50
    check_budget(Config(**settings))
    with pytest.raises(ValueError, match=r"labels=100: only 60 can be asked"):
        check_budget(Config(**settings, queries_per_session=10))


def test_a_decreasing_schedule_asks_in_proportion_to_the_steps_that_are_left_and_for_all_labels() -> None:
    run = build(
        "pebble", total_timesteps=430, labels=60, num_interact=40, label_schedule="decreasing", learning_starts=10
    )
    asked = [len(run.prefs) for _ in train(run)]
    counts = np.diff([0, *asked])
    at = np.flatnonzero(counts) + 1  # steps
    first = run.config.first_session
    left = run.config.total_timesteps - np.arange(first, run.config.total_timesteps + 1, 40)
    wanted = dict(zip(run.config.total_timesteps - left, 60 * left / left.sum(), strict=True))
    assert asked[-1] == 60 and at[-1] > 0.75 * run.config.total_timesteps
    assert all(abs(counts[step - 1] - share) <= 1 for step, share in wanted.items())


def test_a_decreasing_schedule_asks_again_for_what_a_teacher_skipped_and_keeps_the_budget() -> None:
    run = build("pebble", total_timesteps=430, labels=60, num_interact=20, label_schedule="decreasing")
    oracle = run.teacher
    run.teacher = lambda queries: select(oracle(queries), slice(0, None, 2))
    list(train(run))
    assert len(run.asked) > 60 >= len(run.prefs) > 40


def test_two_learners_act_in_turn_and_both_are_counted() -> None:
    run = build("twin", total_timesteps=200)
    list(train(run))
    assert run.store.episodes(writer=0) == [(0, 50), (100, 150)]
    assert run.store.episodes(writer=1) == [(50, 100), (150, 200)]
    first, second = run.store.obs[0], run.store.obs[50]
    assert torch.equal(first, second)  # common starts: the learners differ by what they do alone


@pytest.mark.parametrize("sides, agent", [("one", 0), ("two", 1)])
def test_the_agents_learner_may_act_more_often(sides: str, agent: int) -> None:
    run = build("penalty", total_timesteps=200, other_every=3, sides=sides, labels=0)
    list(train(run))
    assert run.store.episodes(writer=1 - agent) == [(100, 150)]
    assert run.store.episodes(writer=agent) == [(0, 50), (50, 100), (150, 200)]


def test_state_entropy_widens_the_visited_states_without_any_label() -> None:
    run = build("pebble", total_timesteps=400, learning_starts=30, labels=0, net_arch=(32, 32), batch_size=64)
    list(train(run))
    assert len(run.prefs) == 0
    positions = run.store.obs[:, 0]
    assert positions[200:].std() > 1.2 * positions[:30].std()


@pytest.mark.parametrize("method", ["pebble", pytest.param("penalty", marks=pytest.mark.slow)])
def test_it_learns_a_task_from_labels_alone(method: str) -> None:
    """True return of the agent, deterministic, on the probe: random is about 15, the best possible about 46 of 50.

    Two of three seeds: so few labels mislead a seed now and then, with every method.
    The default lasso is too strong for this task of few entries (docs/search.md).
    """
    learnt = [true_return(method, seed) > 38 for seed in range(2)]
    assert all(learnt) or (any(learnt) and true_return(method, 2) > 38)


def true_return(method: str, seed: int) -> float:
    """Mean of five episodes."""
    settings = {"net_arch": (32, 32), "batch_size": 64, "reward_net_arch": (32,), "reward_epochs": 20, "seed": seed}
    settings |= {"reward_lasso": 0.1}
    steps = 1800 * METHODS[method].learners  # two learners share the steps
    run = build(method, total_timesteps=steps, labels=80, other_every=4, **settings)
    list(train(run))
    model = run.learners[0].model
    return evaluate(lambda obs: model.predict(obs, deterministic=True)[0], run.envs[0], 5).returns.mean()


@pytest.mark.parametrize("units", ["measured", "raw"])
def test_rewards_see_what_varies_in_units_of_its_spread_from_the_first_label_on(units: str) -> None:
    run = build("penalty", total_timesteps=160, reward_units=units)
    seen = []
    for _ in train(run):
        if len(run.prefs):
            seen.append(torch.cat([run.reward.unit, run.state.cost.per_step.unit]))
    first = run.prefs[: run.config.queries_per_session]
    steps = torch.cat([torch.cat(part[:2], -1).flatten(0, 1) for part in first[:2]])
    spread = torch.where(steps.std(0) > 1e-6, steps.std(0), 1.0) if units == "measured" else torch.ones(steps.shape[1])
    assert all(torch.allclose(unit, spread.repeat(2)) for unit in seen) and seen


def test_a_clipped_reward_sees_what_the_labels_have_shown_from_every_session_on() -> None:
    run, sessions = build("penalty", total_timesteps=160, reward_clip=True), 0
    for _ in train(run):
        if len(run.prefs) and not run.in_refresh:
            sessions += 1
            shown = torch.cat(run.prefs.steps(), -1).flatten(0, 1)
            for network in run.reward, run.state.cost.per_step:
                assert torch.equal(network.low, shown.amin(0)) and torch.equal(network.high, shown.amax(0))
    assert sessions > 1
