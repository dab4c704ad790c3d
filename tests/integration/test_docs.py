"""What the documents show is what the package does."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from benchmarks.learning.one_leg import one_leg
from rlhf_bilevel.__main__ import parser

ROOT = Path(__file__).parents[2]
TUTORIAL = "docs/human/tutorial.md"


def blocks(language: str, page: str = "README.md") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs_and_says_what_came_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    names: dict = {}
    exec(example.replace("progress_bar=True", "").replace("1_000", "300"), names)
    from rlhf_bilevel import Agent
    from rlhf_bilevel.envs import registry

    assert registry.entry_names(names["env"])[0] == "position[0]"  # the cart's, along its rail
    assert capsys.readouterr().out.startswith("the cart went from ")
    again = Agent.load("runs/right").predict(names["env"].reset()[0])[0]
    assert again.shape == (1,)


def test_the_callbacks_python_runs(capsys: pytest.CaptureFixture) -> None:
    (example,) = blocks("python", "docs/callbacks.md")
    exec(example.replace("1_000", "200").replace("eval_freq=500", "eval_freq=100"), {})
    assert "Eval num_timesteps=100" in capsys.readouterr().out


def test_the_python_for_a_reward_elsewhere_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python", "docs/reward-elsewhere.md")
    names: dict = {}
    exec(
        example.replace("10_000", "500").replace("labels=100", "labels=4, reward_net_arch=(8,), queries_per_session=4"),
        names,
    )
    paid, env = names["paid"], names["env"]
    assert f"{paid} {names['info']['true_reward']}" in capsys.readouterr().out
    assert paid == names["reward"](names["obs"], names["action"]) and env.learned.info == names["reward"].info


def test_the_tutorials_python_runs_and_judges_as_what_was_measured_did() -> None:
    (example,) = blocks("python", TUTORIAL)
    names: dict = {}
    exec(example.replace("progress_bar=True", "").replace("30_000", "300").replace("labels=200", "labels=20"), names)
    assert 0 < len(names["agent"].run.prefs) <= 20
    obs = torch.rand(50, 24) * 2 - 1
    assert torch.equal(names["one_leg"](obs), one_leg(obs))


def test_the_commands_exist() -> None:
    told = "".join(text for page in ("README.md", TUTORIAL, "docs/reward-elsewhere.md") for text in blocks("", page))
    commands = [shlex.split(line, comments=True) for line in told.splitlines()]
    for words in commands:
        if words and words[0] == "rlhf-bilevel":
            parser().parse_args(words[1:])
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for words in commands:
        if words and words[0] == "make":
            assert words[1] in targets


def test_links_between_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
