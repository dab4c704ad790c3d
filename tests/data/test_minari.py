"""Queries about a Minari dataset are about what it holds."""

from contextlib import nullcontext as nothing
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_bilevel.__main__ import main
from rlhf_bilevel.data.answers import select
from rlhf_bilevel.data.minari import import_minari
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.teachers import OracleTeacher
from rlhf_bilevel.types import Preferences, Queries
from tests.cli.test_cli import fails

minari = pytest.importorskip("minari")
NAME = "pendulum/random-v0"
LENGTHS = (30, 12, 50)


@pytest.fixture(scope="module", autouse=True)
def episodes(tmp_path_factory: pytest.TempPathFactory):
    """Three episodes of Pendulum as Minari stores them, and reads them. Its DataCollector would need jax."""
    import gymnasium
    from minari.data_collector import EpisodeBuffer

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("minari")))
        env = gymnasium.make("Pendulum-v1")
        env.action_space.seed(0)
        buffers = []
        for number, length in enumerate(LENGTHS):
            observations, steps = [env.reset(seed=number)[0]], []
            for _ in range(length):
                act = 1.2 * env.action_space.sample()  # Pendulum clips: some are beyond its bounds
                obs, reward, *ends, _ = env.step(act)
                observations.append(obs)
                steps.append((act, float(reward), *ends))
            names = ("actions", "rewards", "terminations", "truncations")
            lists = {name: list(column) for name, column in zip(names, zip(*steps, strict=True), strict=True)}
            buffers.append(EpisodeBuffer(id=number, observations=observations, **lists))
        minari.create_dataset_from_buffers(NAME, buffers, env=env, algorithm_name="random", author="us",
                                           author_email="us", description="d")  # fmt: skip
        yield list(minari.load_dataset(NAME).iterate_episodes())


def test_pairs_are_uniform_runs_of_steps_with_scaled_actions_and_oracle_labels(episodes) -> None:
    assert [len(episode.rewards) for episode in episodes] == list(LENGTHS)
    data = import_minari(NAME, pairs=400, segment_length=11, teacher=OracleTeacher(), seed=1)
    places = []
    for obs, act, reward in zip(*data.segments, strict=True):
        found = [
            (number, start)
            for number, episode in enumerate(episodes)
            for start in np.flatnonzero((episode.observations[: len(episode.rewards) - 10] == obs[0].numpy()).all(1))
        ]
        ((number, start),) = found
        steps = slice(start, start + 11)
        assert np.array_equal(episodes[number].observations[steps], obs.numpy())
        torques = episodes[number].actions[steps]  # [-2, 2]
        assert np.allclose((torques / 2).clip(-1, 1), act.numpy(), atol=1e-6)
        assert np.allclose(episodes[number].rewards[steps], reward.numpy())
        places.append((number, start))
    assert max(abs(episode.actions).max() for episode in episodes) > 2 and abs(data.segments.act).max() == 1
    assert len(places) == len(set(places)) == 20 + 2 + 40  # all that there are, each once
    returns = data.segments.env_reward.double().sum(-1)
    assert torch.equal(data.label == 1, returns[data.first] > returns[data.second])
    share = np.bincount([places[i][0] for i in torch.cat([data.first, data.second]).tolist()]) / 800
    assert np.allclose(share, np.array([20, 2, 40]) / 62, atol=0.06)  # three standard errors
    assert set(data.env_id) == {"Pendulum-v1"} and set(data.labeller) == {"OracleTeacher"}


def test_without_a_teacher_labels_are_open_and_one_that_skips_is_heard(episodes) -> None:
    data = import_minari(NAME, 20, 10)
    assert data.label.isnan().all() and set(data.label_kind) == {"open"} and len(data.preferences().label) == 0

    def choosy(queries: Queries) -> Preferences:
        return select(OracleTeacher()(queries), torch.arange(0, 20, 2))

    heard = import_minari(NAME, 20, 10, teacher=choosy)
    assert heard.label_kind.count("skipped") == 10 and heard.labelled.tolist() == list(range(0, 20, 2))


def test_the_command_writes_a_dataset_and_names_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "pendulum.parquet"
    command = ["import-minari", NAME, "--pairs", "30", "--segment-length", "10", "--out", str(out)]
    main(command)
    assert "30 queries, 30 of them with a label" in capsys.readouterr().out
    assert Dataset.read(out).sha256() == import_minari(NAME, 30, 10, OracleTeacher()).sha256()
    assert "exists already" in fails(capsys, *command)
    command[-1] = str(tmp_path / "other.parquet")
    assert f"did you mean {NAME!r}?" in fails(capsys, "import-minari", "pendulum/randm-v0", *command[2:])
    assert "longest: 50 steps" in fails(capsys, *command, "--segment-length", "51")
    assert "GiB of memory" in fails(capsys, *command, "--pairs", "999999999")
    assert "did you mean 'oracle'?" in fails(capsys, *command, "--teacher", "oracel")
    with pytest.raises(UserError, match="unknown Minari dataset"):
        import_minari("nothing/like-v0", 1, 1)


def test_a_folder_that_is_no_dataset_is_told_in_one_line(episodes, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    (tmp_path / "notes (old)" / "data").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Minari cannot list the datasets of this machine: .*notes"):
        import_minari(NAME, 5, 5)


def test_no_pair_is_of_one_segment_or_comes_twice(episodes) -> None:
    """Segments of 49 steps: two, of the longest episode; of 29: twenty-four."""
    for length, pairs, there in ((49, 5, 1), (29, 500, 24 * 23 // 2), (29, 230, 230), (29, 20, 20)):
        expected = pytest.warns(UserWarning, match=f"has only {there} different pairs") if pairs > there else nothing()
        with expected:
            data = import_minari(NAME, pairs, length, OracleTeacher(), seed=3)
        sides = data.first.tolist(), data.second.tolist()
        assert len(data) == there == len({frozenset(pair) for pair in zip(*sides, strict=True)})
        assert all(first != second for first, second in zip(*sides, strict=True))
        assert there == 1 or 0.3 < np.mean(np.array(sides[0]) < np.array(sides[1])) < 0.7  # in either order
    with pytest.raises(UserError, match="leaves a single segment"):
        import_minari(NAME, 1, 50)
