"""The site's pages that are made from the code have all that the code has; a page that misleads fails the build."""

import csv
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import COMMANDS
from rlhf_bilevel.cli.settings import rows_of
from rlhf_bilevel.config import Config, Options
from rlhf_bilevel.registries import METHODS
from site_tools import hooks, reference
from site_tools.pages import ROOT


def test_the_settings_page_has_every_setting_once() -> None:
    text = reference.settings()
    shown = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(shown) == sorted(Config.model_fields.keys() - {"options"})
    assert "| `n_eval_episodes` | whole number, at least 1, at most 10000 | 5; paper: 10 |" in text
    assert text.startswith("## Budget\n")


def test_the_methods_page_has_every_option() -> None:
    shown = re.findall(r"^\| `([\w.]+)` \|", reference.methods(), re.MULTILINE)
    assert shown == [f"{name}.{key}" for name in METHODS.ours for key in METHODS[name].options.model_fields]


def test_an_option_without_a_meaning_fails_the_build() -> None:
    class Bare(Options):
        weight: float = 1.0

    with pytest.raises(ValueError, match=r"mine\.weight: nothing says what it means"):
        reference.row_of(rows_of(Bare, "mine.")[0])


def test_the_command_lines_page_has_every_command_and_its_options() -> None:
    text = reference.command_line()
    assert re.findall(r"^## (\S+)$", text, re.MULTILINE) == list(COMMANDS)
    assert "| `--keep-every STEPS` | 0 | keep a checkpoint every so many steps, for watch and fork; 0: none |" in text
    assert "| `--env ENV` | required | such as Pendulum-v1, dm_control/walker-walk-v0" in text


def test_a_public_definition_without_a_docstring_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("fresh", "A module.")
    code = "class A:\n    'A.'\n    x: int = 0\n    def f(self): ...\n    def _g(self): ...\n"
    code += "    def h(self):\n        'H.'\ndef b(): ...\n"
    exec(code, module.__dict__)
    monkeypatch.setitem(sys.modules, "fresh", module)
    assert hooks.undocumented("fresh") == ["fresh.b", "fresh.A.f"]
    assert hooks.undocumented("fresh.A") == ["fresh.A.f"]


def test_everything_on_the_pythons_page_has_a_docstring() -> None:
    names = re.findall(r"^::: (\S+)", (ROOT / "docs/reference/python.md").read_text(), re.MULTILINE)
    assert len(names) > 20 and not [missing for name in names for missing in hooks.undocumented(name)]


@pytest.mark.parametrize("tag", ['<script src="https://x.org/a.js">', '<link rel="stylesheet" href="//x.org/a.css">',
                                 "<img alt='' src='http://x.org/a.png'>"])  # fmt: skip
def test_what_would_be_loaded_from_elsewhere_is_found(tag: str) -> None:
    assert hooks.LOADS.search(f"<p>text</p>{tag}")
    assert not hooks.LOADS.search('<a href="https://x.org">x</a><img src="figures/a.png"><link href="assets/a.css">')


def test_every_metric_that_a_run_logs_is_on_the_metrics_page(tmp_path: Path) -> None:
    small = {"net_arch": 8, "reward_net_arch": 8, "batch_size": 8, "segment_length": 10, "reward_epochs": 2}
    small |= {"eval_freq": 300, "n_eval_episodes": 1, "num_interact": 150, "refresh_every": 150, "reset_updates": 1}
    small |= {"entropy_states": 16, "gradient_steps": 1, "train_freq": 5, "action_repeat": 4, "other_every": 2}
    options = {"cost_hidden": (8,), "cost_steps": 2, "cost_pairs": 8, "visit_batch": 8}
    Agent("penalty", "Pendulum-v1", labels=8, out=tmp_path / "run", options=options, **small).learn(400)
    with (tmp_path / "run/progress.csv").open() as rows:
        columns = next(csv.reader(rows))
    text = (ROOT / "docs/reference/metrics.md").read_text() + (ROOT / "docs/methods/penalty.md").read_text()
    assert len(columns) > 20
    assert not [key for key in columns if f"`{key}`" not in text and not key.startswith("train_1/")]
