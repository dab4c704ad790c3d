"""A fork goes on from another run's checkpoint: the same run where nothing is changed, another where something is."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_bilevel import Agent
from rlhf_bilevel.checkpoint import Checkpoints
from rlhf_bilevel.files import Refused, sha256
from rlhf_bilevel.keeper import CHECKPOINTS
from tests.conftest import FEW, SMALL
from tests.test_cli import fails
from tests.test_resume import QUICK, equal, state

STEPS = 300


def run(method: str, out: Path | None, steps: int = STEPS, **settings: Any) -> Agent:
    agent = Agent(method, "tests.conftest:Steer-v0", out=out, keep_every=100, **(QUICK | settings))
    return agent.learn(steps)


def snapshot(folder: Path) -> dict[str, bytes]:
    """What is in its files, but for those that reading a SQLite file makes and leaves."""
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.endswith(("-shm", "-wal"))]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("runs") / "whole"
    return out, state(run("penalty", out))


def steps_of(folder: Path) -> list[int]:
    return Checkpoints(folder / CHECKPOINTS, "").steps()


def test_the_last_checkpoint_stays_and_those_that_are_to_be_kept(whole: tuple[Path, str]) -> None:
    assert steps_of(whole[0]) == [100, 200, 300]


@pytest.mark.parametrize("at", [100, 250])
def test_a_fork_without_a_change_is_the_same_run_bit_for_bit(tmp_path: Path, whole: tuple[Path, str], at: int) -> None:
    before = snapshot(whole[0])
    forked = Agent.fork(whole[0], at=at, out=tmp_path / "fork").learn(STEPS - at // 100 * 100)
    assert state(forked) == whole[1]
    assert snapshot(whole[0]) == before
    equal(tmp_path / "fork", whole[0])


def test_a_fork_without_a_folder_is_the_same_run_too(whole: tuple[Path, str]) -> None:
    assert state(Agent.fork(whole[0], at=100).learn(STEPS - 100)) == whole[1]


@pytest.mark.parametrize("method", ["pebble", "rime", "prefppo", "sac"])
def test_so_it_is_with_other_methods(tmp_path: Path, method: str) -> None:
    expected = state(run(method, tmp_path / "run", **FEW.get(method, {})))
    assert state(Agent.fork(tmp_path / "run", at=200).learn(100)) == expected


def test_a_fork_that_is_killed_can_be_resumed(tmp_path: Path, whole: tuple[Path, str]) -> None:
    class Stop(Exception):
        pass

    def stop(*_: Any) -> bool:
        raise Stop

    agent = Agent.fork(whole[0], at=100, out=tmp_path / "fork")
    with pytest.raises(Stop):
        agent.learn(200, callback=stop)  # type: ignore[arg-type]
    assert state(Agent.resume(tmp_path / "fork")) == whole[1]


def test_a_run_goes_on_after_its_end_with_more_steps_and_more_labels(tmp_path: Path, whole: tuple[Path, str]) -> None:
    again = Agent.load(whole[0], out=tmp_path / "more").learn(100)
    assert again.run and again.run.step == STEPS + 100 and len(again.run.prefs) == 40
    more = Agent.fork(whole[0], labels=60).learn(100)
    assert more.run and len(more.run.prefs) > 40
    assert (tmp_path / "more" / "SHA256SUMS").is_file()


def test_another_seed_draws_everything_anew(whole: tuple[Path, str]) -> None:
    one, other = (Agent.fork(whole[0], at=200, seed=seed).learn(50) for seed in (8, 9))
    assert one.run and other.run
    assert not torch.equal(one.run.store.act[200:250], other.run.store.act[200:250])
    assert torch.equal(one.run.store.obs[:200], other.run.store.obs[:200])


def test_a_second_learner_begins_as_the_agent_with_random_numbers_of_its_own(tmp_path: Path) -> None:
    agent = run("pebble", tmp_path / "run")
    forked = Agent.fork(tmp_path / "run", method="twin")
    learners: list[Any] = []

    def first(local: Any, _: Any) -> bool:
        assert forked.run
        learners.extend(
            (
                {name: value.clone() for name, value in each.model.policy.state_dict().items()},
                each._rng.get_state(),
            )
            for each in forked.run.learners  # type: ignore[attr-defined]
        )
        return False

    # before the first update: the callback is called after the first step, whose update comes first
    forked.learn(2, callback=first)  # type: ignore[arg-type]
    (one, rng), (other, other_rng) = learners
    assert not torch.equal(rng, other_rng)
    assert forked.run and len(forked.run.learners) == 2
    assert agent.run is not None
    final = agent.run.learners[0].model.policy.state_dict()  # type: ignore[attr-defined]
    for name, weight in final.items():
        assert torch.allclose(other[name], weight, atol=0.05), name
        assert torch.allclose(one[name], weight, atol=0.05), name


def test_two_learners_become_one_and_rows_keep_their_writers(tmp_path: Path) -> None:
    run("twin", tmp_path / "run")
    forked = Agent.fork(tmp_path / "run", method="pebble").learn(50)
    assert forked.run
    writers = [len(forked.run.store.episodes(number)) for number in (0, 1)]
    assert writers[1] > 0 and sum(writers) == len(forked.run.store.episodes())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--at 50", "no checkpoint at step 50 or before"),
        ("--steps 200", "a fork must end after it"),
        ("--labels 10", "has used 40 labels already"),
        ("--set segment_length=5", "segment_length=5: a fork keeps the segment_length of its run, 10"),
        ("--set hidden=8,8", "a fork keeps the hidden of its run"),
        ("--set sigm=3", "did you mean 'sigma'?"),
        ("--set surf.threshold=.9", "surf alone has it"),
        ("--teacher human", "a fork is not labelled by people"),
        ("--method prefppo", "a fork keeps the algorithm"),
    ],
)
def test_what_cannot_be_forked_is_told_in_one_line(
    capsys: pytest.CaptureFixture, tmp_path: Path, whole: tuple[Path, str], words: str, told: str
) -> None:
    out = tmp_path / "fork"
    assert told in fails(capsys, "fork", str(whole[0]), "--trust", "--out", str(out), *words.split())
    assert not out.exists()


def test_a_run_without_a_checkpoint_cannot_be_forked(tmp_path: Path) -> None:
    Agent("pebble", "tests.conftest:Steer-v0", out=tmp_path / "run", checkpoint_every="0", **SMALL).learn(100)
    with pytest.raises(Refused, match="has no checkpoint: it has none"):
        Agent.fork(tmp_path / "run").learn(10)


def test_the_settings_hash_is_the_forks_own(tmp_path: Path, whole: tuple[Path, str]) -> None:
    Agent.fork(whole[0], at=200, out=tmp_path / "fork", gamma=0.9).learn(50)
    told = sha256((tmp_path / "fork" / "config.yaml").read_bytes())
    assert Checkpoints(tmp_path / "fork" / CHECKPOINTS, told).load() is not None
