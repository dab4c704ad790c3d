"""A preference dataset is read as it was written or refused in one line, and holds what a run has asked."""

import json
import pickle
import sqlite3
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from rlhf_bilevel import Agent
from rlhf_bilevel.__main__ import main
from rlhf_bilevel.data import preference_dataset
from rlhf_bilevel.data.answers import select
from rlhf_bilevel.data.label_log import FORM, LATER_COLUMNS, LabelLog, RecordedTeacher, encode_pairs
from rlhf_bilevel.data.preference_dataset import KEY, SCHEMA, VERSION, Dataset
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.runs.asked_queries import read_run
from rlhf_bilevel.types import Preferences, Queries, Segments
from tests.data.test_label_log import Scripted, queries
from tests.runs.test_resume import killed, started
from tests.support.faults import corrupted

LABELS = torch.tensor([1.0, 0.0, 0.5, torch.nan, 0.25, 1.0])
KINDS = ("choice", "choice", "tie", "skipped", "probability", "choice")
TIMES = [1.7e9 + 0.123456, torch.nan, 3.5, 4.0, 5.0, 6.0]


def small(label: Tensor = LABELS, **more: Any) -> Dataset:
    """Six queries about nine segments of five steps, of which two have no truth."""
    first, second = queries(6)
    first.env_reward[4] = second.env_reward[4] = torch.nan
    for mine, other in zip(second, first, strict=True):
        mine[1:4] = other[0]  # one segment in four queries
    told = {"env_id": "Steer-v0", "labeller": "Someone", "sampler": "uniform", "t_shown": TIMES} | more
    return Dataset.of(Queries(first, second), label, **told)


