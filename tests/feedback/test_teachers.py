"""B-Pref's teachers against probabilities that are written out again, coin by coin; and what makes a run repeatable."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import parser
from rlhf_bilevel.cli import run_options
from rlhf_bilevel.config import Config
from rlhf_bilevel.data.label_log import LabelLog, read_sessions
from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.recorded import Replayed
from rlhf_bilevel.feedback.teacher_spec import teacher_settings
from rlhf_bilevel.feedback.teachers import OracleTeacher, SimulatedTeacher
from rlhf_bilevel.types import Preferences, Queries, Segments
from tests.conftest import SMALL
from tests.data.test_label_log import answers
from tests.data.test_label_log import equal as same
from tests.data.test_label_log import queries as random_queries
from tests.runs.test_resume import EVERY, STEPS, equal, killed, started, state
from tests.support.faults import tables

AVERAGE = 2.0  # reward per step of the recent episodes
PAIRS = [  # of three steps, so that a segment returns 6 on average; sums are exact in float32
    ((3, 0, 0), (0, 0, 2.5)),  # the myopic one prefers the second
    ((2, 2, 2), (2, 2, 1.5)),
    ((0, 0, 1), (0.5, 0, 0)),
    ((1, 1, 1), (3, 2, 1)),
    ((4, 1, 0), (0, 1, 4)),  # equal but for the order
    ((0, 3, 0), (0, 0, 0.25)),
]


def store_of(*returns: float, length: int = 4) -> ReplayBuffer:
    store = ReplayBuffer(1, 1, len(returns) * length)
    for value in returns:
        store.begin(0)
        for _ in range(length):
            store.add(*(np.zeros(1, np.float32) for _ in range(3)), value / length, False)
    return store


def pairs_of(truths: list) -> Queries:
    first, second = torch.tensor(truths, dtype=torch.float32).unbind(1)
    return Queries(*(Segments(torch.zeros(*r.shape, 1), torch.zeros(*r.shape, 1), r) for r in (first, second)))


def simulated(store: ReplayBuffer, seed: int = 0, **settings: Any) -> SimulatedTeacher:
    return SimulatedTeacher(Config(total_timesteps=1000, seed=seed, **settings), store)


def law(first: tuple, second: tuple, beta: float, discount: float, mistake: float, skip: float, equal: float) -> dict:
    """B-Pref's section 3 for one pair: probability of each answer, None where there is none."""
    if max(sum(first), sum(second)) <= skip * 3 * AVERAGE:
        return {None: 1.0}
    if abs(sum(first) - sum(second)) < equal * 3 * AVERAGE:
        return {0.5: 1.0}
    one, other = (sum(reward * discount ** (2 - t) for t, reward in enumerate(part)) for part in (first, second))
    if beta < math.inf:
        odds = math.exp(beta * one) / (math.exp(beta * one) + math.exp(beta * other))
    elif one == other:
        return {0.5: 1.0}
    else:
        odds = float(one > other)
    found = {0.0: 0.0, 1.0: 0.0}
    for prefers_first, errs in product((True, False), repeat=2):
        chance = (odds if prefers_first else 1 - odds) * (mistake if errs else 1 - mistake)
        found[float(prefers_first != errs)] += chance
    return found


REST = {"beta": math.inf, "discount": 1.0, "mistake": 0.0, "skip": 0.0, "equal": 0.0}


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"beta": 0.7},
        {"mistake": 0.1},
        {"skip": 0.5},
        {"equal": 0.1},
        {"discount": 0.9},
        {"beta": 0.7, "discount": 0.9, "mistake": 0.2, "skip": 0.5, "equal": 0.1},
        {"discount": 0.9, "mistake": 0.2, "skip": 0.2, "equal": 0.05},
    ],
)
def test_labels_are_distributed_as_the_paper_says(own: dict) -> None:
    """Each count is one that a binomial law gives but for 2 chances in 10^8; all 24 are but for less than 1 in 10^6."""
    traits, count = REST | own, 20_000
    teacher = simulated(store_of(4 * AVERAGE), **{f"teacher_{key}": value for key, value in traits.items()})
    answered = teacher(pairs_of([pair for pair in PAIRS for _ in range(count)]))
    given = torch.stack([answered.first.env_reward, answered.second.env_reward], 1)
    for pair in PAIRS:
        expected = law(*pair, **traits)
        label = answered.label[(given == torch.tensor(pair)).all(2).all(1)]
        seen = {value: int((label == value).sum()) for value in (0.0, 0.5, 1.0)} | {None: count - len(label)}
        for answer, number in seen.items():
            chance = expected.get(answer, 0.0)
            assert binom.cdf(number, count, chance) > 1e-8 and binom.sf(number - 1, count, chance) > 1e-8, (
                f"{pair}: {answer} was answered {number / count:.4f} of the time and not {chance:.4f}"
            )


