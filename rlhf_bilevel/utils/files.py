"""Files that are whole or absent, known by their SHA-256, and never a pickle."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from filelock import FileLock

from rlhf_bilevel.errors import AlreadyExistsError, CorruptFileError, UserError, WriteError

if TYPE_CHECKING:
    from torch import Tensor

SUMS = "SHA256SUMS"
ROOM = 16  # letters of a file's name that are left for what stands beside it, such as NAME.lock
# Bytes of a file that is read whole, by its kind; ours are far below
YAML_LIMIT, JSON_LIMIT, CSV_LIMIT, SUMS_LIMIT = 2**17, 2**24, 2**25, 2**12
ENTRIES, DEPTH = 100_000, 8  # files and folders in a run's folder, and how deep they lie
OURS = re.compile(
    r"\.(csv|jsonl?|lock|parquet|png|safetensors|sqlite.*|tmp|yaml|zip)$|^events\.out\.|^(SHA256SUMS|\.lock|run_id)$"
)
"""Names of files, which no folder has."""
HOLES = 2**24, 100  # a file of more bytes, of which less than one in so many was ever written, is a trap


def trusted(trust: bool, would: str) -> None:
    """UserError without ``trust`` in what a folder tells to do."""
    if not trust:
        raise UserError(f"{would}: only with explicit trust (--trust)")


def enough_memory(what: object, needed: float) -> None:
    """UserError where ``what`` needs more bytes than the machine has."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise UserError(f"{what} needs {needed / 2**30:.3g} GiB of memory, and the machine has {there / 2**30:.3g}")


