"""A run is the same however it is asked for: one specification, completed in one place."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import parser
from rlhf_bilevel.cli import run_options, sweep
from rlhf_bilevel.config import Config
from rlhf_bilevel.config.presets import PRESETS
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.runs import start
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.studies.scheduler import LocalExecutor
from rlhf_bilevel.studies.worker import all_settings, main, work
from rlhf_bilevel.utils.files import write_sums
from tests.conftest import SMALL
from tests.support.faults import same_run

ENV = "tests.conftest:Steer-v0"
FEW: dict[str, Any] = SMALL | {
    "total_timesteps": 90,
    "labels": 4,
    "eval_freq": 90,
    "n_eval_episodes": 1,
    "reset_updates": 1,
}


def test_a_spec_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    settings = {"total_timesteps": 300, "teacher_beta": math.inf, "net_arch": (8, 8), "reset_critics": False,
                "surf.threshold": 0.9, "options": {"a": [1, 2]}, "query": "policy_aligned"}  # fmt: skip
    spec = RunSpec.of("surf", "Pendulum-v1", settings, preset="quick", threads=2, out=tmp_path, keep_every="1e3")
    again = RunSpec.from_json(spec.to_json())
    assert again == spec and hash(again) == hash(spec) and "\n" not in spec.to_json()
    assert again.keep_every == 1000 and again.out == tmp_path and again.settings["teacher_beta"] == math.inf
    assert spec != replace(spec, out=None) != spec.having(seed=1) and spec.having(seed=0).seed == spec.seed


def test_a_spec_holds_plain_values_however_they_were_written() -> None:
    """Strings of the command line, NumPy's and PyTorch's numbers of Python, YAML's lists."""
    ways: list[dict[str, Any]] = [
        {"total_timesteps": "3e2", "net_arch": "16,16", "gamma": "0.9", "reset_critics": "false", "query": "uniform",
         "reward_damping": None},
        {"total_timesteps": torch.tensor(300), "net_arch": torch.tensor([16, 16]), "gamma": torch.tensor(0.9).double(),
         "reset_critics": False, "query": "uniform"},
        {"total_timesteps": 300.0, "net_arch": [16, 16], "gamma": 0.9, "reset_critics": False, "query": "uniform"},
    ]  # fmt: skip
    first, *others = [RunSpec.of("pebble", "Pendulum-v1", way) for way in ways]
    assert others == [replace(first, settings=other.settings) for other in others]
    for other in others:
        assert other.settings.keys() == first.settings.keys()
        assert other.settings["gamma"] == pytest.approx(0.9)
        assert {**other.settings, "gamma": 0} == {**first.settings, "gamma": 0}


def test_defaults_come_before_the_preset_that_before_the_method_and_that_before_what_was_given() -> None:
    method, name, value = METHODS["twin"], "other_every", METHODS["twin"].settings["other_every"]
    default, spec = Config.model_fields[name].default, RunSpec.of("twin", "Pendulum-v1", {"total_timesteps": 300})
    assert default != value and spec.resolve().other_every == value
    assert spec.having(other_every=7).resolve().other_every == 7
    bare = replace(method, settings={})
    assert spec.resolve(bare).other_every == default
    quick, batch = replace(spec, preset="quick"), PRESETS["quick"]["batch_size"]
    assert quick.resolve().batch_size == batch != spec.resolve().batch_size
    assert quick.resolve(replace(method, settings={"batch_size": 9})).batch_size == 9
    assert quick.having(batch_size=8).resolve(replace(method, settings={"batch_size": 9})).batch_size == 8


@pytest.mark.parametrize(
    ("given", "form", "lr", "lasso"),
    [
        ({}, "additive", 0.01, 0.3),
        ({"reward_lasso": 0}, "additive", 0.01, 0),
        ({"reward_form": "linear"}, "linear", 0.01, 0),
        ({"reward_form": "network"}, "network", 3e-4, 0),
        ({"reward_form": "network", "reward_lr": 1e-3}, "network", 1e-3, 0),
    ],
)
def test_settings_that_depend_on_the_form_of_the_reward(
    given: dict[str, Any], form: str, lr: float, lasso: float
) -> None:
    config = RunSpec.of("pebble", "Pendulum-v1", {"total_timesteps": 300, **given}).resolve()
    assert (config.reward_form, config.reward_lr, config.reward_lasso) == (form, lr, lasso)


