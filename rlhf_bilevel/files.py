"""Files that are whole or absent, known by their SHA-256, and never a pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from torch import Tensor

SUMS = "SHA256SUMS"
CONFIG, LOCK, PROGRESS, EVALUATIONS = "config.yaml", ".lock", "progress.csv", "evaluations.csv"  # in a run's folder
STEP = "time/total_timesteps"  # column of PROGRESS
ROOM = 16  # letters of a file's name that are left for what stands beside it, such as NAME.lock
TEXT_LIMIT = 2**26  # bytes of a JSON or YAML file that is read; ours are far below


class Refused(ValueError):
    """What a user asks for cannot be done; the message says why in one line."""


class Damaged(Refused):
    """A file is not what was written."""


def enough_memory(what: object, needed: float) -> None:
    """Refused where ``what`` needs more bytes than the machine has."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise Refused(f"{what} needs {needed / 2**30:.3g} GiB of memory, and the machine has {there / 2**30:.3g}")


def writable(path: Path) -> Path:
    """``path``, whose folders are made later; ValueError where they, or it, could not be made. Writes nothing."""
    there, missing = path.absolute(), list[str]()
    while not os.path.lexists(there):  # False also where a name is too long
        missing, there = [*missing, there.name], there.parent
    if missing and not there.is_dir():
        raise ValueError(f"{path} cannot be made: {there} is not a folder")
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise ValueError(f"{path} cannot be written: {there} is read-only here")
    longest = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    for name in missing:
        if len(os.fsencode(name)) > longest - ROOM:
            raise ValueError(f"{name[:20]}... has {len(name)} letters: a name has at most {longest - ROOM}")
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write(path: Path, data: bytes) -> None:
    """All of ``data`` or, after a fault at any moment, what was there before; on the disk when this returns."""
    unfinished = path.with_name(path.name + ".tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:  # above all a full disk: leave it no fuller
        unfinished.unlink(missing_ok=True)
        error.filename = str(path)  # a failed write names no file
        raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """Puts a folder's names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def one_line(error: BaseException) -> str:
    """What an error says; of the system's errors, the file and what is wrong with it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def to_json(value: Any, indent: int | None = None) -> str:
    """As JSON, which has no NaN and no infinity: they become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), indent=indent, allow_nan=False)


def tensors(data: bytes, source: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file's content. Damaged where it is none; its header is checked against its size."""
    from safetensors import SafetensorError
    from safetensors.torch import load  # not before it is needed: the command line checks its input without torch

    try:
        return load(data)
    except SafetensorError as error:
        raise Damaged(f"{source} is damaged or no safetensors file: {error}") from None


def write_sums(folder: Path, names: Collection[str]) -> None:
    """The files' SHA-256, in the format of ``sha256sum --check``."""
    lines = [f"{sha256((folder / name).read_bytes())}  {name}\n" for name in names]
    write(folder / SUMS, "".join(lines).encode())


def check_sums(folder: Path) -> None:
    """Damaged unless every file that ``write_sums`` knew is as it was."""
    for line in _text(folder / SUMS).splitlines():
        expected, _, name = line.partition("  ")
        path = folder / Path(name).name
        if not path.is_file() or sha256(path.read_bytes()) != expected:
            raise Damaged(f"{path} is missing or damaged: its SHA-256 is not the one in {SUMS}")


def read_json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is damaged or no JSON: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain values by their names; Damaged where it is none, Refused where the file cannot be opened.

    Aliases are refused: a few lines of them unfold to more than any memory holds. So is a name that is given twice.
    """
    try:
        told = from_yaml(_text(path))
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise Damaged(f"{path} cannot be read: {error}") from None
    if not isinstance(told, dict):
        raise Damaged(f"{path} holds no mapping of settings")
    for key in told:
        if not isinstance(key, str):
            raise Damaged(f"{path}: {key!r} is no name of a setting; names are text")
    return told


def from_yaml(text: str) -> Any:
    """Plain values; ValueError in one line."""
    try:
        return yaml.load(text, _Plain)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(one_line(error)) from None


def _text(path: Path) -> str:
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size  # 0 of a device, which may have no end
        data = b"" if size > TEXT_LIMIT else file.read(size or TEXT_LIMIT + 1)
    if max(size, len(data)) > TEXT_LIMIT:
        raise Damaged(f"{path} is larger than {TEXT_LIMIT} bytes")
    return data.decode()


class _Plain(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases (*name) are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if names and max(names.values()) > 1:
            raise ValueError(f"{names.most_common(1)[0][0]!r} is given twice")
        return super().construct_mapping(node, deep)
