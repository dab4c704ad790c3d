"""What the documents show is what the package does."""

import re
from pathlib import Path

import pytest

from rlhf_bilevel.__main__ import parser

ROOT = Path(__file__).parent.parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    names: dict = {}
    exec(example.replace("progress_bar=True", "").replace("1_000", "300"), names)
    from rlhf_bilevel import Agent

    again = Agent.load("runs/right").predict(names["agent"].make_env().reset()[0])[0]
    assert again.shape == (1,)


def test_the_readmes_commands_exist() -> None:
    commands = [line.split("#")[0].split() for line in "".join(blocks("")).splitlines()]
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
