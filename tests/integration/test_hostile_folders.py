"""A run's folder may come from a stranger: what it holds leads nowhere else, hides nothing and exhausts nothing."""

import contextlib
import copy
import os
import shutil
import sqlite3
import stat
import struct
import time
import traceback
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pyarrow import parquet
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.data.label_log import LabelLog, RecordedTeacher, read_seconds, read_sessions
from rlhf_bilevel.data.preference_dataset import KEY, Dataset
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import CorruptFileError, LockedError, UserError, WriteError
from rlhf_bilevel.evaluation.records import read_records
from rlhf_bilevel.human.clips.recorder import ClipRecorder
from rlhf_bilevel.human.location import run_id
from rlhf_bilevel.human.records import Outcome, Question
from rlhf_bilevel.human.store import LabelStore
from rlhf_bilevel.registries import LEARNERS
from rlhf_bilevel.runs import start
from rlhf_bilevel.runs.asked_queries import read_run
from rlhf_bilevel.runs.checkpoint import Checkpoints, Manifest, TablePiece
from rlhf_bilevel.types import Queries, Segments
from rlhf_bilevel.utils import files
from rlhf_bilevel.utils.files import check_folder, reserve_new_file, sha256, write, write_sums
from rlhf_bilevel.utils.sqlite import NAMES_ANOTHER
from tests.conftest import SMALL
from tests.data.test_label_log import Never, answers, queries
from tests.human.test_store import somebody
from tests.runs.test_checkpoint import forge, saved
from tests.support.faults import at_call, child, full_disk, kill, same_run

FEW: dict[str, Any] = SMALL | {"eval_freq": 90, "train_freq": 10, "reward_form": "linear", "labels": 20}
HOLES = 2**40  # bytes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run that has ended, one that was killed after a checkpoint, and one that people label."""
    home = tmp_path_factory.mktemp("made")
    Agent("pebble", "Steer-v0", out=home / "ended", **FEW).learn(160)
    (home / "ended/learning_curve.png").write_bytes(b"drawn before")

    def cut() -> None:
        save = Checkpoints.save

        def once(self: Checkpoints, *rest: Any) -> Any:
            save(self, *rest)
            kill()

        Checkpoints.save = once  # type: ignore[method-assign]
        Agent("pebble", "Steer-v0", out=home / "cut", checkpoint_every="100", **FEW).learn(160)

    assert child(cut) == 9
    shutil.copytree(home / "ended", home / "people", ignore=shutil.ignore_patterns("labels.sqlite", "SHA256SUMS"))
    change(home / "people", {"teacher_human": True})
    with LabelStore.of(home / "people") as label_store:
        label_store.ask(0, [Question(b"first", b"second", {"kind": "frames"}, {"kind": "frames"})])
    return {path.name: path for path in home.iterdir()}


def change(folder: Path, settings: Mapping[str, Any] = {}, /, **told: Any) -> None:
    """The run's config.yaml, as a stranger would."""
    before = yaml.safe_load((folder / "config.yaml").read_text())
    before["settings"] |= settings
    (folder / "config.yaml").write_text(yaml.safe_dump(before | {"threads": 1} | told))


def seen(folder: Path) -> dict[str, Any]:
    """Everything below a folder, links as they are."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        told = path.lstat()
        plain = stat.S_ISREG(told.st_mode) and told.st_size < 2**28
        content = sha256(path.read_bytes()) if plain else told.st_size
        found[str(path.relative_to(folder))] = stat.S_IFMT(told.st_mode), told.st_mtime_ns, content
    return found


def to_link(path: Path, outside: Path) -> None:
    path.rename(outside / path.name) if path.exists() else (outside / path.name).write_bytes(b"precious")
    path.symlink_to(outside / path.name)


def to_nowhere(path: Path, outside: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(outside / "to-be-made")


def to_pipe(path: Path, outside: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def to_folder(path: Path, outside: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def to_holes(path: Path, outside: Path) -> None:
    with path.open("ab") as file:
        file.truncate(HOLES)


def to_second_name(path: Path, outside: Path) -> None:
    (outside / path.name).write_bytes(path.read_bytes() if path.exists() else b"precious")
    path.unlink(missing_ok=True)
    path.hardlink_to(outside / path.name)


ATTACKS = (to_link, to_nowhere, to_pipe, to_folder, to_holes, to_second_name)
READING: dict[str, Callable[[Path, Path], list[str]]] = {
    "evaluate": lambda run, out: ["evaluate", str(run), "--episodes", "1"],
    "export": lambda run, out: ["export", str(run), "--sb3", f"{out}/a.zip", "--preferences", f"{out}/p.parquet"],
    "compare": lambda run, out: ["compare", str(run)],
    "explain": lambda run, out: ["explain", str(run)],
    "plot": lambda run, out: ["plot", str(run), "--out", f"{out}/a.svg"],
    "fork": lambda run, out: ["fork", str(run), "--steps", "250", "--out", f"{out}/fork"],
    "fit-reward": lambda run, out: ["fit-reward", str(run), "--env", "Steer-v0", "--set", "reward_epochs=2",
                                    "--set", "n_eval_episodes=1"],
}  # fmt: skip
WRITING: dict[str, tuple[str, Callable[[Path, Path], list[str]]]] = {
    "resume": ("cut", lambda run, out: ["resume", str(run)]),
    "label": ("people", lambda run, out: ["label", str(run), "--import", str(out / "answers.parquet")]),
}
MORE = (
    ".lock", "learning_curve.png", "preferences.parquet", "progress.csv.tmp", "evaluations.csv.tmp", "model.zip.tmp",
    "policy.safetensors.tmp", "preferences.parquet.tmp", "SHA256SUMS.tmp", "labels.sqlite-wal", "labels.sqlite-journal",
    "events.out.tfevents.1.x", "book.sqlite-shm", "checkpoints/x.tmp", "checkpoints/x", "clips",
)  # fmt: skip
"""Names that a run's folder may also hold, now or later; the last two may be folders."""
SOME = ("config.yaml", "labels.sqlite", "progress.csv.tmp", "checkpoints/x.tmp")


