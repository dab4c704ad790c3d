"""Checkpoints of a run: complete or absent, verified when they are read, and no row is written twice.

    FOLDER/step-000010000/       state.json, state.safetensors    what changes
                                 manifest.json                    the settings' hash; size and SHA-256 of every file
    FOLDER/step-000008000-kept/  the same, of a checkpoint that is kept
    FOLDER/rows-0-8000.safetensors, rows-8000-10000 ...           what only grows

The order of writing is: new rows, the state in a hidden folder, its manifest, the folder's final name. Each is on the
disk before the next begins, so a fault at any moment leaves earlier checkpoints intact. The newest two are kept, and
those that are to be kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import BaseModel, Field
from safetensors.torch import save as to_bytes

from rlhf_bilevel.errors import CorruptFileError
from rlhf_bilevel.utils.files import JSON_LIMIT, load_tensors, open_to_read, read, sha256, sync, write
from rlhf_bilevel.utils.json_yaml import read_json
from rlhf_bilevel.utils.serialization import Table, Tree, pack, unpack

KEPT = 2
FORMAT: Literal[3] = 3  # format 1 had the answers, too; 2 had other names
MANIFEST, UNFINISHED = "manifest.json", ".unfinished"
KEPT_NAME = "-kept"
STEP, PIECE = re.compile(rf"step-(\d{{9,}})({KEPT_NAME})?"), r"^[a-z]+-\d+-\d+\.safetensors$"


class FileEntry(BaseModel):
    """Size in bytes and SHA-256 of a file."""

    size: int
    sha256: str


class TablePiece(FileEntry):
    """A file with rows ``start`` to ``end`` of a table."""

    file: Annotated[str, Field(pattern=PIECE)]
    start: int
    end: int


class Manifest(BaseModel):
    """What a checkpoint consists of. ``settings`` is the hash of config.yaml."""

    format: Literal[3] = FORMAT
    step: int
    settings: str
    files: dict[Literal["state.json", "state.safetensors"], FileEntry]
    tables: dict[str, list[TablePiece]]

    def seal(self) -> bytes:
        """The manifest as JSON, with its own SHA-256."""
        body = self.model_dump()
        return json.dumps(body | {"sha256": sha256(json.dumps(body).encode())}).encode()

    @classmethod
    def unseal(cls, path: Path) -> Manifest:
        """Reads what ``seal`` gave. CorruptFileError unless every byte is as it was written."""
        content = read_json(path)
        if isinstance(content, dict) and content.get("format") != FORMAT:
            raise OtherFormatError(f"it has format {content.get('format')!r:.20}, and this version reads {FORMAT}")
        manifest = cls.model_validate(content)
        if manifest.seal() != read(path, JSON_LIMIT):
            raise CorruptFileError(f"{path.name} is not as it was written")
        for name, pieces in manifest.tables.items():
            ends = [0, *(piece.end for piece in pieces)]
            for piece, start in zip(pieces, ends, strict=False):  # no gap, no overlap, and each file once
                if not start == piece.start < piece.end or piece.file != f"{name}-{start}-{piece.end}.safetensors":
                    raise CorruptFileError(f"{path.name} names {piece.file} in a place that is not its own")
        return manifest


class OtherSettingsError(CorruptFileError):
    """A checkpoint was made with another config.yaml."""


class OtherFormatError(CorruptFileError):
    """A checkpoint was made by another version of this package."""


class Checkpoint(NamedTuple):
    """What a checkpoint holds: the environment step, the state that changes, and the tables that only grow."""

    step: int
    tree: Tree
    tables: dict[str, Table]


class Checkpoints:
    """The checkpoints of one run. ``settings`` is the hash of its config.yaml; those of another hash are not used."""

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder, self._settings = folder, settings
        self._sound: list[Path] = []  # written or checked by this object, oldest first
        self._tables: dict[str, list[TablePiece]] = {}  # pieces of each table that are on the disk

    def save(self, step: int, tree: Tree, tables: Mapping[str, Table], keep: bool = False) -> Path:
        """Writes and verifies a checkpoint, and returns its folder. OSError if that fails; earlier ones stay.

        With ``keep`` it is not removed when newer ones come.
        """
        self.folder.mkdir(exist_ok=True)
        pieces = {name: [*self._tables.get(name, []), *self._append(name, table)] for name, table in tables.items()}
        tree_json, state_tensors = pack(tree)
        state = {"state.json": json.dumps(tree_json).encode(), "state.safetensors": to_bytes(state_tensors)}
        files = {name: FileEntry(size=len(data), sha256=sha256(data)) for name, data in state.items()}
        manifest = Manifest(step=step, settings=self._settings, files=files, tables=pieces)  # type: ignore[arg-type]
        unfinished, target = self.folder / UNFINISHED, self.folder / f"step-{step:09d}{KEPT_NAME * keep}"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for name, data in state.items():
            write(unfinished / name, data)
        write(unfinished / MANIFEST, manifest.seal())
        if target.exists():  # it must be damaged, or the run would have continued from it
            shutil.rmtree(target)
        os.replace(unfinished, target)
        sync(self.folder)
        self._check(target)
        self._tables, self._sound = pieces, [*self._sound, target][-KEPT:]
        with contextlib.suppress(OSError):
            self._clean()
        return target

    def steps(self) -> list[int]:
        """Steps of all checkpoints, valid or not, in order."""
        return sorted({step for step, _ in self._found()})

    def _found(self) -> list[tuple[int, str]]:
        """The step and the name of each, in order."""
        matches = (STEP.fullmatch(path.name) for path in self.folder.glob("step-*"))
        return sorted((int(match[1]), match.string) for match in matches if match)

    def load(self, at: int | None = None) -> Checkpoint | None:
        """The newest valid checkpoint, with a warning for each newer one that is not valid; None if there is none.

        With ``at``, the newest at that step or before. CorruptFileError if there are some and none is valid.
        """
        other_settings, other_formats, removed_meanwhile = 0, 0, False
        candidates = [self.folder / name for step, name in self._found() if at is None or step <= at]
        for path in reversed(candidates):
            try:
                manifest = self._check(path)
                state = path / "state.safetensors"
                size = manifest.files["state.safetensors"].size
                tree = unpack(read_json(path / "state.json"), load_tensors(read(state, size), state))
                tables = {name: self._joined(pieces) for name, pieces in manifest.tables.items()}
            except (ValueError, OSError, LookupError, RuntimeError, TypeError) as error:
                if not path.exists():  # just removed by the run, which has a newer one
                    removed_meanwhile = True
                    continue
                other_settings += isinstance(error, OtherSettingsError)
                other_formats += isinstance(error, OtherFormatError)
                warnings.warn(f"{path} is passed over: {' '.join(str(error).split())}", stacklevel=2)
                continue
            self._sound, self._tables = [path], manifest.tables
            return Checkpoint(manifest.step, tree, tables)
        if removed_meanwhile:
            return self.load(at)
        if candidates:
            remedy = f"if you remove {self.folder}, resume begins anew and comes to the same end, bit for bit"
            if other_settings == len(candidates):
                remedy = "put back the config.yaml that they were made with"
            if other_formats == len(candidates):
                remedy = f"go on with the version that made them, or remove {self.folder}, and resume begins anew"
            raise CorruptFileError(
                f"none of the {len(candidates)} checkpoints in {self.folder} can be used; nothing was changed: {remedy}"
            )
        return None

    def _append(self, name: str, table: Table) -> list[TablePiece]:
        """Writes the rows that are not on the disk yet: one piece, or none."""
        stored = self._tables.get(name)
        start, end = stored[-1].end if stored else 0, len(next(iter(table.values())))
        if start == end:
            return []
        data = to_bytes({column: values[start:end].contiguous() for column, values in table.items()})
        file = f"{name}-{start}-{end}.safetensors"
        write(self.folder / file, data)
        return [TablePiece(file=file, start=start, end=end, size=len(data), sha256=sha256(data))]

    def _joined(self, pieces: list[TablePiece]) -> Table:
        parts = [load_tensors(read(self.folder / piece.file, piece.size), piece.file) for piece in pieces]
        return {column: torch.cat([part[column] for part in parts]) for column in parts[0]} if parts else {}

    def _check(self, path: Path) -> Manifest:
        """The manifest, if all that it names is as it was written. Pieces checked before are not read again."""
        manifest = Manifest.unseal(path / MANIFEST)
        if path.name.removesuffix(KEPT_NAME) != f"step-{manifest.step:09d}":
            raise CorruptFileError(f"it holds step {manifest.step}")
        if manifest.settings != self._settings:
            raise OtherSettingsError("config.yaml is not the one that it was made with")
        checked_pieces = [piece for pieces in self._tables.values() for piece in pieces]
        new = [piece for pieces in manifest.tables.values() for piece in pieces if piece not in checked_pieces]
        for file, entry in [*((path / name, entry) for name, entry in manifest.files.items()),
                            *((self.folder / piece.file, piece) for piece in new)]:  # fmt: skip
            with open_to_read(file, entry.size) as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != entry.sha256:
                    raise CorruptFileError(f"{file.name} is not as it was written")
        return manifest

    def keep_the_last(self) -> None:
        """Removes all but the newest and those that are to be kept."""
        self._sound = self._sound[-1:]
        with contextlib.suppress(OSError):
            self._clean()

    def _clean(self) -> None:
        """Removes what no remaining checkpoint needs."""
        stay = {*self._sound, *self.folder.glob(f"step-*{KEPT_NAME}")}
        for path in self.folder.iterdir():
            if STEP.fullmatch(path.name) and path not in stay:
                shutil.rmtree(path)
        try:
            manifests = [Manifest.unseal(path / MANIFEST) for path in stay]
        except ValueError:
            return  # a damaged one does not say which pieces it needs
        needed = {piece.file for manifest in manifests for pieces in manifest.tables.values() for piece in pieces}
        for path in self.folder.iterdir():
            if path.suffix in (".safetensors", ".tmp") and path.name not in needed:
                path.unlink()
