"""One run of many, in this process: it is begun, gone on with, or left to the process that has it.

    python -m rlhf_bilevel.worker OUT METHOD --env ID ...       after OUT, the words of ``rlhf-bilevel train``

Two locks in the shared folder hold that a run is trained once: the sweep's, beside the run's folder, from before the
folder is there; and the run's own, which whoever trains it has. The system releases both when their process dies.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rlhf_bilevel.config import recorded, spread
from rlhf_bilevel.files import CONFIG, SUMS, Elsewhere, Refused, lock, read_yaml, taken
from rlhf_bilevel.options import fail

ELSEWHERE = 75  # exit code: another process has the run; EX_TEMPFAIL of sysexits.h


def ended(out: Path) -> bool:
    return (out / SUMS).is_file()


def begun(out: Path) -> bool:
    return (out / CONFIG).is_file()


def log_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.log")


def claim(out: Path) -> FileLock:
    """The sweep's lock on a run. Timeout when it is entered while another process has it."""
    return lock(out.with_name(f".{out.name}.lock"))


def agree(out: Path, method: str, env: str, settings: Mapping[str, Any]) -> None:
    """Refused where the folder holds a run of another kind, which would be taken for the one that is asked for."""
    if not begun(out):
        return
    told = read_yaml(out / CONFIG)
    recorded(out / CONFIG, told, whole=False)
    there = {"method": told.get("method"), "env": told.get("env"), **spread(told.get("settings", {}), method)}
    for key, asked in {"method": method, "env": env, **spread(settings, method)}.items():
        if key in there and there[key] != asked:
            raise Refused(f"{out} is a run with {key}={there[key]}, not {asked}: choose another --out")


def work(out: Path, words: Sequence[str]) -> int:
    """Exit code: 0 when the run has ended, ELSEWHERE, or that of the command line; told on stderr."""
    from rlhf_bilevel.__main__ import main

    try:
        with claim(out):
            if ended(out):
                return 0
            if not begun(out):
                out.joinpath(f"{CONFIG}.tmp").unlink(missing_ok=True)  # of a process that was killed as it began
                main(["train", *words, "--out", str(out)])
                return 0
            taken(out).release()
            args = asked(words)
            try:
                agree(out, args.method, args.env, args.settings)
            except Refused as error:
                fail(str(error))
            main(["resume", str(out), "--checkpoint-every", args.checkpoint_every, "--trust"])
            return 0
    except (Timeout, Elsewhere):
        return ELSEWHERE
    except SystemExit as stop:
        if stop.code and held(out):  # another process has come between
            return ELSEWHERE
        return 0 if ended(out) else int(stop.code or 0)
    except Exception:
        traceback.print_exc()
        return 1


def asked(words: Sequence[str]) -> argparse.Namespace:
    """What the words of ``train`` ask for: all ``settings`` of the run too, as its file would hold them."""
    from rlhf_bilevel import envs
    from rlhf_bilevel.__main__ import parser
    from rlhf_bilevel.given import configure
    from rlhf_bilevel.many import whole

    args = parser().parse_args(["train", *words])
    args.env = envs.resolve(args.env)
    given = configure(args)
    settings = whole(args.method, args.env, args.preset, given, envs.check(args.env, given))
    return argparse.Namespace(**vars(args), settings=settings)


def held(out: Path) -> bool:
    """Whether another process trains the run."""
    try:
        if begun(out):
            taken(out).release()
    except Elsewhere:
        return True
    return False


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print("usage: python -m rlhf_bilevel.worker OUT METHOD --env ID ... (sweep and tune start it)", file=sys.stderr)
        raise SystemExit(2)
    raise SystemExit(work(Path(sys.argv[1]), sys.argv[2:]))
