"""One run of a study, in this process: it begins, continues, or is left to the process that has it.

    python -m rlhf_bilevel.studies.worker SPEC       a ``RunSpec`` as JSON, whose ``out`` is the run's folder

Two locks in the shared folder ensure that a run is trained once: the study's lock, beside the run's folder, which is
taken before the folder exists; and the run's own lock, held while it trains. A process that dies releases both.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from typing import Any

from filelock import Timeout

from rlhf_bilevel.config.names import flatten_options
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import LockedError, UserError
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.runs import report
from rlhf_bilevel.runs.spec import RunSpec

ELSEWHERE = 75  # exit code: another process has the run; EX_TEMPFAIL of sysexits.h


def all_settings(spec: RunSpec, limit: int | None = None) -> dict[str, Any]:
    """All settings of a run, as its folder will have them. ``limit``: most simulator steps in an episode."""
    config, _ = spec.fit(spec.resolve(), limit)
    return config.model_dump(mode="json")


def check_same_run(spec: RunSpec, settings: Mapping[str, Any]) -> None:
    """UserError if the folder holds another run than the spec's. ``settings`` are as of ``all_settings``."""
    out = spec.folder
    if not out.begun:
        return
    record = out.read_config()
    on_disk: dict[str, Any] = {key: record[key] for key in ("method", "env", "algorithm") if key in record}
    on_disk |= flatten_options(record.get("settings", {}), spec.method)
    asked = {"method": spec.method, "env": spec.env, "algorithm": spec.algorithm or METHODS[spec.method].algorithm}
    for key, expected in {**asked, **flatten_options(settings, spec.method)}.items():
        if key in on_disk and on_disk[key] != expected:
            raise UserError(f"{out} is a run with {key}={on_disk[key]}, not {expected}: choose another --out")


def work(spec: RunSpec) -> int:
    """Trains the run. Exit code: 0 if it has ended, ELSEWHERE, 2 for a one-line error, 1 for our own fault."""
    from rlhf_bilevel.runs.session import Observers
    from rlhf_bilevel.runs.start import resume, train

    out, observers = spec.folder, Observers(progress_bar=True)
    try:
        with out.claim():
            if out.ended:
                return 0
            if out.begun:
                out.lock().release()
                check_same_run(spec, all_settings(spec, spec.check_env()))
                resume(out.path, observers, trust=True, checkpoint_every=spec.checkpoint_every, threads=spec.threads)
            else:
                train(spec, observers)
            report.print_result(out.path, None)
            return 0
    except (Timeout, LockedError):
        return ELSEWHERE
    except KeyboardInterrupt:
        report.print_error("interrupted")
        return 130
    except Exception as error:
        line = report.user_message(error)
        if line is None:
            traceback.print_exc()
            return 1
        report.print_error(line)
        if is_locked(out):  # another process took it first
            return ELSEWHERE
        return 0 if out.ended else 2


def is_locked(run: RunFolder) -> bool:
    """Whether another process trains the run."""
    try:
        if run.begun:
            run.lock().release()
    except LockedError:
        return True
    return False


def main(words: list[str]) -> int:
    """Reads the spec from the command line and trains it. Exit code as of ``work``."""
    if len(words) != 1:
        usage = "usage: python -m rlhf_bilevel.studies.worker SPEC, a run in JSON (sweep and tune start it)"
        print(usage, file=sys.stderr)
        return 2
    report.prepare_streams()
    try:
        spec = RunSpec.from_json(words[0])
    except ValueError as error:
        report.print_error(str(error))
        return 2
    return work(spec)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
