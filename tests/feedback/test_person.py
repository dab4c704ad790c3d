"""The simulated person against a simulation of its diffusion, and what makes a run with it repeatable."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from rlhf_bilevel import Agent
from rlhf_bilevel.config import Config
from rlhf_bilevel.data.label_log import read_seconds
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.evaluation.records import read_records
from rlhf_bilevel.feedback.person import SimulatedPerson, mean_decision_time
from rlhf_bilevel.runs.report import print_result
from rlhf_bilevel.training.loop import train
from rlhf_bilevel.training.snapshot import capture, restore
from rlhf_bilevel.types import Preferences, Queries
from tests.cli.test_cli import fails
from tests.conftest import build
from tests.feedback.test_teachers import pairs_of, store_of
from tests.runs.test_resume import EVERY, equal, killed, started, state

STEP = 0.002  # seconds
SIEGMUND = 0.5826  # a walk in steps passes a bound by so many standard deviations of a step


def simulated_decisions(drift: float, bound: float, count: int, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Seconds of each decision, and the share that ends at the bound below 0."""
    seconds, wrong, evidence = np.zeros(count), 0, np.zeros(count)
    going, inside = np.arange(count), bound - SIEGMUND * math.sqrt(STEP)
    for number in range(1, 100_000):
        evidence += drift * STEP + math.sqrt(STEP) * rng.standard_normal(len(evidence))
        over = np.abs(evidence) >= inside
        seconds[going[over]] = number * STEP
        wrong += int((evidence[over] < 0).sum())
        going, evidence = going[~over], evidence[~over]
        if not len(going):
            break
    return seconds, wrong / count


@pytest.mark.parametrize(("drift", "bound"), [(0.0, 1.0), (0.6, 1.0), (2.0, 0.8), (1.0, 1.4)])
def test_time_and_errors_are_those_of_a_simulated_diffusion(
    drift: float, bound: float, rng: np.random.Generator
) -> None:
    count = 4000
    seconds, wrong = simulated_decisions(drift, bound, count, rng)
    drifts = torch.tensor([drift, -drift]).double()
    expected, chance = mean_decision_time(drifts, bound), torch.sigmoid(-2 * bound * drifts.abs())
    assert expected[0] == expected[1] and chance[0] == chance[1]
    assert abs(seconds.mean() - expected[0].item()) < 4 * seconds.std() / math.sqrt(count)
    assert abs(wrong - chance[0].item()) < 4 * math.sqrt(0.25 / count)


def test_time_is_the_same_function_near_a_drift_of_0_and_at_infinity() -> None:
    drifts = torch.tensor([0.0, 1e-7, 2e-6, 1e-3, math.inf]).double()
    assert mean_decision_time(drifts, 2.0).tolist() == pytest.approx([4, 4, 4, 4, 0], abs=1e-4)


REWARDS = [0.0, 1.0, 0.0, 3.0, 1.0, 0.0, 2.0, 2.0, 0.0, 5.0, 0.0, 1.0]  # two episodes of six steps


def store() -> ReplayBuffer:
    found = ReplayBuffer(1, 1, 14)
    for episode in (REWARDS[:6], REWARDS[6:], [100.0, 100.0]):  # the last one is shorter than a segment
        found.begin(0)
        for reward in episode:
            found.add(*(np.zeros(1, np.float32) for _ in range(3)), reward, False)
    return found


def spread(discount: float = 1.0) -> float:
    weights = [discount**2, discount, 1]
    segments = [REWARDS[start : start + 3] for start in (*range(4), *range(6, 10))]
    return float(np.std([np.dot(weights, rewards) for rewards in segments]))


def person(seed: int = 0, **settings: Any) -> SimulatedPerson:
    return SimulatedPerson(Config(total_timesteps=1000, seed=seed, teacher_person=0.5, **settings), store())


def asked(*margins: float) -> Queries:
    """Pairs of three steps, in which the last step of the first returns so much more."""
    return pairs_of([((0, 0, margin), (0, 0, 0)) for margin in margins])


@pytest.mark.parametrize("discount", [1.0, 0.5])
def test_answers_and_seconds_follow_the_margin_in_units_of_the_recent_spread(discount: float) -> None:
    teacher, count = person(teacher_discount=discount, teacher_bound=1.5, teacher_watch=2.0), 20_000
    seconds = []
    for margin in (0.0, 0.4, 2.0, -8.0):
        v = 0.5 * margin / spread(discount)
        label = teacher(asked(*[margin] * count)).label
        chance = 1 / (1 + math.exp(-2 * 1.5 * v))
        assert min(binom.cdf(label.sum(), count, chance), binom.sf(label.sum() - 1, count, chance)) > 1e-8
        seconds.append(2 + (1.5 / v * math.tanh(1.5 * v) if v else 1.5**2))
        assert teacher.seconds == pytest.approx(count * seconds[-1], rel=1e-5)
    assert seconds == sorted(seconds, reverse=True)  # the closer, the slower
    teacher(asked(0.4, 2.0))
    assert teacher.seconds == pytest.approx(seconds[1] + seconds[2])


def test_pairs_that_are_skipped_take_time_too_and_ties_and_mistakes_go_with_a_person() -> None:
    teacher = person(teacher_skip=1.0)
    assert not len(teacher(asked(-1.0, -2.0)).label) and teacher.seconds > 2 * 3
    assert person(teacher_equal=1.0)(asked(0.1)).label.tolist() == [0.5]
    sure = person(teacher_mistake=1.0)(asked(1e4, -1e4)).label
    assert sure.tolist() == [0, 1]


