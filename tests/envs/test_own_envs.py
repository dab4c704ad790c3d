"""Environments as users have them: with arguments, made by a function, with Dict observations."""

from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps

from rlhf_bilevel import Agent, LearnedReward
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.evaluation.sources import gather_records
from rlhf_bilevel.utils.json_yaml import read_yaml
from tests.cli.test_cli import fails
from tests.conftest import SMALL, Steer
from tests.support.faults import same_run


class Aims(Steer):
    """Steer with a target that an argument sets; ``where`` are those of all that were made."""

    where: ClassVar[list[float]] = []

    def __init__(self, target: float = 0.5, name: str = "") -> None:
        self.target = target
        self.where.append(target)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, _, *over = super().step(action)
        return obs, -float(abs(obs[0] - self.target)), *over


class Parts(Steer):
    """Steer with observations in two parts."""

    observation_space = Dict(x=Box(-2, 2, (1,), np.float32), goal=Box(0, 1, (2,), np.float64))  # type: ignore[assignment]

    def _parts(self, told: tuple[Any, ...]) -> tuple[Any, ...]:
        return {"x": told[0], "goal": np.array([0.5, 0.25])}, *told[1:]

    def reset(self, **given: Any) -> tuple[Any, dict]:
        return self._parts(super().reset(**given))  # type: ignore[return-value]

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        return self._parts(super().step(action))  # type: ignore[return-value]


gymnasium.register("Aims-v0", Aims)
gymnasium.register("Parts-v0", Parts)
FAST = SMALL | {"eval_freq": 10_000}
TRAIN = ["train", "pebble", "--steps", "120", "--labels", "4", "--preset", "quick"]
TRAIN += [f"--set={one}" for one in ("n_eval_episodes=1", "segment_length=5", "reward_epochs=1", "eval_freq=60")]


def test_arguments_reach_the_environment_and_are_a_part_of_the_run(tmp_path: Path) -> None:
    outs = [tmp_path / "near", tmp_path / "far"]
    for out, target in zip(outs, ("0.25", "-1"), strict=True):
        Aims.where.clear()
        main([*TRAIN, "--env", "Aims-v0", "--out", str(out), "--env-kwargs", f"target={target}", "name=''"])
        assert set(Aims.where) == {float(target)}
    assert read_yaml(outs[0] / "config.yaml")["settings"]["env_kwargs"] == {"target": 0.25, "name": ""}
    assert LearnedReward.load(outs[0]).info.env_kwargs == {"target": 0.25, "name": ""}
    Aims.where.clear()
    agent = Agent.load(outs[1], trust=True)
    agent.evaluate(1)
    assert set(Aims.where) == {-1.0}
    with pytest.raises(UserError, match="would give its environment name='': only with explicit trust"):
        Agent.load(outs[1])  # text could name a file
    with pytest.raises(UserError, match=r"env_kwargs=.*: a fork keeps the env_kwargs of its run"):
        Agent.fork(outs[1], trust=True, env_kwargs={"target": 3})
    _, told, _ = gather_records([Path(f"{out.name}={out}") for out in outs])
    assert any("differ in env_kwargs" in line and "not learn on the same environment" in line for line in told)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--env Aims-v0 --env-kwargs tarjet=1", "Aims-v0 cannot be made: TypeError"),
        ("--env Aims-v0 --env-kwargs target", "--env-kwargs takes key=value, not 'target'"),
        ("--env Aims-v0 --env-kwargs target=1 target=2", "--env-kwargs: target is given twice"),
        ("--env Aims-v0 --env-kwargs target=[", "--env-kwargs target='['"),
        ("--env Aims-v0 --env-kwargs render_mode=human", "render_mode: set here and not by a user"),
        ("--env walker_walk --env-kwargs target=1", "dm_control/walker-walk-v0 takes none"),
        ("--env Parts-v0", "flatten=true, or gymnasium.wrappers.FlattenObservation, makes one of a Dict"),
    ],
)
def test_a_wrong_argument_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, options: str, told: str
) -> None:
    assert told in fails(capsys, *TRAIN, *options.split(), "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_dict_observations_are_made_flat_where_asked(tmp_path: Path) -> None:
    main([*TRAIN, "--env", "Parts-v0", "--set", "flatten=true", "--out", str(tmp_path / "run")])
    agent = Agent.load(tmp_path / "run")
    obs, _ = agent.make_env().reset()
    assert obs.dtype == np.float32 and obs[1:].tolist() == [0.5, 0.25] and obs.shape == (3,)
    assert agent.predict(obs)[0].shape == (1,)


def test_a_function_that_makes_environments_is_one(tmp_path: Path) -> None:
    made = list[int]()

    def lowered(target: float = 0.0) -> gymnasium.Env:
        made.append(1)
        return gymnasium.wrappers.TimeLimit(Aims(target), 20)

    out = tmp_path / "run"
    agent = Agent("pebble", lowered, out=out, env_kwargs={"target": -1.5}, **FAST).learn(120)
    assert made and agent.env_id == "Own/lowered-v0" and agent.make_env().limit == 20
    assert Agent("pebble", lowered, **FAST).env_id == agent.env_id
    assert Agent("pebble", lambda: Aims(), **FAST).env_id != Agent("pebble", lambda: Steer(), **FAST).env_id
    with pytest.raises(UserError, match="an environment of your own, Own/lowered-v0: give it as env="):
        Agent.load(out)
    loaded = Agent.load(out, env=lowered)
    assert np.array_equal(loaded.evaluate(2).returns, agent.evaluate(2).returns)
    again = tmp_path / "again"
    Agent.fork(out, at=120, out=again, custom={"env": lowered}).learn(30)
    assert read_yaml(again / "config.yaml")["settings"]["env_kwargs"] == {"target": -1.5}


@pytest.mark.slow
def test_a_run_on_a_function_resumes_when_it_is_given_again(tmp_path: Path) -> None:
    class Fails(BaseCallback):
        def _on_step(self) -> bool:
            raise ZeroDivisionError

    for out in (tmp_path / "whole", tmp_path / "cut"):
        agent = Agent("pebble", Aims, out=out, checkpoint_every="50", **FAST)
        if out.name == "whole":
            agent.learn(200)
            continue
        with pytest.raises(ZeroDivisionError):
            agent.learn(200, callback=EveryNTimesteps(130, Fails()))
        with pytest.raises(UserError, match="give it as env="):
            Agent.resume(out)
        Agent.resume(out, env=Aims)
    same_run(tmp_path / "whole", tmp_path / "cut")


def test_a_function_that_makes_no_new_environment_is_refused() -> None:
    env = Aims()
    for make, told in {
        lambda: env: "returns the same environment again: it must make a new one each time",
        lambda: None: "must return an environment of Gymnasium's, not None",
        lambda: 1 / 0: "ZeroDivisionError",
    }.items():
        with pytest.raises(UserError, match=told):
            Agent("pebble", make, **FAST).learn(60)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="give its id, or a function that makes it"):
        Agent("pebble", env, **FAST)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_function_runs_in_a_process_of_its_own() -> None:
    def slow() -> gymnasium.Env:
        return Aims(-1.5)

    agent = Agent("pebble", slow, env_timeout=60, **FAST)
    env = agent.make_env()
    env.reset()
    assert env.step(np.zeros(1, np.float32))[1] < 0
    env.close()
    assert registration.own(slow) == agent.env_id
