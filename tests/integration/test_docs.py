"""What the documents show is what the package does: every command, and every block of Python."""

import json
import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks.learning.behaviours import spins
from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import parser
from rlhf_bilevel.config.names import current_names
from rlhf_bilevel.config.reading import validate, validate_as
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.teacher_spec import teacher_settings
from rlhf_bilevel.registries import METHODS
from site_tools import pages, writing

ROOT = Path(__file__).parents[2]
TUTORIAL = "docs/tutorials/label-it-yourself.md"
CALLBACKS, ELSEWHERE = "docs/how-to/callbacks.md", "docs/how-to/reward-elsewhere.md"
OWN_TESTS = {"README.md", TUTORIAL, CALLBACKS, ELSEWHERE}
WITH_PYTHON = [path.relative_to(ROOT).as_posix() for path in writing.plain_pages() if pages.blocks(path, "python")]
TINY = {
    r"\.learn\([\d_]+": ".learn(300",
    r"episodes=\d+": "episodes=1",
    "progress_bar=True": "",
    r"labels=\d+": "labels=8",
}
"""What makes a block that takes a minute take a second."""


def blocks(language: str, page: str = "README.md") -> list[str]:
    return pages.blocks(ROOT / page, language)


def shortened(code: str) -> str:
    for pattern, text in TINY.items():
        code = re.sub(pattern, text, code)
    return code


def test_the_readmes_python_runs_and_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    assert len([line for line in example.splitlines() if line]) <= 5
    names: dict = {}
    exec(shortened(example), names)
    assert "'mean': " in capsys.readouterr().out
    again = Agent.load("runs/cartpole")
    obs = again.make_env().reset()[0]
    assert again.predict(obs)[0] == names["agent"].predict(obs)[0]


