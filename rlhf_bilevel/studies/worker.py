"""One run of many, in this process: it is begun, gone on with, or left to the process that has it.

    python -m rlhf_bilevel.studies.worker SPEC       a ``RunSpec`` as JSON, whose ``out`` is the run's folder

Two locks in the shared folder hold that a run is trained once: the sweep's, beside the run's folder, from before the
folder is there; and the run's own, which whoever trains it has. The system releases both when their process dies.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from typing import Any

from filelock import Timeout

from rlhf_bilevel.config import spread
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import LockedError, UserError
from rlhf_bilevel.runs import report
from rlhf_bilevel.runs.spec import RunSpec

ELSEWHERE = 75  # exit code: another process has the run; EX_TEMPFAIL of sysexits.h


def whole(spec: RunSpec, limit: int | None = None) -> dict[str, Any]:
    """All settings of a run, as its folder will hold them; ``limit`` is the environment's, where it is known."""
    config, _ = spec.fit(spec.resolve(), limit)
    return config.model_dump(mode="json")


def agree(spec: RunSpec, settings: Mapping[str, Any]) -> None:
    """UserError where the folder holds a run of another kind, which would be taken for the one that is asked for.

    ``settings`` are all of the spec's: see ``whole``.
    """
    out = spec.folder
    if not out.begun:
        return
    told = out.read_config()
    there = {"method": told.get("method"), "env": told.get("env"), **spread(told.get("settings", {}), spec.method)}
    for key, asked in {"method": spec.method, "env": spec.env, **spread(settings, spec.method)}.items():
        if key in there and there[key] != asked:
            raise UserError(f"{out} is a run with {key}={there[key]}, not {asked}: choose another --out")


def work(spec: RunSpec) -> int:
    """Exit code: 0 when the run has ended, ELSEWHERE, 2 for what is told on stderr in one line, 1 for our own fault."""
    from rlhf_bilevel.runs.session import resume, train

    out = spec.folder
    try:
        with out.claim():
            if out.ended:
                return 0
            if out.begun:
                out.lock().release()
                agree(spec, whole(spec, spec.check_env()))
                resume(out.path, progress_bar=True, trust=True, checkpoint_every=spec.checkpoint_every)
            else:
                train(spec, progress_bar=True)
            report.tell(out.path, None)
            return 0
    except (Timeout, LockedError):
        return ELSEWHERE
    except KeyboardInterrupt:
        report.say("interrupted")
        return 130
    except Exception as error:
        line = report.mistake(error)
        if line is None:
            traceback.print_exc()
            return 1
        report.say(line)
        if held(out):  # another process has come between
            return ELSEWHERE
        return 0 if out.ended else 2


def held(run: RunFolder) -> bool:
    """Whether another process trains the run."""
    try:
        if run.begun:
            run.lock().release()
    except LockedError:
        return True
    return False


def main(words: list[str]) -> int:
    """Exit code, as of ``work``."""
    if len(words) != 1:
        print(
            "usage: python -m rlhf_bilevel.studies.worker SPEC, a run in JSON (sweep and tune start it)",
            file=sys.stderr,
        )
        return 2
    report.prepare()
    try:
        spec = RunSpec.from_json(words[0])
    except ValueError as error:
        report.say(str(error))
        return 2
    return work(spec)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