def cases(run: Path) -> list[tuple[str, Callable[[Path, Path], None]]]:
    """Every attack on every file."""
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} | set(MORE)
    pairs = product(sorted(found), ATTACKS)
    return [(name, attack) for name, attack in pairs if not (attack is to_folder and name in MORE[-2:])]


def attacked(made: dict[str, Path], kind: str, name: str, attack: Callable[[Path, Path], None], home: Path) -> Path:
    """A copy of the run with the attack in that file's place; what must not change is in ``home/outside``."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(made[kind], home / "run")
    (home / "outside").mkdir()
    (home / "outside/bystander").write_bytes(b"precious")
    (home / "run" / name).parent.mkdir(exist_ok=True)
    attack(home / "run" / name, home / "outside")
    return home / "run"


def ask(command: list[str]) -> str | None:
    """What the command line says where it refuses."""
    try:
        main(command)
    except SystemExit as stop:
        return f"exit {stop.code}"
    return None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", WRITING)
def test_what_writes_into_a_folder_touches_nothing_outside(made: dict[str, Path], tmp_path: Path, command: str) -> None:
    """Whatever stands in the place of a file: it is refused in one line, before anything is written."""
    kind, words = WRITING[command]
    (tmp_path / "answers.parquet").write_bytes(b"never read")
    for name, attack in cases(made[kind]):
        if name in SOME:
            run = attacked(made, kind, name, attack, tmp_path / "case")
            before = seen(tmp_path / "case")
            assert ask(words(run, tmp_path)) == "exit 2", (name, attack)
            assert seen(tmp_path / "case") == before, (name, attack)


def test_answers_that_cannot_be_read_are_refused_before_the_book_is_opened(
    made: dict[str, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(made["people"], tmp_path / "run")
    (tmp_path / "answers.parquet").write_bytes(b"no Parquet")
    before = seen(run)
    assert child(lambda: os._exit(7 * (ask(WRITING["label"][1](run, tmp_path)) == "exit 2"))) == 7 << 8
    assert seen(run) == before


@pytest.mark.filterwarnings("ignore")
def test_what_reads_a_folder_follows_nothing_and_waits_for_nothing(made: dict[str, Path], tmp_path: Path) -> None:
    for name, attack in cases(made["ended"]):
        if name in SOME[:2] and attack is not to_second_name:
            run = attacked(made, "ended", name, attack, tmp_path / "case")
            before = seen(tmp_path / "case")
            for words in READING.values():
                assert ask(words(run, tmp_path)) == "exit 2", (name, attack)
            assert seen(tmp_path / "case") == before, (name, attack)
    assert not list(tmp_path.glob("*.*"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", list(READING)[:4])  # the last two take long: they are among the slow ones below
def test_what_only_reads_leaves_no_trace_in_the_folder(made: dict[str, Path], tmp_path: Path, command: str) -> None:
    before = seen(made["ended"])
    assert ask(READING[command](made["ended"], tmp_path)) is None
    assert seen(made["ended"]) == before


def test_nor_does_reading_what_a_killed_run_or_people_have_asked(made: dict[str, Path]) -> None:
    before = seen(made["cut"]), seen(made["people"])
    assert len(read_run(made["cut"])) > 0  # type: ignore[arg-type]
    assert len(list(read_sessions(made["cut"] / "labels.sqlite"))) > 0
    with LabelStore.reading(made["people"]) as label_store:
        assert label_store.pending().asked == 1
    assert (seen(made["cut"]), seen(made["people"])) == before


def waited(work: Callable[[], Any], seconds: float) -> tuple[int | None, float]:
    """Exit code of a copy of this process, None where it had to be stopped; and the most bytes that it has held."""
    pid = os.fork()
    if not pid:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(1 if work() else 0)
        except BaseException:
            traceback.print_exc()
            os._exit(3)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status, used = os.wait4(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), 1024 * used.ru_maxrss
        time.sleep(0.005)
    os.kill(pid, 9)
    return None, 1024 * os.wait4(pid, 0)[2].ru_maxrss


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", [*READING, *WRITING])
def test_every_attack_on_every_file_in_a_process_of_its_own(
    made: dict[str, Path], tmp_path: Path, command: str
) -> None:
    """Nothing outside changes, nothing waits longer than ten seconds, no process grows by half a gigabyte."""
    kind, words = WRITING[command] if command in WRITING else ("ended", READING[command])
    (tmp_path / "answers.parquet").write_bytes(b"never read")
    idle = waited(lambda: None, 10)[1]
    for name, attack in cases(made[kind]):
        run, out = attacked(made, kind, name, attack, tmp_path / "case"), tmp_path / "out"
        out.mkdir()
        shutil.copy(tmp_path / "answers.parquet", out)
        before, inside = seen(tmp_path / "case/outside"), seen(run)
        code, held = waited(lambda run=run, out=out: ask(words(run, out)), 10)
        told = f"{command} with {attack.__name__} at {name}: {code}, {held - idle:.3g} bytes more"
        assert code in (0, 1) and held - idle < 5e8, told
        assert seen(tmp_path / "case/outside") == before, told
        assert command == "resume" or seen(run) == inside, told
        shutil.rmtree(out)


def test_a_link_is_replaced_and_never_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    for name in ("file", "file.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "precious")
    write(tmp_path / "file", b"ours")
    assert (tmp_path / "precious").read_text() == "precious" and not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_bytes() == b"ours" and not (tmp_path / "file.tmp").exists()
    (tmp_path / "log").symlink_to(tmp_path / "precious")
    (tmp_path / "second").hardlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / "pipe")
    for name in ("log", "second", "pipe"):
        for work in (lambda path: files.append(path, b"more"), lambda path: files.truncate(path, 0), files.lock):
            with pytest.raises(UserError, match=name):
                work(tmp_path / name)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_folder_of_links_to_folders_or_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").symlink_to(tmp_path)
    with pytest.raises(UserError, match="checkpoints is a link"):
        check_folder(tmp_path / "run")
    deep = tmp_path / "deep"
    (deep / "/".join("abcdefghijkl")).mkdir(parents=True)
    with pytest.raises(UserError, match="deeper folders"):
        check_folder(deep)
    (tmp_path / "own").symlink_to(deep / "a/b/c/d/e")  # a run's folder itself may be reached by a link
    check_folder(tmp_path / "own")


def test_sqlite_removes_no_file_that_a_strangers_journal_names(made: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(made["cut"], tmp_path / "run")
    journal = run / "labels.sqlite-journal"
    journal.write_bytes(bytes(512) + b"/home/somebody/precious" + NAMES_ANOTHER)
    for work in (LabelLog, read_seconds, lambda path: list(read_sessions(path))):
        with pytest.raises(UserError, match="names a journal of another database"):
            work(run / "labels.sqlite")
    assert journal.exists()


# Two processes


def test_of_two_that_begin_in_one_folder_the_second_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first begins while the second is at work on its networks, which takes longest."""
    out = tmp_path / "run"
    first, second = (Agent(method, "Steer-v0", out=out, **FEW) for method in ("pebble", "sac"))
    build, left = start.build, list[dict]()

    def slowly(*parts: Any) -> Any:
        built = build(*parts)
        monkeypatch.setattr(start, "build", build)
        first.start(160)
        left.append(seen(out))
        return built

    monkeypatch.setattr(start, "build", slowly)
    with pytest.raises(LockedError, match="trained by another process"):
        second.learn(160)
    assert [seen(out)] == left and yaml.safe_load((out / "config.yaml").read_text())["method"] == "pebble"
    with pytest.raises(LockedError):  # until the first comes to its end, or is killed
        Agent.resume(out)