def test_the_callbacks_python_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    evaluates, logs = blocks("python", CALLBACKS)
    names: dict = {}
    exec(evaluates.replace("1_000", "200").replace("eval_freq=500", "eval_freq=100"), names)
    assert "Eval num_timesteps=100" in capsys.readouterr().out
    exec(logs.replace("1_000", "200").replace("runs/logs", str(tmp_path)), names)
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert rows[-1]["time/total_timesteps"] == 200 and "log.txt" in {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_the_python_for_a_reward_elsewhere_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python", ELSEWHERE)
    names: dict = {}
    exec(
        example.replace("10_000", "300")
        .replace("labels=100", "labels=4, reward_net_arch=(8,), queries_per_session=4")
        .replace('PPO("MlpPolicy", venv)', 'PPO("MlpPolicy", venv, n_steps=64)'),
        names,
    )
    paid, env = names["paid"], names["env"]
    assert f"{paid} {names['info']['true_reward']}" in capsys.readouterr().out
    assert paid == names["reward"](names["obs"], names["action"]) and env.learned.info == names["reward"].info


@pytest.mark.slow
def test_the_tutorials_python_runs_and_judges_as_what_was_measured_did() -> None:
    (example,) = blocks("python", TUTORIAL)
    names: dict = {}
    exec(example.replace("progress_bar=True", "").replace("8_000", "300").replace("labels=150", "labels=20"), names)
    assert 0 < len(names["agent"].run.prefs) <= 20
    obs = torch.randn(50, 5) * 10
    assert torch.equal(names["spins"](obs), spins(obs))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs that the pages load: two that came to their end, and one that was cut off."""
    folder = tmp_path_factory.mktemp("pages") / "runs"
    small = {"labels": 8, "preset": "quick"}
    Agent("pebble", "Pendulum-v1", **small, out=folder / "pendulum").learn(300)
    Agent("pebble", "dm_control/cartpole-balance-v0", **small, out=folder / "first").learn(300)

    def cut(names: dict, _: dict) -> bool:
        if names["self"].num_timesteps == 200:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        Agent("pebble", "Pendulum-v1", **small, out=folder / "cut", checkpoint_every="100").learn(300, callback=cut)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in WITH_PYTHON if page not in OWN_TESTS])
def test_a_pages_python_runs_from_top_to_bottom(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for run in finished.iterdir():
        (tmp_path / "runs" / run.name).symlink_to(run)
    names: dict = {"__name__": page}
    for block in blocks("python", page):
        if "render_mode" in block:
            try:
                registration.make("dm_control/cartpole-balance-v0", 0, render_mode="rgb_array").render()
            except UserError as error:
                pytest.skip(str(error))
        exec(shortened(block), names)


def test_every_block_of_python_can_be_read_and_imports_what_there_is() -> None:
    count = 0
    for page in pages.written():
        for block in pages.blocks(page, "python"):
            compile(block, str(page), "exec")
            count += 1
            if page.name != "CONTRIBUTING.md":  # test_extension.py runs all of it
                imports = re.findall(
                    r"^(?:from rlhf_bilevel\S* import .+|import rlhf_bilevel\S*)$", block, re.MULTILINE
                )
                exec("\n".join(imports), {})
    assert count > 20


def shown_commands() -> Iterator[tuple[str, list[str]]]:
    for page in pages.written():
        for line in pages.commands(page):
            yield page.relative_to(ROOT).as_posix(), shlex.split(line, comments=True)


def test_every_command_of_the_documents_passes_the_parser_and_names_settings_that_exist() -> None:
    count = 0
    for page, words in shown_commands():
        if words[:1] == ["rlhf-bilevel"] and page != "CONTRIBUTING.md":
            args = parser().parse_args([word for word in words[1:] if word != "&"])
            check_settings(page, args.__dict__)
            count += 1
    assert count > 50


def check_settings(page: str, args: dict) -> None:
    methods = args.get("method") or []
    methods = [methods] if isinstance(methods, str) else methods
    if any(":" in method for method in methods):
        return
    pairs = dict(pair.split("=", 1) for pair in args.get("set") or [])
    given = current_names({key: yaml.safe_load(value) for key, value in pairs.items()}, methods)
    shared = {key: value for key, value in given.items() if "." not in key}
    words = args.get("teacher") or "none"
    files = re.match("re(play|run)=", words)  # which are not there
    taught = {} if words == "none" or files else teacher_settings(words)
    assert validate({"total_timesteps": args.get("steps") or 100_000} | taught | shared), page
    for method in methods:
        own = {key.split(".")[1]: value for key, value in given.items() if key.startswith(f"{method}.")}
        validate_as(METHODS[method].options, own, f"{method}.")


@pytest.mark.parametrize(
    "line",
    ["--set n_n_eval_episodes=1", "--teacher mistak=1", "--stepps 5", "--set surf.treshold=0.9", "--set gamma=2"],
)
def test_a_documented_command_that_is_wrong_would_be_found(line: str) -> None:
    with pytest.raises((UserError, SystemExit)):
        check_settings("page", parser().parse_args(f"train surf --env E {line}".split()).__dict__)


def test_other_commands_of_the_documents_exist() -> None:
    targets = re.findall(r"^([\w-]+)[\w /.-]*:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for page in pages.written():
        for target in re.findall(r"(?<![\w-])`?make ([a-z][\w-]*)(?=[`\s])", "\n".join(pages.commands(page))):
            assert target in targets, f"{page.name}: make {target}"
    for page, words in shown_commands():
        for flag, place in pairwise(words):
            if words[0].startswith("python") and flag == "-m" and place.startswith(("benchmarks", "site_tools")):
                assert (ROOT / place.replace(".", "/")).with_suffix(".py").exists(), f"{page}: {place}"


def test_links_lead_somewhere_and_newcomers_pages_have_short_sentences() -> None:
    assert not list(writing.problems())


def test_dead_links_and_long_sentences_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(writing, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# One heading, `two`\n\n[a](gone.md) [b](#one-heading-two) [c](page.md#three) `[d](no-link.md)` ![e](no.png)\n"
        f"\n```\n[f](in-code.md) {'word ' * 40}\n```\n\n{'word ' * 30}word. It has 1, 2, 3 and 4.5 numbers. "
        f"Short: `{'x ' * 40}`.\n"
    )
    assert [line.split(": ")[1] for line in pages.dead_links(page)] == [
        "no file gone.md", "no heading page.md#three", "no file no.png"
    ]  # fmt: skip
    assert [line.split(": ")[1] for line in writing.long_sentences(page)] == ["31 words", "4 numbers"]
