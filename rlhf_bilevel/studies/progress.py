"""How far the runs of a study are and how long they still take, from the files that they write.

On a terminal this is a table that changes in place; elsewhere, as in a log file, a line each minute.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta

from rich.console import Console
from rich.live import Live
from rich.table import Table

from rlhf_bilevel.evaluation.records import own_names
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.studies.scheduler import State

EVERY, LINE_EVERY = 1.0, 60.0  # seconds between two tables, and between two lines
ROOM = 8  # lines of a terminal that the table's rows cannot use


class Pace:
    """The speed of a run over its last changes: a run writes its step after each episode."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=10)

    def update(self, now: float, step: int) -> None:
        """Takes note that the run was at ``step`` at time ``now`` in seconds."""
        if self._seen and step < self._seen[-1][1]:  # it continues from a checkpoint
            self._seen.clear()
        if not self._seen or step > self._seen[-1][1]:
            self._seen.append((now, step))

    @property
    def step(self) -> int:
        """The newest environment step."""
        return self._seen[-1][1] if self._seen else 0

    @property
    def speed(self) -> float:
        """Environment steps per second; 0 as long as it is not known."""
        if len(self._seen) < 2:
            return 0.0
        (before, first), (now, last) = self._seen[0], self._seen[-1]
        return (last - first) / (now - before)


class Totals:
    """Some runs together: how many are in each state, steps, steps per second, and seconds left (None: not known)."""

    def __init__(self, runs: Sequence[RunSpec], states: Mapping[RunSpec, State], paces: Mapping[RunSpec, Pace]) -> None:
        counts = Counter(states[run] for run in runs)
        self.states = ", ".join(f"{counts[s]} {s}" for s in ("running", "queued", "ended", "failed") if counts[s])
        self.steps = sum(run.steps for run in runs)
        self.done = sum(run.steps if states[run] == "ended" else paces[run].step for run in runs)
        running = [(run, paces[run]) for run in runs if states[run] == "running"]
        left = sum(run.steps - paces[run].step for run in runs if states[run] in ("running", "queued"))
        self.speed = sum(pace.speed for _, pace in running)
        slowest = max(((run.steps - pace.step) / pace.speed for run, pace in running if pace.speed), default=0.0)
        self.seconds = max(slowest, left / self.speed) if self.speed else None if left else 0.0

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """States, steps, steps per second and time left, as text."""
        left = "?" if self.seconds is None else str(timedelta(seconds=round(self.seconds)))
        return self.states, f"{self.done:,} / {self.steps:,}", f"{self.speed:.1f}" if self.speed else "", left


class ProgressBoard:
    """Shows the progress of ``runs`` while it is entered; ``update`` may be called at any rate."""

    def __init__(
        self, runs: Sequence[RunSpec], console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._runs, self._console, self._clock = runs, console or Console(), clock
        self._paces = {run: Pace() for run in runs}
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._states: Mapping[RunSpec, State] = dict.fromkeys(runs, "queued")
        self._next, self._next_line = clock() + EVERY, clock() + LINE_EVERY

    def __enter__(self) -> ProgressBoard:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._live:
            self._live.update(self.table(self._states))  # the final state
            self._live.stop()

    def update(self, states: Mapping[RunSpec, State]) -> None:
        """Shows the runs in these states."""
        now, self._states = self._clock(), states
        if now < self._next:
            return
        self._next = now + EVERY
        for run in self._runs:
            if states[run] == "running":
                self._paces[run].update(now, run.folder.last_step())
        if self._live:
            self._live.update(self.table(states), refresh=True)
        elif now >= self._next_line:
            self._next_line = now + LINE_EVERY
            counts, steps, speed, left = Totals(self._runs, states, self._paces).cells
            self._console.print(f"{counts}; {steps} steps; {speed or '?'} steps/s; {left} left", soft_wrap=True)

    def table(self, states: Mapping[RunSpec, State]) -> Table:
        """A row for each run, or one for each method and environment if the terminal has too few lines."""
        groups: dict[str, list[RunSpec]] = {}
        many = len(self._runs) > self._console.height - ROOM
        names = own_names({"method": run.method, "method_name": METHODS[run.method].name} for run in self._runs)
        for run in self._runs:
            name = f"{names.get(run.method, run.method)} {run.env}" if many else run.folder.path.name
            groups.setdefault(name, []).append(run)
        table = Table("runs" if many else "run", "state", "steps", "steps/s", "time left", show_footer=True)
        for column, cell in zip(table.columns, ("all", *Totals(self._runs, states, self._paces).cells), strict=True):
            column.footer = cell
        for name, group in groups.items():
            counts, *rest = Totals(group, states, self._paces).cells
            table.add_row(name, counts if many else states[group[0]], *rest)
        for column in table.columns[2:]:
            column.justify = "right"
        return table
