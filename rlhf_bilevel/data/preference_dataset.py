"""Preference datasets: who was asked which of two segments is better, when, and what was the answer. One Parquet file.

A row is a query. Its ``label`` is 1 if the first segment is better, 0 if the second is, .5 for a tie, null for none:

    query_id  env_id  first_segment  second_segment  label  label_kind  labeller  sampler  t_shown  t_answered
    schema_version  segments(segment_id, obs, act, truth)

Each segment is stored once, in the first row that needs it: ``segments`` of a row holds those segments that no earlier
row has. The file's metadata, under KEY, has the numbers that are the same for all rows, and a SHA-256 of everything. If
columns or their meaning change, VERSION changes; a reader refuses versions that it does not know.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from rlhf_bilevel.data.preference_buffer import PreferenceBuffer
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.types import Preferences, Queries, Segments
from rlhf_bilevel.utils.files import check_memory, open_to_read, write

VERSION, KEY = 1, b"rlhf_bilevel.preferences"
Size = Annotated[int, Field(ge=1, le=2**31 - 1, strict=True)]
TEXTS = ("env_id", "label_kind", "labeller", "sampler")
TIMES = ("t_shown", "t_answered")
SKIPPED, OPEN = "skipped", "open"
"""Kinds of label that are none: the teacher left the query out, or nobody was asked yet."""


def _list(of: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", of, nullable=False))


def _required(name: str, of: pa.DataType) -> pa.Field:
    return pa.field(name, of, nullable=False)


FLOATS, TIME = _list(pa.float32()), pa.timestamp("us", tz="UTC")
SEGMENT = pa.struct(
    [
        _required("segment_id", pa.int64()),
        _required("obs", FLOATS),  # T * o floats, step by step
        _required("act", FLOATS),
        pa.field("truth", FLOATS),  # null if not known
    ]
)
SCHEMA = pa.schema(
    [
        _required("query_id", pa.int64()),
        _required("env_id", pa.string()),
        _required("first_segment", pa.int64()),
        _required("second_segment", pa.int64()),
        pa.field("label", pa.float32()),
        _required("label_kind", pa.string()),
        _required("labeller", pa.string()),
        _required("sampler", pa.string()),
        pa.field("t_shown", TIME),
        pa.field("t_answered", TIME),
        _required("schema_version", pa.int32()),
        _required("segments", _list(SEGMENT)),
    ]
)
ROWS = 1000  # rows in a row group
LONGEST = 1000  # most letters in a name
UNFOLDED, RATIO = 2**28, 200  # a file may decompress to this many bytes, or to this multiple of its size
COPIES = 3  # copies of a file's content in memory while it is read
# Segments of one run overlap. zstd can use that if its window and the pages are large: 3 MB instead of 10
STORED: dict[str, Any] = {
    "compression": "zstd",
    "compression_level": 12,
    "use_dictionary": list(TEXTS),
    "data_page_size": 2**30,
    "write_page_checksum": True,
    "store_schema": False,
}


class Metadata(BaseModel):
    """What the file's metadata hold: sizes, the environment's ``action_repeat`` and ``protocol``, and the SHA-256."""

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    segment_length: Size  # T
    obs_size: Size  # o
    act_size: Size  # a
    action_repeat: Size
    protocol: str
    sha256: str


@dataclass(frozen=True, eq=False)
class Dataset:
    """Q queries about S segments. Unknown numbers are NaN. ``action_repeat`` and ``protocol`` are the environment's."""

    segments: Segments  # (S, T, ...); truth NaN if not known
    first: Tensor  # (Q,) int64, rows of ``segments``
    second: Tensor
    label: Tensor  # (Q,) float32, NaN without a label
    t_shown: Tensor  # (Q,) float64, seconds since 1970 to the microsecond
    t_answered: Tensor
    env_id: tuple[str, ...]  # (Q,)
    label_kind: tuple[str, ...]  # choice, tie, probability; without a label, skipped or open
    labeller: tuple[str, ...]  # who was asked
    sampler: tuple[str, ...]  # the rule that chose the query
    action_repeat: int = 1
    protocol: str = "bpref"

    @classmethod
    def of(
        cls,
        queries: Queries,
        label: Tensor,
        *,
        env_id: str,
        labeller: str,
        sampler: str,
        t_shown: Sequence[float] | None = None,
        t_answered: Sequence[float] | None = None,
        unlabelled: str = SKIPPED,
        action_repeat: int = 1,
        protocol: str = "bpref",
    ) -> Dataset:
        """A dataset of B queries and their labels (B,) in [0, 1], NaN for none. Equal segments are stored once.

        ``unlabelled`` is the label_kind of queries without a label: SKIPPED or OPEN. Times (B,) are seconds since 1970.
        UserError if such a file would not be valid.
        """
        stacked = [torch.stack(pair, 1).flatten(0, 1).float() for pair in zip(*queries, strict=True)]  # (2 B, T, ...)
        rows = np.concatenate([column.flatten(1).numpy() for column in stacked], 1)
        number: dict[bytes, int] = {}
        ids = [number.setdefault(hashlib.sha256(row).digest(), len(number)) for row in rows]
        new = np.unique(ids, return_index=True)[1]
        first, second = torch.tensor(ids, dtype=torch.int64).reshape(-1, 2).unbind(1)

        def times(given: Sequence[float] | None) -> Tensor:
            seconds = np.asarray([np.nan] * len(label) if given is None else given, np.float64)
            return torch.from_numpy(np.where(np.isnan(seconds), np.nan, _microseconds(seconds) / 1e6))

        dataset = cls(
            Segments(*(column[new] for column in stacked)),
            first.contiguous(),
            second.contiguous(),
            label.float(),
            times(t_shown),
            times(t_answered),
            env_id=(env_id,) * len(label),
            label_kind=tuple(_kind(value) or unlabelled for value in label.tolist()),
            labeller=(labeller,) * len(label),
            sampler=(sampler,) * len(label),
            action_repeat=action_repeat,
            protocol=protocol,
        )
        if fault := dataset._fault():
            raise UserError(f"these queries make no dataset: {fault}")
        return dataset

    def __len__(self) -> int:
        return len(self.label)

    @property
    def labelled(self) -> Tensor:
        """Rows of the queries that have a label, in order."""
        return self.label.isfinite().nonzero().squeeze(-1)

    def preferences(self, rows: Tensor | None = None) -> Preferences:
        """The answers at ``rows``; by default, of all queries that have a label."""
        rows = self.labelled if rows is None else rows
        first, second = (Segments(*(c[ids[rows]] for c in self.segments)) for ids in (self.first, self.second))
        return Preferences(first, second, self.label[rows])

    def store(self, rows: Tensor | None = None) -> PreferenceBuffer:
        """``preferences`` as a buffer to train on; no reward model has been fitted to them."""
        answers, store = self.preferences(rows), PreferenceBuffer()
        store.add(answers, torch.full_like(answers.label, math.log(2)))
        return store

    def write(self, path: Path | str) -> None:
        """Writes the file completely, or leaves what was there before."""
        _, length, obs_size = self.segments.obs.shape
        facts = Metadata(
            segment_length=length,
            obs_size=obs_size,
            act_size=self.segments.act.shape[-1],
            action_repeat=self.action_repeat,
            protocol=self.protocol,
            sha256=self.sha256(),
        )
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, SCHEMA, **STORED) as writer:
            for start in range(0, len(self), ROWS):
                writer.write_table(self._table(slice(start, start + ROWS)), row_group_size=ROWS)
            writer.add_key_value_metadata({KEY: facts.model_dump_json().encode()})
        write(Path(path), sink.getvalue())

    @classmethod
    def read(cls, path: Path | str) -> Dataset:
        """Reads a file that ``write`` wrote.

        UserError if the file cannot be opened, is of another version or too large for the memory; CorruptFileError if
        anything in it is not as it was written.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        with open_to_read(path, math.inf):
            pass  # UserError unless it is a plain file
        try:
            with pq.ParquetFile(path) as file:
                facts = _check_metadata(path, file)
            with pq.ParquetFile(path, read_dictionary=list(TEXTS), page_checksum_verification=True) as file:
                dataset = cls._of_table(file.read(use_threads=False), facts)
        except UserError:
            raise
        except (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
            if isinstance(error, OSError) and error.errno:  # Arrow's own errors have none
                raise UserError(f"{path} cannot be read: {error.strerror}") from None
            raise CorruptFileError(
                f"{path} is damaged or no Parquet file: {' '.join(str(error).split())[:200]}"
            ) from None
        if fault := dataset._fault():
            raise CorruptFileError(f"{path} is damaged: {fault}")
        if dataset.sha256() != facts.sha256:
            raise CorruptFileError(f"{path} is damaged: its content is not as it was written")
        return dataset

    def sha256(self) -> str:
        """Hash of everything in the dataset: two datasets are equal if their hashes are."""
        total = hashlib.sha256()
        for column in (*self.segments, self.first, self.second, self.label, self.t_shown, self.t_answered):
            values, is_known = column.numpy(), ~column.isnan().numpy()  # the bits of a NaN can differ
            total.update(json.dumps([str(values.dtype), values.shape]).encode())
            total.update(np.where(is_known, values, values.dtype.type(0)).tobytes() + np.packbits(is_known).tobytes())
        texts = [list(getattr(self, name)) for name in TEXTS]
        total.update(json.dumps([*texts, self.action_repeat, self.protocol]).encode())
        return total.hexdigest()

    def _fault(self) -> str | None:
        """The first rule of the format that is broken, in words; None if all hold."""
        count, used = len(self.segments.obs), torch.stack([self.first, self.second])
        truth = self.segments.env_reward.isfinite()
        if not (self.segments.obs.isfinite().all() and self.segments.act.isfinite().all()):
            return "an observation or action is not finite"
        if (truth.any(1) != truth.all(1)).any() or self.segments.env_reward.isinf().any():
            return "a segment's truth is known in part, or not finite"
        if (int(used.min()), int(used.max())) != (0, count - 1) if len(self) else count:
            return f"queries name segments other than the {count} that there are"
        if ((self.label < 0) | (self.label > 1)).any():
            return "a label lies outside [0, 1]"
        if any(len(text) > LONGEST for name in TEXTS for text in set(getattr(self, name))):
            return f"a name has more than {LONGEST} letters"
        for kind, value in zip(self.label_kind, self.label.tolist(), strict=True):
            if kind != _kind(value) and not (math.isnan(value) and kind in (SKIPPED, OPEN)):
                return f"label {value:g} is called {kind[:20]!r}"
        return None

    def _table(self, rows: slice) -> pa.Table:
        """These queries as a table, each with the segments that no earlier query of the dataset has."""
        latest = torch.stack([self.first, self.second]).amax(0).numpy()
        brought = np.maximum.accumulate(np.concatenate([np.zeros(1, int), latest + 1]))  # segments before query q
        ends = brought[rows.start : rows.stop + 1]
        new = slice(ends[0], ends[-1])
        obs, act, truth = (column[new].numpy() for column in self.segments)
        numbers = pa.array(np.arange(new.start, new.stop))
        columns = [numbers, _lists(obs), _lists(act), _lists(truth, is_known=np.isfinite(truth).all(1))]
        segments = pa.StructArray.from_arrays(columns, fields=list(SEGMENT))
        queries = np.arange(len(self))[rows]
        table = {name: pa.array(getattr(self, name)[rows], pa.string()) for name in TEXTS}
        table |= {name: _timestamps(getattr(self, name)[rows].numpy()) for name in TIMES}
        table |= {
            "query_id": pa.array(queries),
            "first_segment": pa.array(self.first[rows].numpy()),
            "second_segment": pa.array(self.second[rows].numpy()),
            "label": pa.array(self.label[rows].numpy(), from_pandas=True),  # NaN is null
            "schema_version": pa.array(np.full(len(queries), VERSION, np.int32)),
            "segments": pa.ListArray.from_arrays((ends - ends[0]).astype(np.int32), segments, type=_list(SEGMENT)),
        }
        return pa.Table.from_arrays([table[name] for name in SCHEMA.names], schema=SCHEMA)

    @classmethod
    def _of_table(cls, table: pa.Table, facts: Metadata) -> Dataset:
        """The dataset in ``table``. ValueError if its columns do not fit together."""
        segments, length = pc.list_flatten(table["segments"]), facts.segment_length
        count = len(segments)
        for column, expected in (
            (table["query_id"], np.arange(len(table))),
            (table["schema_version"], np.full(len(table), VERSION)),
            (pc.struct_field(segments, "segment_id"), np.arange(count)),
        ):
            if not np.array_equal(column.to_numpy(), expected):
                raise ValueError("its rows or segments are not numbered from 0 on, or of several versions")

        def floats(name: str, width: int) -> tuple[Tensor, Tensor]:
            """Those of the segments that have them (N, width), and which have (S,)."""
            lists = pc.struct_field(segments, name)
            is_known = pc.is_valid(lists).to_numpy()
            if (pc.list_value_length(lists).drop_null().to_numpy() != width).any():
                raise ValueError(f"the {name} of a segment has other than {width} values")
            values = pc.list_flatten(lists).to_numpy().reshape(-1, width)
            return torch.from_numpy(values.copy()), torch.from_numpy(is_known.copy())

        obs, act = floats("obs", length * facts.obs_size)[0], floats("act", length * facts.act_size)[0]
        values, is_known = floats("truth", length)
        truth = torch.full((count, length), torch.nan)  # NaN: not known
        truth[is_known] = values
        columns: dict[str, Any] = {
            name: torch.from_numpy(table[column].to_numpy().copy())
            for name, column in (("first", "first_segment"), ("second", "second_segment"), ("label", "label"))
        }
        columns |= {name: torch.from_numpy(_seconds(table[name])) for name in TIMES}
        columns |= {name: tuple(_read_texts(table[name])) for name in TEXTS}
        return cls(
            Segments(obs.reshape(count, length, facts.obs_size), act.reshape(count, length, facts.act_size), truth),
            **columns,
            action_repeat=facts.action_repeat,
            protocol=facts.protocol,
        )


def _check_metadata(path: Path, file: pq.ParquetFile) -> Metadata:
    """The file's metadata. Raises as ``Dataset.read``, before anything is decompressed."""
    metadata = file.metadata.metadata or {}
    if KEY not in metadata:
        raise UserError(f"{path} is no preference dataset: its metadata have no {KEY.decode()}")
    metadata_json = json.loads(metadata[KEY])
    version = metadata_json.get("version") if isinstance(metadata_json, dict) else None
    if version != VERSION:
        raise UserError(f"{path} has version {version!r:.20} of the format, and this reads version {VERSION}")
    schema = file.schema.to_arrow_schema()
    if schema.names != SCHEMA.names:
        raise UserError(f"{path} must have the columns {', '.join(SCHEMA.names)}, not {', '.join(schema.names):.200}")
    for actual, expected in zip(schema, SCHEMA, strict=True):
        if actual != expected:
            raise UserError(f"{path}: the column {expected.name} is {_type(actual)} and must be {_type(expected)}")
    if metadata.keys() != {KEY}:  # another schema there would change how columns are read
        others = ", ".join(map(repr, metadata.keys() - {KEY}))
        raise UserError(f"{path} has metadata of others: {others:.200} (pyarrow: store_schema=False)")
    columns = [
        file.metadata.row_group(group).column(column)
        for group in range(file.num_row_groups)
        for column in range(file.metadata.num_columns)
    ]
    unfolded = sum(max(column.total_uncompressed_size, 8 * column.num_values) for column in columns)
    check_memory(path, COPIES * unfolded)
    if unfolded > max(UNFOLDED, RATIO * path.stat().st_size):
        raise UserError(f"{path} would unfold to {unfolded:,} bytes, more than {RATIO} times its size")
    try:
        return Metadata.model_validate(metadata_json)
    except ValidationError as error:
        first = error.errors()[0]
        raise CorruptFileError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _type(field: pa.Field) -> str:
    return f"{field.type}{'' if field.nullable else ' not null'}"


