"""One run of many, in this process: it is begun, gone on with, or left to the process that has it.

    python -m rlhf_bilevel.worker OUT METHOD --env ID ...       after OUT, the words of ``rlhf-bilevel train``

Two locks in the shared folder hold that a run is trained once: the sweep's, beside the run's folder, from before the
folder is there; and the run's own, which whoever trains it has. The system releases both when their process dies.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from filelock import FileLock, Timeout

from rlhf_bilevel.files import CONFIG, LOCK, SUMS, read_yaml

ELSEWHERE = 75  # exit code: another process has the run; EX_TEMPFAIL of sysexits.h


def ended(out: Path) -> bool:
    return (out / SUMS).is_file()


def begun(out: Path) -> bool:
    return (out / CONFIG).is_file()


def log_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def claim(out: Path) -> FileLock:
    """The sweep's lock on a run. Timeout when it is entered while another process has it."""
    return FileLock(out.with_name(f".{out.name}.lock"), timeout=0)


def work(out: Path, words: Sequence[str]) -> int:
    """Exit code: 0 when the run has ended, ELSEWHERE, or that of the command line; told on stderr."""
    from rlhf_bilevel.__main__ import main

    option = dict(pairwise(words))
    try:
        with claim(out):
            if ended(out):
                return 0
            if not begun(out):
                out.joinpath(f"{CONFIG}.tmp").unlink(missing_ok=True)  # of a process that was killed as it began
                main(["train", *words, "--out", str(out)])
                return 0
            with FileLock(out / LOCK, timeout=0):
                pass
            told = read_yaml(out / CONFIG)
            trust = ["--trust"] if told.get("env") == option["--env"] else []  # its module is named by the user too
            every = option.get("--checkpoint-every", "1m")
            main(["resume", str(out), "--checkpoint-every", every, *trust])
            return 0
    except Timeout:
        return ELSEWHERE
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print("usage: python -m rlhf_bilevel.worker OUT METHOD --env ID ... (sweep and tune start it)", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(work(Path(sys.argv[1]), sys.argv[2:]))
