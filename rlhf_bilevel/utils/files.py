"""Files that are whole or absent, checked by their SHA-256, and never a pickle."""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from rlhf_bilevel.errors import AlreadyExistsError, CorruptFileError, UserError, WriteError

if TYPE_CHECKING:
    from torch import Tensor

SUMS = "SHA256SUMS"
ROOM = 16  # letters that a file's name leaves for names such as NAME.lock
# Most bytes of a file that is read whole; our own files are much smaller
JSON_LIMIT, CSV_LIMIT, SUMS_LIMIT = 2**24, 2**25, 2**12
ENTRIES, DEPTH = 100_000, 8  # most files in a run's folder, and most levels of folders
OURS = re.compile(
    r"\.(csv|jsonl?|lock|parquet|png|safetensors|sqlite.*|tmp|yaml|zip)$|^events\.out\.|^(SHA256SUMS|\.lock|run_id)$"
)
"""Names that only files have, not folders."""
HOLES = 2**24, 100  # larger files with less than this share of their bytes on the disk are refused


def check_trust(trust: bool, would: str) -> None:
    """UserError unless ``trust``; ``would`` says what the folder would do."""
    if not trust:
        raise UserError(f"{would}: only with explicit trust (--trust)")


def check_memory(purpose: object, needed: float) -> None:
    """UserError if ``purpose`` needs more bytes than the machine has."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > available:
        raise UserError(
            f"{purpose} needs {needed / 2**30:.3g} GiB of memory, and the machine has {available / 2**30:.3g}"
        )


def check_writable(path: Path) -> Path:
    """Returns ``path``. UserError if it, or its folders, could not be created. Writes nothing."""
    existing, missing = path.absolute(), list[str]()
    while not os.path.lexists(existing):  # also False if a name is too long
        missing, existing = [*missing, existing.name], existing.parent
    if missing and not existing.is_dir():
        raise UserError(f"{path} cannot be made: {existing} is not a folder")
    if not os.access(existing, os.W_OK | (os.X_OK if existing.is_dir() else 0)):
        raise UserError(f"{path} cannot be written: {existing} is read-only here")
    longest = os.pathconf(existing, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    for name in missing:
        if len(os.fsencode(name)) > longest - ROOM:
            raise UserError(f"{name[:20]}... has {len(name)} letters: a name has at most {longest - ROOM}")
    return path


def sha256(data: bytes) -> str:
    """The hash as hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def check_folder(folder: Path, writes: bool = False) -> None:
    """UserError if a run's folder holds anything but plain files and folders: links may lead outside, pipes never end.

    If the run ``writes`` there, no file may have a second name (a hard link), since that may be outside.
    """
    entries_left, to_visit = ENTRIES, [(folder, 0)]
    while to_visit:
        place, depth = to_visit.pop()
        for entry in _scan(place):
            entries_left -= 1
            if entries_left < 0 or depth > DEPTH:
                raise UserError(f"{folder} holds more files or deeper folders than any run's folder")
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # the run that is training removed it
            # run_id is created by a second name, and never changed
            single_name = writes and not entry.name.startswith("run_id")
            if stat.S_ISDIR(status.st_mode) and not OURS.search(entry.name):
                to_visit.append((Path(entry.path), depth + 1))
            else:
                _check_plain(Path(entry.path), status, single_name)


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:  # the run that is training removed it
        return []
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from None


def check_plain_file(path: Path) -> None:
    """UserError unless there is nothing, or a plain file with only this name, which can be written in place."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    _check_plain(path, status, single_name=True)


def _check_plain(path: Path, status: os.stat_result, single_name: bool = False) -> None:
    kinds = {stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder"}
    if not stat.S_ISREG(status.st_mode):
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise UserError(f"{path} is {kind} and no plain file: it is neither read nor written")
    if single_name and status.st_nlink > 1:
        raise UserError(
            f"{path} has a second name (a hard link) and is not written to: copy the folder with cp -r first"
        )
    size, share = HOLES
    if status.st_size > size and _bytes_on_disk(path) * share < status.st_size:
        raise CorruptFileError(f"{path} is damaged: nearly all of its {status.st_size:,} bytes are holes")


def _bytes_on_disk(path: Path) -> int:
    """Bytes of a file that are not holes, as far as the file system tells."""
    total = end = 0
    with suppress(OSError), os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        for _ in range(ENTRIES):
            start = os.lseek(file.fileno(), end, os.SEEK_DATA)  # OSError at the end
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            total += end - start
    return total


@contextmanager
def naming_write_errors(path: Path) -> Iterator[None]:
    """An OSError of the code inside becomes a WriteError in one line that names ``path``."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise WriteError(f"{path} cannot be written: {error.strerror or error}") from error


