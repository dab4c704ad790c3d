"""Runs that learn side by side become what each becomes alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_bilevel.agent import Agent
from rlhf_bilevel.data.answers import no_answers
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.records import read_records
from rlhf_bilevel.studies import batched_seeds
from rlhf_bilevel.studies.batched_seeds import learn_together
from rlhf_bilevel.training.loop import train
from tests.conftest import SMALL, build
from tests.learners.test_batched_sac import Plain, assert_alike


@pytest.mark.parametrize(
    "method", ["penalty", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pebble", "mrn"))]
)
def test_each_run_of_a_cohort_is_the_one_that_it_is_alone(method: str) -> None:
    settings: dict[str, Any] = {
        "total_timesteps": 120,
        "learning_starts": 20,
        "pretrain_steps": 40,
        "refresh_every": 10,
    }
    runs, alone = ([build(method, seed=seed, **settings) for seed in (0, 1, 2)] for _ in range(2))
    rows = list(batched_seeds.train(runs))
    assert len(rows) == 120 and all(len(row) == 3 for row in rows)
    for number, run in enumerate(alone):
        measured = list(train(run))
        assert [row[number].keys() for row in rows] == [row.keys() for row in measured]
        assert torch.allclose(runs[number].store.table, run.store.table, rtol=1e-3, atol=1e-3)
        assert torch.equal(runs[number].prefs[:].label, run.prefs[:].label)
        for one, other in zip(runs[number].learners, run.learners, strict=True):
            assert_alike(one, other, 1e-3)  # type: ignore[arg-type]
    assert not torch.allclose(runs[0].store.table, runs[1].store.table, atol=0.1)


@pytest.mark.slow
def test_runs_may_learn_their_first_reward_at_different_steps() -> None:
    """Then one is due more updates at a step than the others."""
    runs = [build("pebble", seed=seed, total_timesteps=120, pretrain_steps=20, train_freq=1) for seed in (0, 1)]
    answering, silent = runs[1].teacher, [True]
    runs[1].teacher = lambda queries: answering(queries) if not silent else no_answers(queries)
    with pytest.warns(UserWarning, match="answered none"):
        for rows in batched_seeds.train(runs):
            if runs[0].step == 60:
                silent.clear()
            assert all(len(row) for row in rows) or runs[0].step <= runs[0].config.learning_starts
    assert all(run.learnt for run in runs)
    updates = [run.learners[0].model._n_updates for run in runs]  # type: ignore[attr-defined]
    assert updates[0] == updates[1] == 120 - runs[0].config.learning_starts + runs[0].config.reset_updates


def test_a_cohort_needs_learners_that_can_be_stacked() -> None:
    with pytest.raises(UserError, match="plain SAC"):
        next(batched_seeds.train([build("pebble", own={"algorithm": Plain})]))


def test_agents_that_learn_together_leave_a_folder_each(tmp_path: Path) -> None:
    agents = [
        Agent("pebble", "Steer-v0", out=tmp_path / str(seed), seed=seed, **SMALL | {"eval_freq": 100, "labels": 20})
        for seed in (0, 1)
    ]
    learn_together(agents, 200)
    returns = []
    for seed, agent in enumerate(agents):
        found = read_records(tmp_path / str(seed))
        assert [point.step for point in found] == [100, 200] and found[0].seed == seed
        returns.append([point.true_return for point in found])
        loaded = Agent.load(tmp_path / str(seed))
        obs = agent.make_env().reset()[0]
        assert loaded.predict(obs)[0] == pytest.approx(agent.predict(obs)[0])
    assert returns[0] != returns[1]
