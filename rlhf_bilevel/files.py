"""Files that are whole or absent, known by their SHA-256, and never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from torch import Tensor

SUMS = "SHA256SUMS"
CONFIG, LOCK, PROGRESS, EVALUATIONS = "config.yaml", ".lock", "progress.csv", "evaluations.csv"  # in a run's folder
STEP = "time/total_timesteps"  # column of PROGRESS
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
    except OSError:  # above all a full disk: leave it no fuller
        unfinished.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(folder: Path) -> None:
    """Puts a folder's names on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
    """A mapping of plain values. Aliases are refused: a few lines of them unfold to more than any memory holds."""
    try:
        told = yaml.load(_text(path), _WithoutAliases)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise Damaged(f"{path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(told, dict):
        raise Damaged(f"{path} holds no mapping of settings")
    return told


def _text(path: Path) -> str:
    if path.stat().st_size > TEXT_LIMIT:
        raise Damaged(f"{path} is larger than {TEXT_LIMIT} bytes")
    return path.read_text("utf-8")


class _WithoutAliases(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases (*name) are not read")
        return super().compose_node(parent, index)