def test_where_recent_segments_do_not_differ_any_difference_is_seen_at_once() -> None:
    teacher = person()
    teacher._store.env_reward[:] = 1.0
    assert teacher(asked(0.1, -0.1, 0.0)).label.tolist() == [1, 0, 0.5]
    assert teacher.seconds == pytest.approx(3 * 3 + 2.0**2)
    alone = SimulatedPerson(Config(total_timesteps=1000, teacher_person=0.5), store_of(1.0, length=1))
    assert alone(asked(0.1, -0.1, 0.0)).label.tolist() == [1, 0, 0.5]  # no episode is as long as a segment


@pytest.mark.slow
def test_a_run_with_a_person_that_is_killed_goes_on_bit_for_bit_and_so_do_its_minutes(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    own: dict[str, Any] = {"teacher": "person,skip=0.5", "seed": 2, "least_difference": 0.2}
    own["initial_comparison_frac"] = 0  # several sessions
    whole = started("pebble", tmp_path / "whole", **own)
    killed(130, lambda: started("pebble", tmp_path / "run", **own))
    resumed = Agent.resume(tmp_path / "run", checkpoint_every=EVERY)
    assert state(resumed) == state(whole)
    equal(tmp_path / "run", tmp_path / "whole")
    seconds = read_seconds(tmp_path / "run/labels.sqlite")
    assert seconds == read_seconds(tmp_path / "whole/labels.sqlite") and len(seconds) > 3
    minutes = sum(second for second in seconds if second) / 60
    print_result(tmp_path / "run", None)
    assert f"with 40 labels in {minutes:.1f} labelling minutes.\n" in capsys.readouterr().out
    last = read_records(tmp_path / "run")[-1]
    assert last.minutes == pytest.approx(minutes, abs=1e-4) and minutes > 40 * 3 / 60
    with (tmp_path / "run/progress.csv").open() as file:
        row = [row for row in csv.DictReader(file) if row["eval/true_return"]][-1]
    assert float(row["teacher/minutes"]) == pytest.approx(minutes)
    assert float(row["eval/return_per_minute"]) == pytest.approx(float(row["eval/true_return"]) / minutes)

    rerun = started("pebble", tmp_path / "rerun", **own | {"teacher": f"rerun={tmp_path}/whole/labels.sqlite"})
    assert state(rerun) == state(whole)
    assert (tmp_path / "rerun/evaluations.csv").read_bytes() == (tmp_path / "whole/evaluations.csv").read_bytes()


def test_the_minutes_of_a_teacher_that_does_not_tell_are_not_known_once_it_was_asked(tmp_path: Path) -> None:
    started("pebble", tmp_path / "run", eval_freq=20, n_eval_episodes=1)
    minutes = {row.labels > 0: row.minutes for row in read_records(tmp_path / "run")}
    assert minutes == {False: 0.0, True: None}


def test_minutes_of_ones_own_teacher_add_up_until_it_does_not_tell(rng: np.random.Generator) -> None:
    run = build("pebble", total_timesteps=300, train_freq=100)
    oracle, times = run.teacher, [30.0, 0.0, 45.0, None, 10.0]

    class Own:
        seconds: float | None = None

        def __call__(self, queries: Queries) -> Preferences:
            self.seconds = times.pop(0) if times else 1.0
            return oracle(queries)

    run.teacher = Own()
    sessions = [row for row in train(run) if "query/difference" in row]
    assert [row.get("teacher/minutes") for row in sessions][:5] == [0.5, 0.5, 1.25, None, None]
    tree, rows = capture(run)
    answers = [run.prefs[:]]
    run.labelling_seconds = 9.0
    restore(run, tree, rows, answers)
    assert run.labelling_seconds is None
    restore(run, tree | {"labelling_seconds": 5.5}, rows, answers)
    assert run.labelling_seconds == 5.5
    del tree["labelling_seconds"]  # as an older checkpoint
    restore(run, tree, rows, answers)
    assert run.labelling_seconds is None


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("--teacher persn", "unknown teacher 'persn'; did you mean 'person'?"),
        ("--teacher person=fast", "teacher person=fast: 'fast' is no number"),
        ("--teacher person=-1", "teacher_person=-1"),
        ("--teacher person=0", "teacher 'person=0': the drift of a person must be above 0"),
        ("--teacher person=nan", "teacher_person=nan"),
        ("--teacher person=inf", "teacher_person=inf"),
        ("--teacher person,bound=0", "teacher_bound=0"),
        ("--teacher person,bound=101", "teacher_bound=101"),
        ("--teacher person,watch=-1", "teacher_watch=-1"),
        ("--teacher bound=3", "teacher_bound=3: only a simulated person has it"),
        ("--teacher watch=1,mistake", "teacher_watch=1: only a simulated person has it"),
        ("--teacher person,beta=2", "teacher_beta=2: the errors of teacher_person follow from its bound"),
        ("--teacher person,oracle", "oracle does not go together with the rest"),
        ("--teacher human --set teacher_person=1", "teacher_human and teacher_person are 2 teachers"),
        ("--set least_difference=-1", "least_difference=-1"),
        ("--set least_difference=wide", "least_difference='wide': must be a number"),
        ("--set leastdifference=1", "did you mean 'least_difference'?"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, words: str, fault: str
) -> None:
    command = f"train pebble --env Pendulum-v1 --steps 500 --labels 10 --out {tmp_path}/run {words}"
    assert fault in fails(capsys, *command.split())
    assert not (tmp_path / "run").exists()