def _kind(label: float) -> str | None:
    """The label_kind of a label; None for NaN."""
    if math.isnan(label):
        return None
    return "choice" if label in (0, 1) else "tie" if label == 0.5 else "probability"


def _lists(values: np.ndarray, is_known: np.ndarray | None = None) -> pa.ListArray:
    """One list of floats for each of ``values`` (N, ...); null where ``is_known`` (N,) is false."""
    is_known = np.ones(len(values), bool) if is_known is None else is_known
    lengths = np.where(is_known, math.prod(values.shape[1:]), 0)
    offsets = np.concatenate([np.zeros(1, int), lengths.cumsum()]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values[is_known].ravel(), type=FLOATS, mask=pa.array(~is_known))


def _microseconds(seconds: np.ndarray) -> np.ndarray:
    return np.round(np.nan_to_num(seconds) * 1e6).astype(np.int64)


def _timestamps(seconds: np.ndarray) -> pa.Array:
    """Seconds since 1970 as timestamps; NaN becomes null."""
    return pa.array(_microseconds(seconds), mask=np.isnan(seconds)).cast(TIME)


def _seconds(timestamps: pa.ChunkedArray) -> np.ndarray:
    return timestamps.cast(pa.int64()).to_numpy().astype(np.float64) / 1e6


def _read_texts(column: pa.ChunkedArray) -> list[str]:
    """The texts of all rows. Equal texts share one object, to save memory."""
    texts: list[str] = []
    for chunk in column.chunks:
        words = chunk.dictionary.to_pylist()
        texts += [words[i] for i in chunk.indices.to_pylist()]
    return texts