def test_pairs_are_left_out_whole_and_in_order() -> None:
    queries = pairs_of([((0, 0, 1), (0, 1, 0)), ((5, 5, 5), (0, 0, 0)), ((0, 0, 0), (6, 6, 6))])
    answered = simulated(store_of(4 * AVERAGE), teacher_skip=0.5)(queries)
    assert torch.equal(answered.first.env_reward, queries.first.env_reward[1:]) and answered.label.tolist() == [1, 0]
    assert torch.equal(answered.second.obs, queries.second.obs[1:])


def margins(teacher: SimulatedTeacher, *margins: float) -> list[float]:
    """Labels of pairs of five steps, in which the first returns so much more."""
    return teacher(pairs_of([((margin, 0, 0, 0, 0), (0, 0, 0, 0, 0)) for margin in margins])).label.tolist()


def test_thresholds_follow_the_newest_ten_episodes_as_in_b_pref() -> None:
    returns = [1000.0] * 3 + [float(value) for value in range(10, 20)]
    average = np.mean(returns[-10:]) * 5 / 40  # B-Pref: mean return x segment / episode length
    below, above = 0.1 * average * (1 - 1e-4), 0.1 * average * (1 + 1e-4)
    store = store_of(*returns, length=40)
    assert margins(simulated(store, teacher_equal=0.1), below, above) == [0.5, 1]
    assert margins(simulated(store, teacher_skip=0.1), below, above) == [1]


def test_b_prefs_code_takes_epsilon_twice_from_the_second_session_on_and_ties_nothing_else() -> None:
    at_first, later = store_of(*[40.0] * 5, length=20), store_of(*[40.0] * 6, length=20)  # a segment returns 10
    settings: dict[str, Any] = {"teacher_equal": 0.1, "learning_starts": 50, "pretrain_steps": 50}
    compat = settings | {"teacher_bpref_compat": True}
    assert margins(simulated(at_first, **settings), 0.05, 0.5, 1.5) == [0.5, 0.5, 1]
    assert margins(simulated(later, **settings), 0.05, 0.5, 1.5) == [0.5, 0.5, 1]
    assert margins(simulated(at_first, **compat), 0.05, 0.5, 1.5) == [0.5, 0.5, 1]
    assert margins(simulated(later, **compat), 0.05, 0.5, 1.5) == [0.5, 1, 1]
    assert margins(simulated(later, teacher_bpref_compat=True), 0.0, -1.0) == [1, 0]
    assert margins(simulated(later), 0.0, -1.0) == [0.5, 0]


def test_without_a_positive_return_skip_and_equal_do_nothing_and_say_so() -> None:
    teacher = simulated(store_of(-40.0), teacher_skip=0.5, teacher_equal=0.5)
    with pytest.warns(UserWarning, match="no positive return"):
        assert margins(teacher, 0.1, -0.1, 0) == [1, 0, 0.5]


def test_what_is_drawn_is_a_function_of_seed_and_step() -> None:
    queries, noisy = random_queries(200), {"teacher_mistake": 0.5}
    one, more = store_of(4.0), store_of(4.0, 4.0)
    first = simulated(one, **noisy)
    expected = first(queries).label
    assert torch.equal(first(queries).label, expected) and torch.equal(simulated(one, **noisy)(queries).label, expected)
    assert not torch.equal(simulated(more, **noisy)(queries).label, expected)
    assert not torch.equal(simulated(one, seed=1, **noisy)(queries).label, expected)