def writable(path: Path) -> Path:
    """``path``, whose folders are made later; UserError where they, or it, could not be made. Writes nothing."""
    there, missing = path.absolute(), list[str]()
    while not os.path.lexists(there):  # False also where a name is too long
        missing, there = [*missing, there.name], there.parent
    if missing and not there.is_dir():
        raise UserError(f"{path} cannot be made: {there} is not a folder")
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise UserError(f"{path} cannot be written: {there} is read-only here")
    longest = os.pathconf(there, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    for name in missing:
        if len(os.fsencode(name)) > longest - ROOM:
            raise UserError(f"{name[:20]}... has {len(name)} letters: a name has at most {longest - ROOM}")
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def examine(folder: Path, writes: bool = False) -> None:
    """UserError where a run's folder holds anything but plain files and folders: a link leads out of it, and a pipe or
    a device never ends.

    Where the run ``writes`` there, none of its files may have a second name (a hard link), which may lie elsewhere.
    """
    left, todo = ENTRIES, [(folder, 0)]
    while todo:
        place, depth = todo.pop()
        for entry in _scanned(place):
            left -= 1
            if left < 0 or depth > DEPTH:
                raise UserError(f"{folder} holds more files or deeper folders than any run's folder")
            try:
                found = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # of a run that goes on meanwhile
            alone = writes and not entry.name.startswith("run_id")  # which is made by a second name, and never changed
            if stat.S_ISDIR(found.st_mode) and not OURS.search(entry.name):
                todo.append((Path(entry.path), depth + 1))
            else:
                _plain(Path(entry.path), found, alone)


def _scanned(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # of a run that goes on meanwhile
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None


def plain(path: Path) -> None:
    """UserError unless there is nothing, or a plain file by this one name: safe to be written in place."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    _plain(path, found, alone=True)


def _plain(path: Path, found: os.stat_result, alone: bool = False) -> None:
    kinds = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    if not stat.S_ISREG(found.st_mode):
        kind = kinds.get(stat.S_IFMT(found.st_mode), "a device")
        raise UserError(f"{path} is {kind} and no plain file: it is neither read nor written")
    if alone and found.st_nlink > 1:
        raise UserError(
            f"{path} has a second name (a hard link) and is not written to: copy the folder with cp -r first"
        )
    size, share = HOLES
    if found.st_size > size and _extent(path) * share < found.st_size:
        raise CorruptFileError(f"{path} is damaged: nearly all of its {found.st_size:,} bytes are holes")


def _extent(path: Path) -> int:
    """Bytes of a file that are no holes, as far as the file system tells."""
    total = end = 0
    with suppress(OSError), os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        for _ in range(ENTRIES):
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)  # an OSError where there is nothing more
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            total += end - start
    return total


@contextmanager
def written(path: Path) -> Iterator[None]:
    """What writes ``path``: where the disk does not take it, WriteError in one line that names it."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error


def write(path: Path, data: bytes) -> None:
    """All of ``data`` or, after a fault at any moment, what was there before; on the disk when this returns.

    A link there is replaced, and not followed. WriteError, an OSError, where that fails.
    """
    unfinished = path.with_name(path.name + ".tmp")
    with written(path):
        try:
            unfinished.unlink(missing_ok=True)  # of a process that was killed, or a link that a stranger has laid
            with open(unfinished, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError:  # above all a full disk: leave it no fuller
            with suppress(OSError):
                unfinished.unlink()
            raise
        sync(path.parent)


def append(path: Path, data: bytes) -> None:
    """At the end of a plain file, which is made where there is none. Raises as ``write``, and where it is a link."""
    with written(path), opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
        file.write(data)


def truncate(path: Path, size: int) -> None:
    with written(path), opened(path, os.O_WRONLY) as file:
        file.truncate(size)


def opened(path: Path, flags: int) -> BufferedWriter:
    """To be written in place. UserError where it is no plain file by this one name; no link is followed."""
    plain(path)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    return os.fdopen(descriptor, "wb")  # truncates nothing by itself


@contextmanager
def made_new(path: Path) -> Iterator[Path]:
    """The place of a file that is about to be written, held from now on. UserError where something is there by now."""
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            open(path, "xb").close()
        except FileExistsError:
            raise AlreadyExistsError(f"{path} exists already and is not overwritten: choose another path") from None
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def lock(path: Path, timeout: float = 0) -> FileLock:
    """Not yet taken, and waited for so many seconds; -1 for ever. UserError where its file is no plain file."""
    plain(path)
    return FileLock(path, timeout=timeout)


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


def read(path: Path, limit: float) -> bytes:
    """A plain file's content. CorruptFileError if it has more than ``limit`` bytes, UserError if it cannot be read."""
    with reading(path, limit) as file:
        try:
            return file.read()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


@contextmanager
def reading(path: Path, limit: float) -> Iterator[BufferedReader]:
    """The same, open. A pipe or a device, which may never end, is not waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # the latter where a zero byte is in the name
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        found = os.fstat(descriptor)
        _plain(path, found)
        if found.st_size > limit:
            raise CorruptFileError(f"{path} is damaged: it has {found.st_size:,} bytes, and at most {limit:,} are read")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def tensors(data: bytes, source: Path | str) -> dict[str, Tensor]:
    """The tensors of a safetensors file's content, its header checked against its size; else CorruptFileError."""
    from safetensors import SafetensorError
    from safetensors.torch import load  # not before it is needed: the command line checks its input without torch

    try:
        return load(data)
    except SafetensorError as error:
        raise CorruptFileError(f"{source} is damaged or no safetensors file: {error}") from None


def write_sums(folder: Path, names: Collection[str]) -> None:
    """The files' SHA-256, in the format of ``sha256sum --check``."""
    lines = []
    for name in names:
        with reading(folder / name, math.inf) as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    write(folder / SUMS, "".join(lines).encode())


def sealed(folder: Path, name: str, limit: float, needed: bool = True) -> bytes:
    """A file's content. CorruptFileError unless it is as ``write_sums`` knew it, or where ``needed`` and not known."""
    sums = dict(line.partition("  ")[::-2] for line in _text(folder / SUMS, SUMS_LIMIT).splitlines())
    if needed and name not in sums:
        raise CorruptFileError(f"{folder / SUMS} is damaged: it does not name {name}")
    if not (folder / name).is_file():
        raise CorruptFileError(f"{folder / name} is missing")
    data = read(folder / name, limit)
    if name in sums and sha256(data) != sums[name]:
        raise CorruptFileError(f"{folder / name} is damaged: its SHA-256 is not the one in {SUMS}")
    return data


def read_json(path: Path) -> Any:
    try:
        return json.loads(_text(path, JSON_LIMIT))
    except UserError:
        raise
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is damaged or no JSON: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping of plain values by their names. CorruptFileError where it is none, UserError where it cannot be read.

    Aliases are refused: a few lines of them unfold to more than any memory holds. So is a name that is given twice.
    """
    try:
        told = from_yaml(_text(path, YAML_LIMIT))
    except UserError:
        raise
    except ValueError as error:
        raise CorruptFileError(f"{path} cannot be read: {error}") from None
    if not isinstance(told, dict):
        raise CorruptFileError(f"{path} holds no mapping of settings")
    for key in told:
        if not isinstance(key, str):
            raise CorruptFileError(f"{path}: {key!r} is no name of a setting; names are text")
    return told


def from_yaml(text: str) -> Any:
    """Plain values; ValueError in one line."""
    try:
        return yaml.load(text, _Plain)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(one_line(error)) from None


def _text(path: Path, limit: int) -> str:
    data = read(path, limit)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None


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