def test_a_run_that_another_process_ends_meanwhile_is_not_done_again(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(made["cut"], tmp_path / "run")
    lock = RunFolder.lock

    def late(folder: RunFolder) -> Any:
        shutil.rmtree(folder.path)
        shutil.copytree(made["ended"], folder.path)  # as the other process leaves it
        return lock(folder)

    monkeypatch.setattr(RunFolder, "lock", late)
    with pytest.raises(UserError, match="come to its end"):
        Agent.resume(run)
    left, expected = ({path.name for path in folder.iterdir()} | {".lock"} for folder in (run, made["ended"]))
    assert left == expected


def test_runs_without_a_folder_of_their_own_are_numbered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in FEW.items()}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(plain))
    train = ["train", "sac", "--env", "Steer-v0", "--steps", "40", "--config", "few.yaml"]
    main(train)
    main([*train, "--set", "gamma=0.9"])
    told = capsys.readouterr().out
    assert "runs/sac-Steer-v0-0 is there already: this run goes to runs/sac-Steer-v0-0-2" in told
    gammas = [yaml.safe_load(Path(f"runs/{name}/config.yaml").read_text())["settings"]["gamma"]
              for name in ("sac-Steer-v0-0", "sac-Steer-v0-0-2")]  # fmt: skip
    assert gammas == [0.99, 0.9]
    with pytest.raises(SystemExit):
        main([*train, "--set", f"net_arch={','.join(['65536'] * 16)}"])  # no memory holds it: no folder is left
    assert sorted(path.name for path in Path("runs").iterdir()) == ["sac-Steer-v0-0", "sac-Steer-v0-0-2"]


