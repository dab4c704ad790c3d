"""The rooms stay apart: who may import whom, held by reading the imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE = ("penalty", "preference", "reward", "teacher", "query", "replay", "explore", "tabular", "objective", "problems",
        "evaluate", "envs", "config", "doctor", "points", "plot", "files", "tree", "checkpoint", "labels",
        "guard", "health", "runs/folder", "statistics", "compare", "traits", "dataset", "offline", "space", "board",
        "interface", "sqlite", "results", "tune", "gather", "human/film", "human/scene", "human/assets")  # fmt: skip


def imported(file: Path) -> set[str]:
    """Full names of all modules that a file imports, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def ours(file: Path) -> set[str]:
    return {name.split(".")[1] for name in imported(file) if name.startswith("rlhf_bilevel.")}


def test_types_import_no_room() -> None:
    assert not ours(ROOT / "rlhf_bilevel/types.py")


@pytest.mark.parametrize("room", PURE)
def test_pure_rooms_know_neither_algorithm_nor_wiring(room: str) -> None:
    assert not ours(ROOT / f"rlhf_bilevel/{room}.py") & {
        "algorithm",
        "sac",
        "log",
        "agent",
        "baselines",
        "methods",
        "commands",
        "__main__",
    }


def test_the_algorithm_knows_no_library_of_learners_no_environment_and_no_logger() -> None:
    file = ROOT / "rlhf_bilevel/algorithm.py"
    assert not ours(file) & {"sac", "tabular", "envs", "log", "agent", "baselines", "methods"}
    assert not {name.split(".")[0] for name in imported(file)} & {"stable_baselines3", "gymnasium"}


def test_only_the_command_line_knows_argparse() -> None:
    line = {"__main__", "commands", "given", "many", "options", "human/command"}
    for file in (ROOT / "rlhf_bilevel").rglob("*.py"):
        if str(file.relative_to(ROOT / "rlhf_bilevel").with_suffix("")) not in line:
            assert "argparse" not in imported(file) and not ours(file) & line, file


def test_a_spec_is_made_without_torch_and_a_run_is_built_without_its_surroundings() -> None:
    runs = ROOT / "rlhf_bilevel/runs"
    assert ours(runs / "spec.py") <= {"algorithm", "baselines", "config", "envs", "files"}  # the first two when needed
    code = "import sys, rlhf_bilevel.runs.spec as s; s.RunSpec.of('pebble', 'Pendulum-v1', {'steps': 9})"
    code += "; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "rlhf_bilevel.runs.session" not in imported(runs / "build.py") | imported(runs / "spec.py")
    assert "agent" not in ours(runs / "session.py")


def test_only_the_learners_name_sb3s_sac() -> None:
    users = {file.name for file in (ROOT / "rlhf_bilevel").rglob("*.py") if "stable_baselines3.SAC" in imported(file)}
    assert users <= {"sac.py", "stack.py", "build.py"}


def test_the_book_and_what_is_said_of_people_know_of_no_tensor_and_no_training() -> None:
    for name in ("book", "facts", "offering", "database", "tables", "quality"):
        file = ROOT / f"rlhf_bilevel/human/{name}.py"
        assert ours(file) <= {"config", "errors", "files", "human", "runs", "sqlite"}, name
        assert "torch" not in {module.split(".")[0] for module in imported(file)}, name
    assert "human" not in ours(ROOT / "rlhf_bilevel/algorithm.py")


def test_methods_import_no_other_method_and_no_wiring() -> None:
    files = [*(ROOT / "baselines").glob("[!_]*.py"), *(ROOT / "rlhf_bilevel/methods").glob("[!_]*.py")]
    for file in files:
        if file.name != "registry.py":
            assert not ours(file) & {"baselines", "agent", "log", "envs", "sac"}, file
            methods = {name.split(".")[2] for name in imported(file) if name.startswith("rlhf_bilevel.methods.")}
            assert methods <= {"cost"}, file


def test_a_methods_file_bears_its_name() -> None:
    from rlhf_bilevel.__main__ import METHODS as names_without_torch
    from rlhf_bilevel.methods.registry import METHODS

    assert sorted(METHODS) == sorted(names_without_torch)


def test_the_label_server_knows_neither_learning_nor_a_simulator() -> None:
    human = ROOT / "rlhf_bilevel/human"
    assert ours(human / "gate.py") == set() and ours(human / "server.py") <= {"errors", "files", "human"}
    assert ours(human / "command.py") <= {"errors", "human", "runs", "dataset"}  # the last for --import alone
    for name in ("gate", "server", "command"):
        libraries = {module.split(".")[0] for module in imported(human / f"{name}.py")}
        assert not libraries & {"torch", "mujoco", "gymnasium"}