def test_methods_about_the_ensembles_spread_and_b_pref_have_networks() -> None:
    for method, preset in ("rune", "cpu"), ("pebble", "paper"):
        config = RunSpec.of(method, "Pendulum-v1", {"total_timesteps": 300}, preset=preset).resolve()
        assert (config.reward_form, config.reward_lr, config.reward_lasso) == ("network", 3e-4, 0)


def test_an_option_of_another_method_changes_nothing_and_its_own_is_read() -> None:
    spec = RunSpec.of("surf", "Pendulum-v1", {"total_timesteps": 300, "surf.threshold": "0.9", "qpa.ratio": 0})
    with pytest.raises(UserError, match=r"unknown setting 'qpa\.ratio'"):
        spec.resolve()
    own = RunSpec.of("surf", "Pendulum-v1", {"total_timesteps": 300, "surf.threshold": "0.9"})
    assert own.resolve().options["threshold"] == 0.9
    other = RunSpec.of("pebble", "Pendulum-v1", {"total_timesteps": 300, "surf.threshold": 0.9}).resolve()
    assert other == RunSpec.of("pebble", "Pendulum-v1", {"total_timesteps": 300}).resolve()


GIVEN: dict[str, Any] = {"labels": 20, "reward_damping": 7.5, "net_arch": (16, 16), "teacher_mistake": 0.2}


def asked_for(command: str, *more: str) -> Any:
    words = f"{command} --env Pendulum-v1 --steps 300 --preset quick --labels 20 --teacher mistake=0.2"
    return parser().parse_args([*words.split(), "--set", "reward_damping=7.5", "--set", "net_arch=16,16", *more])


