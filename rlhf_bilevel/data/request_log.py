"""Every request to a teacher by HTTP, a line of JSON each: what was asked, what came back, how long it took.

    {"time", "pair", "try", "seconds", "status", "answer", "strength", "error", "reply"}

``time`` is in seconds since 1970; ``pair`` is the SHA-256 of what the pair shows; ``answer`` is first, second, tie or
skip, and null where the request failed: then ``error`` says why; ``reply`` is the beginning of what was sent back.
A line is on the disk before its answer is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_bilevel.errors import CorruptFileError
from rlhf_bilevel.types import Queries
from rlhf_bilevel.utils.files import naming_write_errors, open_in_place, open_to_read, truncate

LINE = 2**16  # bytes of a line, at most
WORDS = ("first", "second", "tie", "skip")


class Answer(NamedTuple):
    """What a teacher says of a pair."""

    word: str  # one of WORDS
    strength: float = 1.0  # in [0, 1]: how much better the better one is

    @property
    def label(self) -> float | None:
        """1 where the first is better beyond doubt, .5 for a tie, 0 where the second is; None where it is left out."""
        share = {"first": 0.5, "second": -0.5, "tie": 0.0}.get(self.word)
        return None if share is None else 0.5 + share * self.strength


def check_answer(answer: Any, strength: Any = None) -> Answer:
    """ValueError, which says what is wrong, where it is no answer. A strength of None is 1."""
    if answer not in WORDS:
        raise ValueError(f"the answer {_shown(answer)} is none of {', '.join(WORDS)}")
    if strength is None:
        return Answer(answer)
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength <= 1:
        raise ValueError(f"the strength {_shown(strength)} is no number in [0, 1]")
    return Answer(answer, float(strength))


def names(pairs: Queries) -> list[str]:
    """A name for each pair, by the observations and actions of its segments."""
    found = []
    for tensors in zip(*(column for segments in pairs for column in segments[:2]), strict=True):
        total = hashlib.sha256()
        for tensor in tensors:
            total.update(tensor.contiguous().numpy().tobytes())
        found.append(total.hexdigest())
    return found


class RequestLog:
    """``answers`` are those that were given, and ``seconds`` the time of all requests, by the pair's name; ``requests``
    is how many lines there are.

    The file at ``path`` is made by the first request; None keeps all in memory. CorruptFileError where it is none.
    """

    def __init__(self, path: Path | None) -> None:
        self.answers: dict[str, Answer] = {}
        self.seconds = dict[str, float]()
        self.requests = 0
        self._path = path
        if path and os.path.lexists(path):
            self._read(path)

    def append(
        self,
        pair: str,
        number: int,
        seconds: float,
        status: int | None,
        answer: Answer | None,
        error: str | None,
        reply: str | None,
    ) -> None:
        """The next request, the ``number``-th try of its pair. On the disk when this returns."""
        told = {"time": round(time.time(), 3), "pair": pair, "try": number, "seconds": round(seconds, 3)}
        word, strength = answer or (None, None)
        told |= {"status": status, "answer": word, "strength": strength, "error": error, "reply": reply}
        self._count(told)
        if self._path is None:
            return
        with naming_write_errors(self._path), open_in_place(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) as file:
            file.write(json.dumps(told).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _count(self, told: dict[str, Any]) -> None:
        if told["answer"] is not None:
            self.answers[str(told["pair"])] = check_answer(told["answer"], told["strength"])
        pair = str(told["pair"])
        self.seconds[pair] = self.seconds.get(pair, 0.0) + float(told["seconds"])
        self.requests += 1

    def _read(self, path: Path) -> None:
        """What follows the last newline was cut short by a kill: it is removed."""
        end = 0
        with open_to_read(path, math.inf) as file:
            while (line := file.readline(LINE + 1)).endswith(b"\n"):
                try:
                    self._count(json.loads(line))
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise CorruptFileError(f"{path} is damaged: line {self.requests + 1} is no request") from None
                end = file.tell()
        if len(line) > LINE:
            raise CorruptFileError(f"{path} is damaged: line {self.requests + 1} is no request")
        if line:
            truncate(path, end)


def _shown(value: Any) -> str:
    return json.dumps(value)[:60]
