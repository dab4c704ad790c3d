"""The scripts and notebooks in examples/ run, are short, and do what they say."""

import importlib.util
import json
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot
import numpy as np
import pytest

from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.human.tables import LEFT
from site_tools.pages import written
from tests.integration.test_docs import shortened

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS, NOTEBOOKS = sorted(FOLDER.glob("*.py")), sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cells(notebook: Path) -> list[dict]:
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def test_they_are_short_and_the_documents_link_to_each() -> None:
    text = "".join(page.read_text() for page in written())
    assert len(SCRIPTS) >= 7 and len(NOTEBOOKS) >= 2
    for path in SCRIPTS:
        assert len(path.read_text().splitlines()) <= 40, path.name
    for path in [*SCRIPTS, *NOTEBOOKS]:
        assert f"examples/{path.name})" in text, path.name


def test_notebooks_hold_no_outputs_and_can_be_read() -> None:
    for path in NOTEBOOKS:
        for cell in cells(path):
            compile("".join(cell["source"]), path.name, "exec")
            assert not cell["outputs"] and cell["execution_count"] is None


def test_an_environment_of_ones_own(capsys: pytest.CaptureFixture) -> None:
    example("own_environment").main(steps=200, labels=6)
    assert "'success': {'mean': " in capsys.readouterr().out


def test_a_teacher_of_ones_own(capsys: pytest.CaptureFixture) -> None:
    end = example("own_teacher").main(steps=300, labels=8)
    assert -1.9 < end < 1.9 and "the cart went from" in capsys.readouterr().out


def test_a_method_of_ones_own() -> None:
    agent = example("own_method").main(steps=200, labels=6)
    assert agent.method.name == "tempered" and agent.run.options.temperature == 4.0 and len(agent.run.prefs) == 6


@pytest.mark.slow
def test_a_reward_in_another_trainer(capsys: pytest.CaptureFixture) -> None:
    example("reward_elsewhere").main(steps=600, labels=8)
    assert "the learnt reward pays" in capsys.readouterr().out


@pytest.mark.slow
def test_offline_preferences() -> None:
    assert example("offline_preferences").main(pairs=200, steps=300) > 0.7


@pytest.mark.slow
def test_a_person_is_the_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread sits in the person's place, and prefers what is on the left."""
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    done = threading.Event()

    def person() -> None:
        while not RunFolder(Path("run")).book.exists() and not done.is_set():
            time.sleep(0.1)
        with LabelStore.of(Path("run")) as store:
            me = store.labeller(store.invite("thread"))
            while me and not done.is_set():
                for asked in store.assign(me, 1, repeats=0, gold=0):
                    with suppress(UserError):  # training has all that it wants
                        store.choose(me, asked.query_id, LEFT, asked.query_id)
                time.sleep(0.05)

    labeller = threading.Thread(target=person)
    labeller.start()
    try:
        agent = example("human_teacher").main("run", steps=300, labels=6)
    finally:
        done.set()
        labeller.join()
    assert len(agent.run.prefs) == 6


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_from_top_to_bottom(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matplotlib.pyplot, "show", lambda: None)
    matplotlib.use("Agg")
    names: dict = {}
    for cell in cells(notebook):
        exec(shortened("".join(cell["source"])), names)
    assert np.isfinite(names["agent"].evaluate(1).returns).all()