def test_every_way_to_ask_for_a_run_gives_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Command line, file, Python, worker, sweep: and the run that is begun has them too."""
    monkeypatch.chdir(tmp_path)
    line = run_options.spec(asked_for("train penalty"), "penalty", "Pendulum-v1")
    Path("some.yaml").write_text(yaml.safe_dump({**GIVEN, "net_arch": [16, 16], "total_timesteps": 300}))
    filed = parser().parse_args(
        ["train", "penalty", "--env", "Pendulum-v1", "--preset", "quick", "--config", "some.yaml"]
    )
    agent = Agent("penalty", "Pendulum-v1", preset="quick", **GIVEN)
    agent.start(300)
    found = [
        all_settings(line),
        all_settings(run_options.spec(filed, "penalty", "Pendulum-v1")),
        agent.config.model_dump(mode="json"),
    ]

    started: list[RunSpec] = []
    monkeypatch.setattr(LocalExecutor, "start", lambda self, run: started.append(run) or Ended())
    sweep.run(asked_for("sweep penalty", "--seeds", "1", "--out", "runs"))()
    found += [all_settings(RunSpec.from_json(started[0].to_json()))]
    assert all(settings == found[0] for settings in found)
    assert (found[0]["reward_damping"], found[0]["net_arch"], found[0]["teacher_mistake"]) == (7.5, [16, 16], 0.2)
    assert found[0]["other_every"] == METHODS["penalty"].settings["other_every"]


class Ended:
    def poll(self) -> int:
        return 0

    def stop(self) -> None: ...


def test_a_setting_that_python_is_given_goes_before_the_teachers_words_as_on_the_command_line() -> None:
    agent = Agent("pebble", ENV, teacher="mistake=0.1,skip=0.2", teacher_mistake=0.3)
    args = parser().parse_args(["train", "pebble", "--env", ENV, "--steps", "90", "--teacher", "mistake=0.1,skip=0.2",
                                "--set", "teacher_mistake=0.3"])  # fmt: skip
    for settings in (agent._spec.settings, run_options.spec(args, "pebble", ENV).settings):
        assert (settings["teacher_mistake"], settings["teacher_skip"]) == (0.3, 0.2)


def test_a_spec_trains_to_the_run_that_the_agent_and_the_worker_train(tmp_path: Path) -> None:
    spec = RunSpec.of("pebble", ENV, FEW, threads=1)
    start.train(replace(spec, out=tmp_path / "spec"))
    Agent("pebble", ENV, out=tmp_path / "agent", **FEW).learn(90)
    assert work(replace(spec, out=tmp_path / "worker")) == 0
    for other in ("agent", "worker"):
        same_run(tmp_path / "spec", tmp_path / other)
    one, other = (yaml.safe_load((tmp_path / name / "config.yaml").read_text()) for name in ("spec", "agent"))
    assert one == other


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"method": "pebbel"}, "unknown method 'pebbel'; did you mean 'pebble'?"),
        ({"env": "Pendulm-v1"}, "unknown environment 'Pendulm-v1'; the nearest are Pendulum-v1"),
        ({"preset": "quik"}, "unknown preset 'quik'"),
        ({"device": "gpu"}, "device='gpu': cpu, cuda"),
        ({"checkpoint_every": "soon"}, "'soon' is no interval"),
        ({"keep_every": "often"}, "must be a whole number"),
        (
            {"settings": {"total_timesteps": 300, "reward_dampin": 1}},
            "unknown setting 'reward_dampin'; did you mean 'reward_damping'?",
        ),
        ({"settings": {"total_timesteps": 300, "reward_damping": "big"}}, "reward_damping='big': must be a number"),
        ({"settings": {"total_timesteps": 300, "options": [1]}}, "options=[1]"),
        ({"settings": {"total_timesteps": 300, "learning_starts": 300}}, "leave no step of 300 to learn from labels"),
        ({"settings": [300]}, "is no specification of a run"),
        ({"out": 7}, "is no specification of a run"),
        ({"threds": 1}, "unexpected keyword argument 'threds'"),
    ],
)
def test_a_wrong_spec_is_one_line_and_the_worker_writes_nothing(
    capsys: pytest.CaptureFixture, tmp_path: Path, change: dict[str, Any], told: str
) -> None:
    spec = RunSpec.of("pebble", "Pendulum-v1", {"total_timesteps": 300}, out=tmp_path / "run")
    assert main([json.dumps(json.loads(spec.to_json()) | change)]) == 2
    line = capsys.readouterr().err
    assert told in line and line.startswith("rlhf-bilevel: ") and line.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] in ([], [".run.lock"])


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{}", "{'method': 1}", '{"method": "pebble"}'])
def test_what_is_no_spec_is_called_so(text: str) -> None:
    with pytest.raises(UserError, match="is no specification of a run"):
        RunSpec.from_json(text)


def test_every_setting_says_what_it_is_at_run_time() -> None:
    assert [name for name, field in Config.model_fields.items() if not field.description] == []
    assert Config.model_fields["eval_freq"].description == "Steps between two evaluations."


@pytest.mark.parametrize(
    ("env", "options", "steps", "labels"),
    [
        ("walker_walk", "", 125_000, 100),
        ("metaworld_door-open-v2", "", 200_000, 1000),
        ("walker_walk", "--steps 5000 --labels 7", 5000, 7),
    ],
)
def test_the_preset_of_figure_1_has_its_steps_and_labels(env: str, options: str, steps: int, labels: int) -> None:
    args = parser().parse_args(["train", "pebble", "--env", env, "--preset", "figure1", *options.split()])
    spec = run_options.spec(args, "pebble", env)
    config = spec.resolve()
    assert (spec.steps, config.total_timesteps, config.labels, config.action_repeat) == (steps, steps, labels, 2)
    assert (config.anchor_share, config.critic_layer_norm, config.policy_aligned) == (0.5, True, True)


def test_the_preset_of_the_paper_has_what_b_pref_has() -> None:
    config = RunSpec.of("pebble", "Pendulum-v1", {"total_timesteps": 9000}, preset="paper").resolve()
    assert (config.query, config.policy_aligned, config.anchor_share) == ("disagreement", False, 0)
    assert (config.newest_share, config.critic_layer_norm) == (0, False)


def test_a_run_of_before_keeps_the_defaults_of_before(tmp_path: Path) -> None:
    """Its config.yaml is of version 1, and has no setting that did not exist."""
    out = tmp_path / "run"
    settings = {key: value for key, value in FEW.items() if key != "total_timesteps"}
    former = {"critic_layer_norm": False, "anchor_share": 0, "reward_form": "network", "reward_lasso": 0}
    Agent("pebble", ENV, out=out, **settings | former).learn(90)
    lines = [
        line.replace("version: 2", "version: 1")
        for line in (out / "config.yaml").read_text().splitlines(keepends=True)
        if not line.startswith(tuple(f"  {name}:" for name in former))
    ]
    (out / "config.yaml").write_text("".join(lines))
    write_sums(out, [path.name for path in out.iterdir() if path.suffix in (".yaml", ".zip", ".safetensors", ".csv")])
    agent = Agent.load(out)
    assert agent.config is not None
    assert {name: getattr(agent.config, name) for name in former} == former
    agent.evaluate(1)