def test_a_new_file_takes_the_place_of_none_that_has_come_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    with pytest.raises(UserError, match="exists already"), reserve_new_file(tmp_path / "theirs"):
        write(tmp_path / "theirs", b"ours")
    for name in ("ours", "new/folder/ours"):
        with contextlib.suppress(ZeroDivisionError), reserve_new_file(tmp_path / name):
            raise ZeroDivisionError
    assert [path.read_text() for path in tmp_path.iterdir()] == ["theirs"]


def test_an_export_takes_the_place_of_none_either(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(folder: Path, trust: bool = False) -> Any:
        (tmp_path / "p.parquet").write_text("theirs")
        return read_run(folder)

    monkeypatch.setattr("rlhf_bilevel.runs.asked_queries.load", late)
    assert ask(["export", str(made["ended"]), "--preferences", str(tmp_path / "p.parquet")]) == "exit 2"
    assert (tmp_path / "p.parquet").read_text() == "theirs"


# Databases


def view(path: Path, name: str, query: str) -> None:
    """In the place of that table."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"DROP TABLE IF EXISTS {name}")
        connection.execute(f"CREATE VIEW {name} AS {query}")
        connection.commit()


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS number FROM n"


@pytest.mark.parametrize("name", ["sessions", "answers", "more"])
def test_a_view_among_the_labels_is_never_asked(tmp_path: Path, name: str) -> None:
    path = tmp_path / "labels.sqlite"
    with contextlib.closing(LabelLog(path)) as log:
        log.append(3, answers())
    view(path, name, ENDLESS)
    before = seen(tmp_path)
    for work in (read_seconds, LabelLog, lambda path: list(read_sessions(path))):
        with pytest.raises(CorruptFileError, match=f"labels.sqlite is damaged: '{name}'"):
            work(path)
    assert seen(tmp_path) == before


@pytest.mark.parametrize("change", [
    "CREATE TRIGGER t AFTER INSERT ON answers BEGIN DELETE FROM sessions; END",
    "CREATE INDEX slow ON answers (length(randomblob(1000)))",
    "ALTER TABLE sessions ADD COLUMN more AS (length(randomblob(1000)))",
])  # fmt: skip
def test_nor_is_a_table_that_runs_something(tmp_path: Path, change: str) -> None:
    LabelLog(tmp_path / "labels.sqlite").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "labels.sqlite")) as connection:
        with contextlib.suppress(sqlite3.OperationalError):  # SQLite may refuse it itself
            connection.execute(change)
        connection.commit()
        changed = connection.execute("SELECT count(*) FROM sqlite_master WHERE sql LIKE '%random%' OR name = 't'")
        if not changed.fetchone()[0]:
            return
    with pytest.raises(CorruptFileError):
        LabelLog(tmp_path / "labels.sqlite")


@pytest.mark.parametrize("name", ["offers", "queries", "runs", "more"])
def test_a_view_in_the_book_is_never_asked(made: dict[str, Path], tmp_path: Path, name: str) -> None:
    run = shutil.copytree(made["people"], tmp_path / "run")
    with contextlib.closing(sqlite3.connect(run / "book.sqlite")) as connection:
        connection.execute("PRAGMA foreign_keys=OFF")
    view(run / "book.sqlite", name, ENDLESS)
    for work in (lambda: LabelStore.of(run), lambda: LabelStore.reading(run).__enter__(), lambda: read_run(run)):
        with pytest.raises(CorruptFileError, match=r"book\.sqlite is damaged"):
            work()


def test_a_list_of_tables_without_end_is_given_up(tmp_path: Path) -> None:
    """Its inner pages name one another, so that the row of one index comes again and again."""
    path, page, children, levels = tmp_path / "labels.sqlite", 4096, 300, 12
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a UNIQUE)")
    data = bytearray(path.read_bytes())
    first, end = len(data) // page + 1, len(data) // page + levels  # the whole list, and the row of the index alone
    rows = data[108:110], data[110:112]
    whole, index = (
        b"\x0d\0\0" + struct.pack(">H", len(own)) + data[105:108] + b"".join(own) for own in (rows, rows[1:])
    )
    bodies = {first: whole, end: index}
    data += bytes(levels * page)
    for number, head in bodies.items():
        data[(number - 1) * page : number * page] = head + data[200:page].rjust(page, b"\0")[len(head) :]
    for own in [1, *range(first + 1, end)]:
        begin, below = 100 if own == 1 else 0, struct.pack(">I", max(own, first) + 1)
        inner = bytearray(page)
        inner[begin : begin + 12] = b"\x05\0\0" + struct.pack(">HHx", children, page - 5 * children) + below
        for cell in range(children):
            at = page - 5 * (cell + 1)
            inner[at : at + 5] = (struct.pack(">I", first) if (own, cell) == (1, 0) else below) + bytes(
                [1 + cell % 127]
            )
            inner[begin + 12 + 2 * cell : begin + 14 + 2 * cell] = struct.pack(">H", at)
        data[(own - 1) * page + begin : own * page] = inner[begin:]
    data[28:32] = struct.pack(">I", len(data) // page)
    path.write_bytes(data)
    code, _ = waited(lambda: refused(lambda: LabelLog(path)), 10)
    assert code == 1


def refused(work: Callable[[], Any]) -> bool:
    try:
        work()
    except UserError:
        return True
    return False


def test_what_is_acknowledged_is_in_the_file_that_is_there(made: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(made["people"], tmp_path / "run")
    with LabelStore.of(run) as label_store:
        me = somebody(label_store)
        (assignment,) = label_store.assign(me, 1)
        (run / "book.sqlite").rename(tmp_path / "away")
        with pytest.raises(OperationalError, match="removed or replaced"):
            label_store.choose(me, assignment.query_id, "left", "key")
        shutil.copy(tmp_path / "away", run / "book.sqlite")
        with pytest.raises(OperationalError, match="removed or replaced"):
            label_store.choose(me, assignment.query_id, "left", "other")
        (tmp_path / "away").replace(run / "book.sqlite")
        assert label_store.choose(me, assignment.query_id, "left", "key") is Outcome.ACCEPTED
        assert label_store.progress(me).mine == 1

        def replace(*_: Any) -> None:
            (run / "book.sqlite").rename(tmp_path / "away")

        event.listen(label_store._engine, "commit", replace)  # at the last moment
        with pytest.raises(OperationalError, match="removed or replaced"):
            label_store.undo(me)


@pytest.mark.parametrize("url", ["postgresql://ann@db.example/labels", "/etc/precious.sqlite", "sqlite:///precious"])
def test_a_database_elsewhere_is_gone_to_only_with_trust(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, url: str
) -> None:
    gone = list[object]()
    monkeypatch.setattr("rlhf_bilevel.human.store.connect", lambda where, told=None: gone.append(where))
    run = shutil.copytree(made["people"], tmp_path / "run")
    change(run, {"teacher_labels_db": url})
    target = str(tmp_path / "x.parquet")
    for command in (["label", str(run)], ["export", str(run), "--preferences", target], ["resume", str(run)],
                    ["fit-reward", str(run), "--env", "Steer-v0"]):  # fmt: skip
        assert ask(command) == "exit 2"
        assert "trust" in capsys.readouterr().err or not url.startswith("postgresql")
    with pytest.raises(UserError):
        LabelStore.of(run, database="postgresql://ann@other.example/labels")
    assert not gone
    if url.startswith("postgresql"):
        for own in ({"trust": True}, {"database": url}):
            with contextlib.suppress(AttributeError):  # there is no such database here
                LabelStore.of(run, **own)
        assert gone == [url, url]
    else:
        with pytest.raises(CorruptFileError, match="is no labels database"):
            LabelStore.of(run, trust=True)
        assert not gone


# What exhausts memory


@pytest.mark.parametrize("settings", [{"net_arch": [65536] * 8}, {"ensemble_size": 10**9}, {"reward_form": "network",
    "reward_net_arch": [65536] * 8}])  # fmt: skip
def test_settings_that_the_models_files_cannot_be_of_are_refused_first(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    run = shutil.copytree(made["ended"], tmp_path / "run")
    change(run, settings)
    with (run / "reward.safetensors").open("ab") as file:
        file.write(os.urandom(2**22))  # more than the units, far less than the weights between them
    write_sums(run, ("config.yaml", "policy.safetensors", "reward.safetensors"))
    monkeypatch.setattr("rlhf_bilevel.runs.build.make_learner", None)  # nothing is built
    with pytest.raises(CorruptFileError, match=r"does not fit config\.yaml"):
        Agent.load(run)


def tell(run: Path, algorithm: str, given: Any) -> None:
    """Settings of the run's SB3 algorithm, as a stranger would."""
    method = {"PPO": "prefppo"}.get(algorithm, "pebble")
    change(run, method=method, algorithm=algorithm, algorithm_settings=given)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)  # which were made with another config.yaml
    if (run / "SHA256SUMS").exists():
        write_sums(run, ("config.yaml", "policy.safetensors", "reward.safetensors"))


