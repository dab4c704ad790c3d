"""Settings that every run had once, and that are options of some methods now: the old names are still read."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_bilevel.__main__ import parser
from rlhf_bilevel.agent import Agent
from rlhf_bilevel.cli.run_options import spec
from rlhf_bilevel.config import Config
from rlhf_bilevel.config.names import MOVED
from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.data.run_folder import CONFIG, RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.utils.files import write_sums
from tests.cli.test_cli import fails
from tests.conftest import SMALL

OLD: dict[str, Any] = {
    "sigma": 20.0, "sigma_spread": 0.0, "upper_weight": 1.0, "gap_share": 0.5, "gap_surgery": False, "sides": "one",
    "careful_from": "never", "fork_response": False, "objective": "preference_loss", "win_weight": 1.0,
    "cost": "labels", "cost_hidden": [8], "cost_learning_rate": 0.001, "cost_steps": 5, "cost_pairs": 64,
    "cost_labels": 250, "visit_episodes": 1, "visit_batch": 32, "visit_discount": 1.0, "use_gap": True,
    "use_cost": True,
}  # fmt: skip
"""As config.yaml had them, of a method that has them all."""
FEW = SMALL | {
    "eval_freq": 160, "train_freq": 10, "labels": 20, "reset_updates": 0, "refresh_every": 80, "n_eval_episodes": 1
}  # fmt: skip
TRAIN = "--env Pendulum-v1 --steps 300"


def options(method: str, **settings: Any) -> dict[str, Any]:
    Agent(method, "Steer-v0", **settings)
    return RunSpec.of(method, "Steer-v0", settings).resolve().options


def test_they_are_no_settings_of_all_runs_and_each_is_an_option_of_the_methods_that_are_named() -> None:
    assert OLD.keys() == MOVED.keys() and not MOVED.keys() & Config.model_fields.keys()
    for name, methods in MOVED.items():
        assert all(name in METHODS[method].options.model_fields for method in methods), name


def test_an_old_name_means_the_methods_option_and_a_warning_says_what_it_is_called() -> None:
    with pytest.warns(UserWarning, match="^sigma is called penalty.sigma now$"):
        assert options("penalty", sigma=20.0)["sigma"] == 20.0
    with pytest.warns(UserWarning, match="^cost is called hypergradient.cost now$"):
        assert options("hypergradient", cost="labels")["cost"] == "labels"
    assert options("penalty", **{"penalty.sigma": 20.0}) == options("penalty", options={"sigma": 20.0})


def test_for_another_method_it_would_change_nothing_and_is_refused() -> None:
    for method in ("pebble", "incumbent"):  # the latter has a sigma of its own
        with pytest.raises(UserError, match=rf"sigma: penalty alone has it, and this is {method}"):
            Agent(method, "Steer-v0", sigma=20.0)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"train pebble {TRAIN} --set sigma=5", "sigma: penalty alone has it, and this is pebble"),
        (
            f"train pebble {TRAIN} --set cost=labels",
            "cost: penalty and hypergradient alone have it, and this is pebble",
        ),
        (f"tune incumbent {TRAIN} --tune sigma=1..5", "sigma: penalty alone has it, and this is incumbent"),
        (f"train penalty {TRAIN} --sigma 5", "sigma is a setting: --set penalty.sigma=VALUE"),
        (f"train penalty {TRAIN} --set sigma=5 --set penalty.sigma=6", "sigma and penalty.sigma are the same setting"),
        (f"train penalty {TRAIN} --set penalty.objective=win_rate", "objective=win_rate has no cost=information"),
        ("fit-reward . --env Pendulum-v1 --set sigma=5", "unknown setting 'sigma'; did you mean 'penalty.sigma'?"),
    ],
)
def test_the_command_line_refuses_it_where_it_would_change_nothing(
    capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / CONFIG).touch()
    assert message in fails(capsys, *command.split())


@pytest.mark.parametrize("method", ["penalty", "pebble"])
def test_a_folder_of_before_is_evaluated_and_begins_another_run(tmp_path: Path, method: str) -> None:
    run = tmp_path / "run"
    own = {"options": OLD} if method == "penalty" else {}
    agent = Agent(method, "Pendulum-v1", out=run, **FEW | own).learn(160)
    told = yaml.safe_load((run / CONFIG).read_text())
    told["settings"] |= OLD | {"options": {}}
    (run / CONFIG).write_text(yaml.safe_dump(told))
    write_sums(run, [path.name for path in run.iterdir() if path.suffix in (".yaml", ".zip", ".safetensors", ".csv")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert validate(RunFolder(run).trusted_config(trust=False)["settings"]) == agent.config
        assert Agent.load(run).evaluate(1).returns == agent.evaluate(1).returns
        args = parser().parse_args(["train", method, "--env", "Pendulum-v1", "--config", str(run / CONFIG)])
        assert spec(args, method, "Pendulum-v1").resolve() == agent.config


def test_a_random_run_of_before_is_evaluated(tmp_path: Path) -> None:
    run = tmp_path / "run"
    agent = Agent("random", "Pendulum-v1", out=run, **FEW).learn(160)
    told = yaml.safe_load((run / CONFIG).read_text())
    assert told["algorithm"] == "RandomPolicy"
    (run / CONFIG).write_text(yaml.safe_dump(told | {"algorithm": "Uniform"}))
    write_sums(run, [path.name for path in run.iterdir() if path.suffix in (".yaml", ".zip", ".safetensors", ".csv")])
    assert Agent.load(run).method is agent.method