NOISY: dict[str, Any] = {"teacher": "beta=2,myopic=0.9,mistake=0.2,skip=1,equal=1", "seed": 3}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run with a noisy teacher that nothing happened to, and the digest of its state at the end."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, state(started("pebble", out, **NOISY))


def oracle_of(out: Path) -> list[float]:
    answered = [Queries(*session[:2]) for session in read_sessions(out / "labels.sqlite") if session]
    return torch.cat([OracleTeacher()(queries).label for queries in answered]).tolist()


def labels_of(out: Path) -> list[float]:
    return [row[2] for row in tables(out / "labels.sqlite")[1]]


@pytest.mark.slow
def test_a_run_with_a_noisy_teacher_that_is_killed_goes_on_bit_for_bit(tmp_path: Path, whole: tuple[Path, str]) -> None:
    """Killed after sessions that came later than the newest checkpoint: they are replayed, the others are asked."""
    out = tmp_path / "run"
    killed(130, lambda: started("pebble", out, **NOISY))
    before = len(labels_of(out))
    assert state(Agent.resume(out, checkpoint_every=EVERY)) == whole[1]
    equal(out, whole[0])
    after = labels_of(out)
    assert 0 < before < len(after)
    asked = sum(row[1] for row in tables(out / "labels.sqlite")[0])
    assert asked > len(after) and after.count(0.5)  # pairs were skipped, and ties were called
    assert after[before:] != oracle_of(out)[before:]  # and it was noisy after the kill too


@pytest.mark.slow
def test_a_run_on_replayed_labels_that_is_killed_goes_on_after_those_that_it_has(
    tmp_path: Path, whole: tuple[Path, str]
) -> None:
    words: dict[str, Any] = {"teacher": f"replay={whole[0]}/labels.sqlite", "seed": 1, "queries_per_session": 3}
    killed(130, lambda: started("pebble", tmp_path / "run", **words))
    before = labels_of(tmp_path / "run")
    Agent.resume(tmp_path / "run", checkpoint_every=EVERY)
    after = labels_of(tmp_path / "run")
    assert 0 < len(before) < len(after) and after == labels_of(whole[0])[: len(after)]


def test_replayed_labels_are_given_in_order_and_once() -> None:
    given, prefs = [answers(3), answers(2, seed=1)], PreferenceBuffer()
    teacher = Replayed(iter(given)).after(prefs)
    seen = []
    for number in (2, 2, 1, 0):
        session = teacher(random_queries(2, seed=7)).label
        assert torch.equal(session, teacher(random_queries(2, seed=8)).label)  # until they are used, they are the next
        assert len(session) == number
        seen += session.tolist()
        prefs.add(Preferences(*random_queries(number), session), torch.zeros(number))
    assert seen == [*given[0].label.tolist(), *given[1].label.tolist()]
    with pytest.raises(UserError, match="no labels"):
        Replayed(iter([answers(0)]))


def test_sessions_of_a_label_log_are_read_as_they_were_given(tmp_path: Path) -> None:
    given, log = [answers(3), answers(0), answers(2, seed=1)], LabelLog(tmp_path / "labels.sqlite")
    for session in given:
        log.append(5, session)
    log.close()
    first, second, third = read_sessions(tmp_path / "labels.sqlite")
    assert first and third and same(first, given[0]) and second is None and same(third, given[2])
    with pytest.raises(UserError, match="no such file"):
        list(read_sessions(tmp_path / "none.sqlite"))
    assert not (tmp_path / "none.sqlite").exists()