WRONG = {"SAC": [
    {"policy_kwargs": {"n_critics": 10**9}}, {"policy_kwargs": {"net_arch": {"pi": [10**9], "qf": [16]}}},
    {"policy_kwargs": {"net_arch": {"qf": [16]}}}, {"policy_kwargs": {"net_arch": [16] * 10**4}},
    {"policy_kwargs": {"net_arch": [[16]]}}, {"policy_kwargs": {"net_arch": "16"}},
    {"policy_kwargs": {"features_extractor_kwargs": {"features_dim": 10**9}}}, {"policy_kwargs": [1]},
    {"policy_kwargs": {"optimizer_kwargs": {"lr": "x"}}}, {"policy_kwargs": {"optimizer_kwargs": {"betas": [2, 0.9]}}},
    {"policy_kwargs": {"activation_fn": "os.mkdir"}}, {"policy_kwargs": {"log_std_init": 1e9}}, {"buffer_size": 10**12},
    {"tensorboard_log": "elsewhere"}, {"monitor_wrapper": True}, {"replay_buffer_kwargs": {"n": 10**9}},
    {"batch_size": 0}, {"learning_rate": float("nan")}, {"tau": float("inf")}, {"gradient_steps": 10**9},
    {"ent_coef": "auto_nan"}, {"ent_coef": "auto_0_5"}, {"ent_coef": -1}, {"target_entropy": "x"}, {"seed": 2**40},
    {"use_sde_at_warmup": "yes"}, {"n_steps": 10**9}, {"device": "cuda:9"}, {"env": "CartPole-v1"}, {"verbose": True},
    {"stats_window_size": 10**12}, {"_init_setup_model": False}, {"policy": "CnnPolicy"}, {"policy_delay": 2},
], "TD3": [{"policy_delay": 0}, {"use_sde": True}, {"target_policy_noise": -1}, {"policy_kwargs": {"clip_mean": 2.0}}],
"DDPG": [{"policy_kwargs": {"n_critics": 0}}, {"policy_delay": 2}],
"PPO": [
    {"n_steps": 10**9}, {"n_steps": 1}, {"n_epochs": 10**9}, {"batch_size": 1}, {"clip_range": "x"},
    {"rollout_buffer_kwargs": {}}, {"policy_kwargs": {"squash_output": True}}, {"policy_kwargs": {"n_critics": 2}},
]}  # fmt: skip