def write(path: Path, data: bytes) -> None:
    """Writes a file, also to the disk: after a fault at any moment it has all of ``data`` or what it had before.

    A link there is replaced and not followed. WriteError, an OSError, if the file cannot be written.
    """
    unfinished = path.with_name(path.name + ".tmp")
    with naming_write_errors(path):
        try:
            unfinished.unlink(missing_ok=True)  # left by a killed process, or a stranger's link
            with open(unfinished, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except OSError:  # usually a full disk: remove what was written
            with suppress(OSError):
                unfinished.unlink()
            raise
        sync(path.parent)


def append(path: Path, data: bytes) -> None:
    """Appends to a plain file, which is created if missing. Raises as ``write``, and if it is a link."""
    with naming_write_errors(path), open_in_place(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
        file.write(data)


def truncate(path: Path, size: int) -> None:
    """Cuts a plain file after ``size`` bytes. Raises as ``append``."""
    with naming_write_errors(path), open_in_place(path, os.O_WRONLY) as file:
        file.truncate(size)


def open_in_place(path: Path, flags: int) -> BufferedWriter:
    """Opens a file to be written in place, following no link. UserError unless it is plain and has only this name."""
    check_plain_file(path)
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    return os.fdopen(descriptor, "wb")  # does not truncate


@contextmanager
def reserve_new_file(path: Path) -> Iterator[Path]:
    """Creates an empty file in the place of one that is written next. AlreadyExistsError if there is one already.

    The file, and the folders that were made for it, are removed if the code inside fails.
    """
    made = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    with naming_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            open(path, "xb").close()
        except FileExistsError:
            raise AlreadyExistsError(f"{path} exists already and is not overwritten: choose another path") from None
    try:
        yield path
    except BaseException:
        path.unlink(missing_ok=True)
        with suppress(OSError):  # something else has come into it
            for folder in made:
                folder.rmdir()
        raise


def lock(path: Path, timeout: float = 0) -> FileLock:
    """A file lock, not yet taken; it waits ``timeout`` seconds, -1 for ever. UserError if its file is not plain."""
    check_plain_file(path)
    return FileLock(path, timeout=timeout)


def sync(folder: Path) -> None:
    """Puts the names in a folder, or the content of a file, on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def one_line(error: BaseException) -> str:
    """An error's message in one line; for errors of the system, the file and what is wrong."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def read(path: Path, limit: float) -> bytes:
    """A plain file's content. CorruptFileError if it has more than ``limit`` bytes, UserError if it cannot be read."""
    with open_to_read(path, limit) as file:
        try:
            return file.read()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def read_text(path: Path, limit: int) -> str:
    """The text of a file of at most ``limit`` bytes. UserError as in ``read``; CorruptFileError if it is no text."""
    data = read(path, limit)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path} is damaged: {error}") from None


@contextmanager
def open_to_read(path: Path, limit: float) -> Iterator[BufferedReader]:
    """Opens a plain file to read. Raises as ``read``. It does not wait for a pipe or a device, which may never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        _check_plain(path, status)
        if status.st_size > limit:
            raise CorruptFileError(
                f"{path} is damaged: it has {status.st_size:,} bytes, and at most {limit:,} are read"
            )
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def load_tensors(data: bytes, source: Path | str) -> dict[str, Tensor]:
    """The tensors in a safetensors file's content. CorruptFileError, with ``source``, if it is not valid."""
    from safetensors import SafetensorError
    from safetensors.torch import load  # only when needed: the command line checks its input without torch

    try:
        return load(data)
    except SafetensorError as error:
        raise CorruptFileError(f"{source} is damaged or no safetensors file: {error}") from None


def write_sums(folder: Path, names: Collection[str]) -> None:
    """Writes the SHA-256 of the files ``names``, in the format of ``sha256sum --check``."""
    lines = []
    for name in names:
        with open_to_read(folder / name, math.inf) as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    write(folder / SUMS, "".join(lines).encode())


def read_verified(folder: Path, name: str, limit: float, needed: bool = True) -> bytes:
    """A file's content, checked against ``write_sums``. CorruptFileError if it differs.

    ``needed``: also if there is no sum for it.
    """
    sums = dict(line.partition("  ")[::-2] for line in read_text(folder / SUMS, SUMS_LIMIT).splitlines())
    if needed and name not in sums:
        raise CorruptFileError(f"{folder / SUMS} is damaged: it does not name {name}")
    if not (folder / name).is_file():
        raise CorruptFileError(f"{folder / name} is missing")
    data = read(folder / name, limit)
    if name in sums and sha256(data) != sums[name]:
        raise CorruptFileError(f"{folder / name} is damaged: its SHA-256 is not the one in {SUMS}")
    return data