def test_words_stand_for_settings_and_b_prefs_values_where_none_is_told() -> None:
    rest = {key: field.default for key, field in Config.model_fields.items() if key.startswith("teacher_")}
    for words, settings in (
        ("oracle", {}),
        ("boltzmann", {"teacher_beta": 1.0}),
        ("mistake", {"teacher_mistake": 0.1}),
        ("skip", {"teacher_skip": 0.1}),
        ("equal", {"teacher_equal": 0.1}),
        ("myopic", {"teacher_discount": 0.9}),
        ("mistake=0.2,skip,beta=10", {"teacher_mistake": 0.2, "teacher_skip": 0.1, "teacher_beta": 10.0}),
        ("equal,bpref_compat", {"teacher_equal": 0.1, "teacher_bpref_compat": True}),
        ("human", {"teacher_human": True}),
        ("person", {"teacher_person": 0.5}),
        ("person=1,bound=1.5,watch=0", {"teacher_person": 1.0, "teacher_bound": 1.5, "teacher_watch": 0.0}),
    ):
        assert teacher_settings(words) == rest | settings


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ("mistke=0.1", "unknown teacher 'mistke'; did you mean 'mistake'?"),
        ("mistake=lots", "'lots' is no number"),
        ("mistake=1.5", "teacher_mistake=1.5"),
        ("beta=0", "teacher_beta=0"),
        ("skip=nan", "teacher_skip=nan"),
        ("mistake,mistake=0.2", "mistake does not go together with the rest"),
        ("oracle,skip", "oracle does not go together with the rest"),
        ("oracle=1", "oracle takes no value"),
        ("replay=nowhere.sqlite", "nowhere.sqlite: no such file"),
        ("replay", "no such file"),
        ("rerun=nowhere.sqlite", "nowhere.sqlite: no such file"),
        ("human=2", "human takes no value"),
        ("human,skip", "human does not go together with the rest"),
        ("human", "give its folder as out="),
        ("", "unknown teacher ''"),
    ],
)
def test_a_wrong_word_is_one_clear_line(words: str, fault: str) -> None:
    with pytest.raises(ValueError) as error:
        Agent("pebble", "Pendulum-v1", teacher=words).learn(100)
    assert fault in str(error.value) and "\n" not in str(error.value)


def test_a_runs_config_repeats_its_teacher_unless_another_is_told(tmp_path: Path, whole: tuple[Path, str]) -> None:
    config = str(whole[0] / "config.yaml")

    def settings(*words: str) -> dict[str, Any]:
        args = parser().parse_args(["train", "pebble", "--env", "Pendulum-v1", "--config", config, *words])
        settings = run_options.spec(args, "pebble", args.env).settings
        return {key: value for key, value in settings.items() if key.startswith("teacher_")}

    assert settings() == teacher_settings(NOISY["teacher"])
    assert settings("--teacher", "oracle") == teacher_settings("oracle")
    assert settings("--teacher", "mistake", "--set", "teacher_mistake=0.3") == teacher_settings("mistake=0.3")
    own = tmp_path / "own.yaml"
    own.write_text(Path(config).read_text().replace("teacher: settings", "teacher: LikesTheRight"))
    config = str(own)
    with pytest.raises(ValueError, match=r"LikesTheRight: choose another with --teacher"):
        settings()
    assert settings("--teacher", "mistake") == teacher_settings("mistake")


def test_a_teacher_of_ones_own_goes_with_no_setting_of_the_simulated_one() -> None:
    with pytest.raises(ValueError, match="teacher_mistake is a setting of the simulated teacher"):
        Agent("pebble", "Pendulum-v1", teacher=OracleTeacher(), teacher_mistake=0.1)
    agent = Agent("pebble", "Steer-v0", teacher=Replayed([answers(4)]), **SMALL)
    with pytest.raises(ValueError, match=r"obs must have the shape"):
        agent.learn(STEPS)


def test_labels_to_replay_are_numbers_of_one_shape() -> None:
    longer = Preferences(*random_queries(2), torch.zeros(2))
    longer = longer._replace(first=longer.first._replace(env_reward=torch.zeros(2, 9)))
    with pytest.raises(UserError, match=r"segments of one shape .*9"):
        Replayed([answers(2), longer])
    with pytest.raises(UserError, match=r"not 'first' .str"):
        Replayed([answers(2)._replace(label="first")])  # type: ignore[arg-type]
    shown = Replayed([answers(2)._replace(label=answers(2).label.double().numpy())])  # type: ignore[arg-type]
    assert same(shown.after(PreferenceBuffer())(random_queries(2)), answers(2))