@pytest.mark.parametrize(("algorithm", "given"), [(name, told) for name in WRONG for told in WRONG[name]])
def test_settings_of_the_algorithm_that_no_file_may_hold_are_refused_first(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
    algorithm: str, given: dict[str, Any],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlhf_bilevel.runs.build.make_learner", None)  # nothing is built
    for kind in ("ended", "cut"):
        tell(shutil.copytree(made[kind], tmp_path / kind), algorithm, given)
    before = seen(tmp_path)
    commands = ["evaluate ended", "resume cut"]
    if given is WRONG[algorithm][0]:  # the others read the file at the same place
        commands += ["explain ended", "export ended --sb3 a.zip", "fork cut --out new"]
    for command in commands:
        assert ask(command.split()) == "exit 2"
        told = capsys.readouterr().err
        assert f"config.yaml: algorithm_settings: {next(iter(given))}" in told and told.count("\n") == 1
    assert seen(tmp_path) == before


SOUND: dict[str, dict[str, Any]] = {
    "SAC": {"policy_kwargs": {"net_arch": {"pi": [8], "qf": [8, 8]}, "n_critics": 3, "clip_mean": 1.5}, "gamma": 0.9,
            "ent_coef": "auto_0.2", "target_entropy": -2.0, "use_sde": True, "buffer_size": 1000, "tau": 1},
    "TD3": {"policy_kwargs": {"net_arch": [8], "optimizer_kwargs": {"weight_decay": 1e-3, "betas": [0.8, 0.99]}},
            "policy_delay": 3, "target_noise_clip": 0.4},
    "DDPG": {"policy_kwargs": None, "learning_rate": 1e-3},
    "PPO": {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "clip_range_vf": None, "target_kl": 0.5,
            "policy_kwargs": {"net_arch": {"pi": [8], "vf": [8]}, "ortho_init": False}},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("algorithm", SOUND)
def test_what_a_user_gave_his_algorithm_comes_back_from_the_file(tmp_path: Path, algorithm: str) -> None:
    agent = Agent(
        "prefppo" if algorithm == "PPO" else "pebble",
        "Steer-v0",
        algorithm=LEARNERS[algorithm],
        algorithm_settings=copy.deepcopy(SOUND[algorithm]),
        out=tmp_path / "run",
        **FEW,
    ).learn(100)
    told = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert told["algorithm_settings"] == SOUND[algorithm]
    obs = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    assert np.array_equal(Agent.load(tmp_path / "run").predict(obs)[0], agent.predict(obs)[0])
    Agent.fork(tmp_path / "run").learn(20)


@pytest.mark.parametrize(
    ("algorithm", "given"),
    [
        ("SAC", {"policy_kwargs": {"net_arch": {"pi": [65536] * 3, "qf": [16]}}}),
        ("SAC", {"policy_kwargs": {"net_arch": {"pi": [16], "qf": [65536] * 2}, "n_critics": 100}}),
        ("PPO", {"policy_kwargs": {"net_arch": {"pi": [16], "vf": [65536] * 16}}}),
    ],
)
def test_large_networks_of_the_algorithm_are_weighed_against_the_files_and_the_memory(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str, given: dict[str, Any]
) -> None:
    for kind in ("ended", "cut"):
        tell(shutil.copytree(made[kind], tmp_path / kind), algorithm, given)
    monkeypatch.setattr("rlhf_bilevel.runs.build.make_learner", None)  # nothing is built
    with pytest.raises(CorruptFileError, match=r"does not fit config\.yaml"):
        Agent.load(tmp_path / "ended")
    with pytest.raises(UserError, match="GiB of memory"):
        Agent.resume(tmp_path / "cut")
    with pytest.raises(UserError, match="GiB of memory"):
        Agent("prefppo" if algorithm == "PPO" else "pebble", "Steer-v0", algorithm_settings=given).learn(300)


@pytest.mark.parametrize(("key", "value"), [("threads", 10**6), ("method", ["pebble"]), ("settings", 3),
    ("device", "../x"), ("versions", [])])  # fmt: skip
def test_what_a_config_tells_is_checked(made: dict[str, Path], tmp_path: Path, key: str, value: Any) -> None:
    run = shutil.copytree(made["cut"], tmp_path / "run")
    change(run, **{key: value})
    for work in (Agent.resume, Agent.load, read_run):
        with pytest.raises(UserError, match=rf"config\.yaml: {key}="):
            work(run)


def resealed(change_rows: Callable[[list[TablePiece]], object]) -> Callable[[Path], None]:
    """A manifest with other pieces of the rows, and sealed again, as a stranger can."""

    def attack(folder: Path) -> None:
        file = folder / "step-000000001/manifest.json"
        manifest = Manifest.unseal(file)
        change_rows(manifest.tables["rows"])
        file.write_bytes(manifest.seal())

    return attack


@pytest.mark.parametrize(
    ("attack", "told"),
    [
        (resealed(lambda rows: rows.extend(rows * 4000)), "in a place that is not its own"),
        (resealed(lambda rows: setattr(rows[0], "file", "../secret-0-4.safetensors")), "should match pattern"),
        (lambda folder: (folder / "step-000000001").rename(folder / "step-000000900"), "it holds step 1"),
        (lambda folder: files.append(folder / "rows-0-4.safetensors", b"more"), "bytes, and at most"),
        (lambda folder: forge(folder / "step-000000001", '{"tensor": "/none"}'), "passed over"),
    ],
)
def test_a_checkpoint_that_is_not_as_its_manifest_says_is_passed_over(
    tmp_path: Path, attack: Callable[[Path], object], told: str
) -> None:
    saved(tmp_path, 1)
    attack(tmp_path)
    with pytest.warns(UserWarning, match=told), pytest.raises(CorruptFileError, match="none of the 1"):
        Checkpoints(tmp_path, "same").load()


def test_a_dataset_that_claims_long_segments_is_refused_before_they_are_made(
    made: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "p.parquet"
    data = read_run(made["ended"])
    data.write(path)
    table = parquet.read_table(path)
    told = table.schema.metadata[KEY].replace(b'"segment_length":10', b'"segment_length":2147483647')
    with parquet.ParquetWriter(path, table.schema.remove_metadata(), store_schema=False) as writer:
        writer.write_table(table.replace_schema_metadata(None))
        writer.add_key_value_metadata({KEY: told})
    code, _ = waited(lambda: refused(lambda: Dataset.read(path)), 10)
    with pytest.raises(CorruptFileError, match="other than"):
        Dataset.read(path)
    assert code == 1


@pytest.mark.parametrize(("name", "limit"), [("config.yaml", 2**17), ("SHA256SUMS", 2**12), ("evaluations.csv", 2**25),
                                             ("policy.safetensors", 2**21)])  # fmt: skip
def test_a_file_that_is_too_large_for_its_kind_is_not_read(
    made: dict[str, Path], tmp_path: Path, name: str, limit: int
) -> None:
    run = shutil.copytree(made["ended"], tmp_path / "run")
    with (run / name).open("ab") as file:
        file.write(b"0" * (limit + 1))
    with pytest.raises(CorruptFileError, match=f"{name} is damaged: it has"):
        read_records(run) if name != "policy.safetensors" else Agent.load(run)


# What the disk does


def test_a_full_disk_is_no_damage_and_is_told_with_the_files_name(tmp_path: Path) -> None:
    log = LabelLog(tmp_path / "labels.sqlite")
    log._connection.execute("PRAGMA max_page_count = 8")
    with pytest.raises(WriteError, match=r"labels\.sqlite cannot be used: database or disk is full"):
        for _ in range(100):
            log.append(3, answers())
    held = len(log)
    log._connection.execute("PRAGMA max_page_count = 1000")
    log.append(3, answers())
    assert len(log) == held + 1
    with at_call(1, full_disk), pytest.raises(WriteError, match=r"x\.csv cannot be written: No space left on device"):
        write(tmp_path / "x.csv", b"")
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"none is a folder"):
        LabelLog(tmp_path / "none")


def test_a_full_disk_at_the_end_of_a_run_is_one_line_and_resume_goes_on(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = shutil.copytree(made["cut"], tmp_path / "run")
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("reward.safetensors"):
            full_disk()
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert ask(["resume", str(run)]) == "exit 2"
    assert f"{run}/reward.safetensors cannot be written: No space left on device" in capsys.readouterr().err
    main(["resume", str(run)])
    same_run(run, made["ended"])


# Logs


def emptied(data: bytes) -> bytes:
    return b""


def cut(data: bytes) -> bytes:
    return data[: data.rindex(b"\n", 0, len(data) - 1) + 1]


def edited(data: bytes) -> bytes:
    place = len(data) - 3
    return data[:place] + (b"7" if data[place : place + 1] != b"7" else b"8") + data[place + 1 :]


def spoilt(data: bytes) -> bytes:
    return data[:-3] + b"\xff\xfe\n"


@pytest.mark.parametrize("fault", [emptied, cut, edited, spoilt])
@pytest.mark.parametrize("name", ["progress.csv", "evaluations.csv"])
def test_a_log_that_was_changed_is_never_believed(
    made: dict[str, Path], tmp_path: Path, name: str, fault: Callable[[bytes], bytes]
) -> None:
    run = shutil.copytree(made["cut"], tmp_path / "run")
    (run / name).write_bytes(fault((run / name).read_bytes()))
    before = (run / name).read_bytes()
    with pytest.raises(CorruptFileError, match=f"{name} is damaged"):
        Agent.resume(run)
    assert (run / name).read_bytes() == before and (run / "checkpoints").is_dir()
    over = shutil.copytree(made["ended"], tmp_path / "over")
    assert f"  {name}\n" in (over / "SHA256SUMS").read_text()
    (over / name).write_bytes(fault((over / name).read_bytes()))
    if name == "evaluations.csv":
        with pytest.raises(CorruptFileError, match=f"{name} is damaged"):
            read_records(over)


def test_a_row_that_a_kill_cut_short_is_no_damage(made: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(made["cut"], tmp_path / "run")
    for name in ("progress.csv", "evaluations.csv"):
        with (run / name).open("ab") as file:
            file.write(b"1,2\n3")
    Agent.resume(run)
    assert (run / "evaluations.csv").read_bytes() == (made["ended"] / "evaluations.csv").read_bytes()


def test_one_damaged_old_piece_is_told_with_the_way_back_bit_for_bit(made: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(made["cut"], tmp_path / "run")
    (piece,) = (run / "checkpoints").glob("rows-0-*")
    piece.write_bytes(piece.read_bytes()[:-1] + b"!")
    with (
        pytest.warns(UserWarning),
        pytest.raises(CorruptFileError, match=f"if you remove {run}/checkpoints, resume begins anew"),
    ):
        Agent.resume(run)
    shutil.rmtree(run / "checkpoints")
    Agent.resume(run)
    same_run(run, made["ended"])


def test_the_runs_name_is_one_of_ours(made: dict[str, Path], tmp_path: Path) -> None:
    run = shutil.copytree(made["people"], tmp_path / "run")
    assert len(run_id(run)) == 32
    (run / "run_id").write_text("x' OR 1")
    with pytest.raises(CorruptFileError, match="holds no run's name"):
        LabelStore.of(run)


def test_answers_to_other_queries_are_told(tmp_path: Path) -> None:
    with contextlib.closing(LabelLog(tmp_path / "labels.sqlite")) as log:
        log.append(3, answers())
        asked = Queries(*(Segments(*(column[:, :2] for column in segments)) for segments in queries()))
        with pytest.raises(CorruptFileError, match="session 0 is of another run"):
            RecordedTeacher(Never(), log)(asked)


def test_a_film_holds_no_longer_record_than_its_file(tmp_path: Path) -> None:
    recorder, values = ClipRecorder(tmp_path), np.zeros(3, np.float32)
    recorder.write(0, b"record", values)
    recorder.close()
    records = tmp_path / "clips/records.bin"
    data = bytearray(records.read_bytes())
    data[16:24] = (2**40).to_bytes(8, "little")
    records.write_bytes(data)
    with pytest.raises(CorruptFileError, match="has no record of 1099511627776 bytes"):
        ClipRecorder(tmp_path).write(1, b"record", values)


LAYERS = (65536, 65536, 65536)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("pebble", {"batch_size": 10**9}),
        ("penalty", {"penalty.cost_hidden": LAYERS}),
        ("hypergradient", {"hypergradient.cost_hidden": LAYERS}),
        ("incumbent", {"reward_form": "network", "incumbent.visit_batch": 10**9}),
    ],
)
def test_every_large_part_of_a_run_counts_as_its_memory(method: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="GiB of memory"):
        Agent(method, "Steer-v0", **FEW | settings).learn(160)