def equal(one: Dataset, other: Dataset) -> None:
    for name in ("first", "second", "label", "t_shown", "t_answered"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype and torch.equal(mine.nan_to_num(-7), theirs.nan_to_num(-7)), name
    for mine, theirs in zip(one.segments, other.segments, strict=True):
        assert torch.equal(mine.nan_to_num(-7), theirs.nan_to_num(-7))
    for name in ("env_id", "label_kind", "labeller", "sampler", "action_repeat", "protocol"):
        assert getattr(one, name) == getattr(other, name), name


@pytest.mark.parametrize("rows", [1000, 2])  # in a row group
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(preference_dataset, "ROWS", rows)
    data = small(action_repeat=4, protocol="mt1")
    data.write(tmp_path / "a.parquet")
    read = Dataset.read(tmp_path / "a.parquet")
    equal(data, read)
    assert data.sha256() == read.sha256() and read.label_kind == KINDS
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == -(-6 // rows)
    assert torch.allclose(read.t_shown, torch.tensor(TIMES, dtype=torch.float64), atol=5e-7, rtol=0, equal_nan=True)
    read.write(tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    none = Dataset.of(Queries(*(select(data.preferences(), slice(0))[:2])), torch.zeros(0), env_id="e", labeller="l",
                      sampler="s")  # fmt: skip
    none.write(tmp_path / "none.parquet")
    assert len(Dataset.read(tmp_path / "none.parquet")) == 0


def test_any_tool_reads_the_queries_and_each_segment_once(tmp_path: Path) -> None:
    data = small()
    data.write(tmp_path / "a.parquet")
    table = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["label"] for row in table] == [1.0, 0.0, 0.5, None, 0.25, 1.0]
    assert [row["query_id"] for row in table] == list(range(6))
    assert {row["schema_version"] for row in table} == {VERSION}
    assert table[1]["t_shown"] is None and table[0]["t_shown"].timestamp() == pytest.approx(TIMES[0], abs=1e-6)
    segments = {segment["segment_id"]: segment for row in table for segment in row["segments"]}
    assert len(segments) == sum(len(row["segments"]) for row in table) == 9
    first, second = queries(6)
    for i, row in enumerate(table):
        wanted = {"first_segment": (first, i), "second_segment": (first, 0) if i in (1, 2, 3) else (second, i)}
        for name, (source, j) in wanted.items():
            segment = segments[row[name]]
            assert segment["obs"] == source.obs[j].flatten().tolist()
            assert segment["act"] == source.act[j].flatten().tolist()
            assert segment["truth"] == (None if j == 4 else source.env_reward[j].tolist())


def test_answers_are_the_queries_with_a_label() -> None:
    data, (first, second) = small(), queries(6)
    answers = data.preferences()
    assert answers.label.tolist() == [1.0, 0.0, 0.5, 0.25, 1.0]
    assert torch.equal(answers.first.obs, first.obs[[0, 1, 2, 4, 5]])
    assert torch.equal(answers.second.act[[0, 3, 4]], second.act[[0, 4, 5]])
    assert torch.equal(data.store()[:].first.obs, answers.first.obs)
    assert data.store().fresh_loss[:3].tolist() == pytest.approx([np.log(2)] * 3)


def test_what_breaks_the_rules_is_not_written() -> None:
    for wrong, told in ((torch.full((6,), 2.0), "outside"), (torch.full((6,), -0.1), "outside")):
        with pytest.raises(UserError, match=told):
            small(wrong)
    with pytest.raises(UserError, match="is called 'forgotten'"):
        small(unlabelled="forgotten")
    with pytest.raises(UserError, match="letters"):
        small(env_id="x" * 2000)


def test_a_damaged_file_is_an_error_in_one_line_or_what_was_written(tmp_path: Path) -> None:
    data, rng, path, refused = small(), np.random.default_rng(0), tmp_path / "a.parquet", 0
    data.write(path)
    sound = path.read_bytes()
    for _ in range(400):
        path.write_bytes(corrupted(sound, rng))
        try:
            equal(Dataset.read(path), data)
        except UserError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            refused += 1
    assert refused > 300  # the others hit statistics and other bytes that say nothing
    for junk in (b"", b"PAR1", pickle.dumps(data.label), b"PAR1" * 100):
        path.write_bytes(junk)
        with pytest.raises(CorruptFileError):
            Dataset.read(path)
    with pytest.raises(UserError, match="no such file"):
        Dataset.read(tmp_path / "none")


def rewritten(path: Path, table: pa.Table, facts: Any, **more: Any) -> None:
    with pq.ParquetWriter(path, table.schema, store_schema=more.pop("store_schema", False), **more) as writer:
        writer.write_table(table)
        if facts is not None:
            writer.add_key_value_metadata({KEY: json.dumps(facts).encode()})


def test_other_versions_and_other_columns_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    small().write(path)
    table, facts = pq.read_table(path).replace_schema_metadata(None), json.loads(pq.read_metadata(path).metadata[KEY])
    rewritten(path, table, facts)
    equal(Dataset.read(path), small())  # the control
    wider = table.set_column(4, "label", table["label"].cast(pa.float64()))
    swapped = pa.array([0.0, 1.0, *table["label"].to_pylist()[2:]], pa.float32())
    nullable = table.cast(pa.schema([field.with_nullable(True) for field in table.schema]))
    for told, arguments in {
        f"has version {VERSION + 1} of the format": (table, facts | {"version": VERSION + 1}),
        "has version None": (table, {}),
        "is no preference dataset": (table, None),
        "the column label is double and must be float": (wider, facts),
        "the column query_id is int64 and must be int64 not null": (nullable, facts),
        "must have the columns query_id": (table.drop_columns(["sampler"]), facts),
        "obs_size: Input should be": (table, facts | {"obs_size": 0}),
        "the obs of a segment has other than 15": (table, facts | {"obs_size": 3}),
        "content is not as it was written": (table.set_column(4, table.schema.field(4), swapped), facts),
        "more: Extra": (table, facts | {"more": 1}),
    }.items():
        rewritten(path, *arguments)
        with pytest.raises(UserError, match=told) as error:
            Dataset.read(path)
        assert "\n" not in str(error.value)
    rewritten(path, table, facts, store_schema=True)
    with pytest.raises(UserError, match=r"metadata of others: b'ARROW:schema' .*store_schema=False"):
        Dataset.read(path)
    assert SCHEMA.names == table.schema.names


def test_absurd_sizes_are_refused_before_they_unfold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, shape = tmp_path / "a.parquet", (20, 10_000)
    nothing = Segments(torch.zeros(*shape, 40), torch.zeros(*shape, 1), torch.zeros(shape))
    other = nothing._replace(env_reward=torch.ones(shape))
    told = {"env_id": "e", "labeller": "l", "sampler": "s"}
    data = Dataset.of(Queries(nothing, other), torch.zeros(20), **told)
    big = Segments(*(column[:1].expand(20, *column.shape[1:]) for column in data.segments))
    data = Dataset(big, *(torch.arange(20),) * 2, *(torch.zeros(20),) * 3, *(("e",) * 20,) * 4)
    data.write(path)
    assert path.stat().st_size < 100_000  # and unfolded 34 MB
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        monkeypatch.setattr("os.sysconf", lambda name: 2**12)  # a machine of 16 MB
        with pytest.raises(UserError, match=r"needs 0\.\d+ GiB of memory, and the machine has 0\.0156"):
            Dataset.read(path)
        assert pool.max_memory() < 1e6
    finally:
        pa.set_memory_pool(before)
    monkeypatch.undo()

    pair = (Segments(*(column[:1].expand(3000, *column.shape[1:]) for column in side)) for side in queries(1))
    Dataset.of(Queries(*pair), torch.zeros(3000), **told).write(path)
    table, facts = pq.read_table(path).replace_schema_metadata(None), json.loads(pq.read_metadata(path).metadata[KEY])
    words = pa.DictionaryArray.from_arrays(np.zeros(3000, np.int32), pa.array(["x" * 10**6]))
    table = table.set_column(1, pa.field("env_id", words.type, nullable=False), words)
    rewritten(path, table, facts, compression="zstd")  # one name that its dictionary repeats: 3 GB of letters
    tracemalloc.start()
    with pytest.raises(CorruptFileError, match="more than 1000 letters"):
        Dataset.read(path)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()


def folder(tmp_path: Path) -> Path:
    """Of a run that has only been begun."""
    told: dict = {"method": "pebble", "algorithm": "SAC", "algorithm_settings": {}, "device": "cpu", "threads": 1}
    told |= {"versions": {}}
    settings = {"total_timesteps": 100, "query": "k_center", "action_repeat": 2}
    config = told | {"env": "stranger:Theirs-v0", "teacher": "Scripted", "settings": settings}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    return tmp_path


def test_a_run_tells_what_was_skipped_and_what_was_answered_late(tmp_path: Path) -> None:
    asked = [queries(4, seed) for seed in range(3)]
    all_of = [Preferences(*each, label=torch.tensor([1.0, 0.0, 0.5, 1.0])) for each in asked]
    late = Preferences(*(Segments(*map(torch.cat, zip(*parts, strict=True)))
                         for parts in zip(select(all_of[0], slice(2, 3))[:2], all_of[1][:2], strict=True)),
                       label=torch.tensor([0.5, 1, 0, 0.5, 1]))  # fmt: skip
    log = LabelLog(folder(tmp_path) / "labels.sqlite")
    teacher = RecordedTeacher(Scripted(select(all_of[0], slice(0, 2)), late, select(all_of[2], slice(0))), log)
    for each in asked:
        teacher(each)
    data = read_run(tmp_path)
    assert data.label.nan_to_num(-1).tolist() == [1, 0, 0.5, -1, 1, 0, 0.5, 1, *[-1] * 4]
    assert set(data.env_id) == {"stranger:Theirs-v0"} and set(data.sampler) == {"k_center"}
    assert set(data.labeller) == {"Scripted"} and data.action_repeat == 2
    order = [pair for each in asked for pair in encode_pairs(each)]
    assert encode_pairs(data.preferences(torch.arange(12))) == order
    shown, answered = data.t_shown, data.t_answered
    assert len(shown.unique()) == 3 and torch.equal(answered.isnan(), data.label.isnan())
    assert shown[2] == shown[0] < shown[4] and answered[0] < answered[2] == answered[4]
    assert (answered >= shown)[data.labelled].all() and data.label_kind.count("skipped") == 5


def test_a_log_of_the_first_form_is_read_and_one_of_a_later_form_refused(tmp_path: Path) -> None:
    path = folder(tmp_path) / "labels.sqlite"
    answers = Preferences(*queries(3), label=torch.tensor([1.0, 0.0, 1.0]))
    log = LabelLog(path)
    log.append(3, answers)
    log.close()
    with sqlite3.connect(path) as connection:  # what the first form knew
        connection.execute("DROP TABLE skipped")
        for column in LATER_COLUMNS:
            connection.execute(f"ALTER TABLE sessions DROP COLUMN {column}")
        connection.execute("PRAGMA user_version = 0")
    data = read_run(tmp_path)
    assert data is not None and data.label.tolist() == [1, 0, 1] and data.t_shown.isnan().all()
    LabelLog(path).append(3, answers, encode_pairs(queries(1)), 5.0)
    data = read_run(tmp_path)
    assert data is not None and data.t_shown[3:].tolist() == [5.0] * 4 and data.label_kind[6] == "skipped"
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM skipped")
    with pytest.raises(CorruptFileError, match="session 1 are not as they were written"):
        read_run(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {FORM + 1}")
    with pytest.raises(UserError, match=f"form {FORM + 1}"):
        LabelLog(path)


@pytest.mark.slow
def test_a_run_leaves_its_dataset_and_so_does_one_that_is_killed(tmp_path: Path) -> None:
    whole = started("pebble", tmp_path / "whole")
    read = Dataset.read(tmp_path / "whole" / "preferences.parquet")
    assert whole.run is not None and torch.equal(read.preferences().label, whole.run.prefs[:].label)
    assert torch.equal(read.preferences().first.obs, whole.run.prefs[:].first.obs)
    killed(150, lambda: started("pebble", tmp_path / "run"))
    main(["export", str(tmp_path / "run"), "--preferences", str(tmp_path / "part.parquet")])
    part = Dataset.read(tmp_path / "part.parquet")
    assert 0 < len(part) < len(read) and torch.equal(part.label, read.label[: len(part)])
    Agent.resume(tmp_path / "run", trust=True)
    again = Dataset.read(tmp_path / "run" / "preferences.parquet")
    assert encode_pairs(again.preferences()) == encode_pairs(read.preferences())
    assert torch.equal(again.label, read.label)
    assert torch.equal(again.t_shown[: len(part)], part.t_shown)  # nobody was asked twice
    main(["export", str(tmp_path / "run"), "--preferences", str(tmp_path / "same.parquet")])
    assert (tmp_path / "same.parquet").read_bytes() == (tmp_path / "run" / "preferences.parquet").read_bytes()
    LabelLog(folder(tmp_path) / "labels.sqlite")
    assert read_run(tmp_path) is None  # no query, no dataset
