"""Training on a reward that was learnt before: from one file, without asking anybody."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from rlhf_bilevel import Agent, LearnedReward
from rlhf_bilevel.__main__ import parser
from rlhf_bilevel.cli import run_options
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.teachers import OracleTeacher
from rlhf_bilevel.rewards.forms import LinearReward
from rlhf_bilevel.rewards.reward_file import BoxActions, RewardInfo
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.utils.json_yaml import read_yaml
from tests.cli.test_cli import fails
from tests.conftest import SMALL, Steer
from tests.support.faults import same_run

FAST = {key: value for key, value in SMALL.items() if not key.startswith(("labels", "reward_"))}


class Short(Steer):
    action_space = Box(-0.5, 0.5, (1,), np.float32)


gymnasium.register("Narrow-v0", Short)
gymnasium.register("Twin-v0", Steer)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """r = tanh(x), of one linear member, with two simulator steps in a step."""
    path = tmp_path_factory.mktemp("reward") / "right.safetensors"
    reward = LinearReward(1, 1, 1, (), torch.Generator())
    with torch.no_grad():
        reward.weights[0].copy_(torch.tensor([[[1.0], [0.0]]]))
        reward.biases[0].zero_()
    actions = BoxActions(low=[-1.0], high=[1.0], dtype="float32")
    info = RewardInfo(
        env="Steer-v0", env_kwargs={},
        protocol="bpref", action_repeat=2, termination="as_is", observations=1, actions=actions,
        form="linear", level=0.0, bound=1.0, pessimism=0.0, labels=7,
    )  # fmt: skip
    LearnedReward(reward, info).save(path)
    return path


@pytest.mark.parametrize(("method", "settings"), [("pebble", {}), ("prefppo", {"options": {"n_steps": 64}})])
def test_learners_see_the_given_reward_from_the_first_step_and_nobody_is_asked(
    file: Path, method: str, settings: dict[str, Any]
) -> None:
    agent = Agent(method, "Steer-v0", reward=file, gamma=0.9, **FAST | settings).learn(400)
    run = agent.run
    assert run is not None and not run.prefs and not run.asked and run.config.labels == 0
    assert (run.config.action_repeat, run.config.ensemble_size, run.config.reward_form) == (2, 1, "linear")
    rows = torch.arange(run.store.size)
    seen: Any = run.learners[0]
    signal = seen._view.reward if method == "pebble" else seen._row_reward
    assert torch.equal(signal(rows), torch.tanh(run.store.obs[:, 0]))
    if method == "pebble":  # whose steps are enough
        env, ends = agent.make_env(), []
        for _ in range(3):
            obs, over = env.reset()[0], False
            while not over:
                obs, _, _, over, _ = env.step(agent.predict(obs)[0])
            ends.append(obs[0])
        assert np.mean(ends) > 1.5  # the environment itself pays most at 0.5


def test_the_run_is_recorded_and_resumes_bit_for_bit(file: Path, tmp_path: Path) -> None:
    def fails_at_130(told: dict[str, Any], _: Any) -> bool:
        return told["self"].num_timesteps != 130 or 1 / 0

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Agent("pebble", "Steer-v0", reward=file, out=whole, **FAST).learn(200)
    with pytest.raises(ZeroDivisionError):
        Agent("pebble", "Steer-v0", reward=file, out=cut, checkpoint_every="50", **FAST).learn(200, fails_at_130)
    told = read_yaml(cut / "config.yaml")["settings"]
    assert told["reward"] == str(file) and len(told["reward_sha256"]) == 64 and told["labels"] == 0
    Agent.resume(cut)
    same_run(whole, cut)
    again, first = LearnedReward.load(whole), LearnedReward.load(file)
    obs = np.linspace(-2, 2, 9)[:, None]
    assert again.info == first.info and np.array_equal(again(obs, obs / 2), first(obs, obs / 2))
    fork = Agent.fork(whole).learn(50)
    assert fork.reward is not None and fork.reward.labels == 7 and fork.run is not None and fork.run.step == 250
    with pytest.raises(UserError, match="labels=9: a reward is given, and nobody is asked"):
        Agent.fork(whole, labels=9)


def test_a_runs_folder_is_given_by_its_file_and_a_changed_file_is_not_learnt_on(file: Path, tmp_path: Path) -> None:
    copied = tmp_path / "reward.safetensors"
    copied.write_bytes(file.read_bytes())
    agent = Agent("pebble", "Steer-v0", reward=tmp_path, **FAST)
    copied.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\x3f")
    agent.learn(60)  # which file it is, is told when it begins
    assert agent.config is not None and agent.config.reward == str(copied)
    agent = Agent("pebble", "Steer-v0", **FAST | {"reward": tmp_path, "reward_sha256": agent.config.reward_sha256})
    copied.write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="is not the file that this run began with"):
        agent.learn(60)


@pytest.mark.parametrize("use", [True, False])
def test_whether_it_depends_on_actions_follows_from_the_file(file: Path, tmp_path: Path, use: bool) -> None:
    learned = LearnedReward.load(file)
    if not use:
        learned.ensemble.ignore_actions(1)
    learned.save(tmp_path / "one.safetensors")
    own = {"reward": str(tmp_path / "one.safetensors"), "total_timesteps": 100}
    assert RunSpec.of("pebble", "Steer-v0", own).resolve().reward_use_action is use
    with pytest.raises(UserError, match=f"reward_use_action={not use}: the reward in .* has reward_use_action={use}"):
        RunSpec.of("pebble", "Steer-v0", own | {"reward_use_action": not use}).resolve()


def test_another_environment_of_the_same_spaces_is_named(file: Path) -> None:
    with pytest.warns(UserWarning, match="was learnt on Steer-v0, not on Twin-v0"):
        Agent("pebble", "Twin-v0", reward=file, **FAST).learn(60)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("pebble --env Steer-v0 --labels 5", "labels=5: a reward is given, and nobody is asked"),
        ("pebble --env Steer-v0 --teacher mistake=0.1", "teacher_mistake=0.1: a reward is given"),
        ("pebble --env Steer-v0 --teacher human", "teacher_human=True: a reward is given"),
        ("pebble --env Steer-v0 --set action_repeat=3", "action_repeat=3: the reward in FILE has action_repeat=2"),
        ("pebble --env Steer-v0 --set termination=absorb", "termination=absorb: the reward in FILE has"),
        ("pebble --env Steer-v0 --set ensemble_size=3", "ensemble_size=3: the reward in FILE has ensemble_size=1"),
        ("pebble --env Steer-v0 --set reward_form=network", "reward_form=network: the reward in FILE has"),
        (
            "penalty --env Steer-v0",
            "penalty: on a given reward nothing is left of it but its learner: choose pebble (SAC",
        ),
        ("sac --env Steer-v0", "sac: on a given reward nothing is left"),
        (
            "pebble --env Pendulum-v1",
            "Pendulum-v1 does not fit FILE: the reward is of Steer-v0, with observations of 1",
        ),
        ("pebble --env Narrow-v0", "Narrow-v0 does not fit FILE: the reward is of Steer-v0, with actions Box(-1.0"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line_and_nothing_is_written(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture, options: str, told: str
) -> None:
    out = tmp_path / "run"
    command = ["train", *options.split(), "--steps", "60", "--reward", str(file), "--out", str(out)]
    assert told.replace("FILE", str(file)) in fails(capsys, *command)
    assert not out.exists()


def test_a_presets_labels_are_not_asked_for_where_a_reward_is_given(file: Path) -> None:
    words = f"train pebble --env Steer-v0 --preset figure1 --reward {file} --set action_repeat=2".split()
    typed = run_options.spec(parser().parse_args(words), "pebble", "Steer-v0")
    made = RunSpec.of("pebble", "Steer-v0", {"total_timesteps": 125_000, "reward": file}, preset="figure1")
    assert typed.resolve().labels == made.resolve().labels == 0


def test_no_file_no_reward_and_no_teacher_beside_it(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    train = ["train", "pebble", "--env", "Steer-v0", "--steps", "60", "--reward"]
    assert "nowhere cannot be read: No such file" in fails(capsys, *train, str(tmp_path / "nowhere"))
    (tmp_path / "config.yaml").write_text("steps: 3")
    assert "is damaged or no safetensors file" in fails(capsys, *train, str(tmp_path / "config.yaml"))
    with pytest.raises(UserError, match="nobody is asked where it is given, and a teacher is given"):
        Agent("pebble", "Steer-v0", reward=file, teacher=OracleTeacher())


def test_a_reward_of_another_range_is_refused(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    learned = LearnedReward.load(file)
    learned.ensemble.bound = 5.0
    LearnedReward(learned.ensemble, learned.info.model_copy(update={"bound": 5.0})).save(tmp_path / "wide.safetensors")
    command = ["train", "pebble", "--env", "Steer-v0", "--steps", "60", "--reward", str(tmp_path / "wide.safetensors")]
    assert "its reward is 0 + 5 tanh, and learners see 0 + tanh" in fails(capsys, *command)
