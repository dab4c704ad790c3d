"""A process that does one piece of work whenever it is told to: one subject of a comparison.

    python SCRIPT TASK        with a table of tasks in SCRIPT, see ``serve``

Only the standard library is used here, as peers live in environments of their own. A line on stdin runs the work once
more; the answer is a line of JSON on stdout.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping

Work = tuple[int, Callable[[], object]]
"""How many units it is, and what does it once."""


def serve(tasks: Mapping[str, Callable[[], Work]], versions: Callable[[], Mapping[str, str]]) -> None:
    """Builds the task that the command line names, warms it up, and runs it at every line until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to stderr
    os.dup2(2, 1)
    units, work = tasks[sys.argv[1]]()
    work()

    def answer(told: Mapping[str, object]) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    answer(dict(versions()))
    for _ in sys.stdin:
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB
        answer({"seconds": seconds, "units": units, "peak_mib": peak})
