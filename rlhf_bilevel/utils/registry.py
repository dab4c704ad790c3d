"""Things that are called by a name: ours, those of installed packages, and a user's own, as ``module:NAME``.

Names are told without importing anything, so that help pages and a wrong name need no torch.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import EntryPoints, entry_points
from typing import Any, Generic, TypeVar

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.suggest import nearest

Thing = TypeVar("Thing")


class Registry(Mapping[str, Thing], Generic[Thing]):
    """A mapping from names to things of one ``kind``, such as methods.

    ``ours`` says where each of our own is, as ``module:NAME``. A package adds its own by entry points of ``group``, a
    program by ``add``; ``registry["my_module:NAME"]`` imports a module, also from the current folder. ``of`` is the
    place of the class that each thing is an instance of, or with ``classes`` a subclass of. ``takes`` names the
    arguments that a thing must be callable with. Iteration and ``in`` know names alone, and import nothing.
    """

    def __init__(
        self, kind: str, ours: Mapping[str, str], of: str, classes: bool = False, takes: Sequence[str] = ()
    ) -> None:
        self.kind, self.ours = kind, dict(ours)
        self.group = f"rlhf_bilevel.{kind.replace(' ', '_')}s"
        self._of, self._classes, self._takes = of, classes, takes
        self._loaded: dict[str, Thing] = {}
        self._added: dict[str, Thing] = {}

    def add(self, name: str, thing: Thing) -> None:
        """Gives a thing of this program a name, in this process. UserError where it is of the wrong kind, and where the
        name is one of ours or of an installed package.
        """
        if not name or ":" in name or name in self.ours or name in self._packages():
            taken = ", ".join([*self.ours, *self._packages()])
            raise UserError(f"{self.kind} {name!r}: choose another name, without a colon, and none of {taken}")
        self._check(f"{self.kind} {name}", thing)
        self._added[name] = thing

    def knows(self, name: str) -> bool:
        """Whether it is a name of one of the things, or ``module:NAME``, which is looked at when it is asked for."""
        return ":" in name or name in self

    def get(self, name: str, default: Any = None) -> Any:
        """The thing of that name, else ``default`` where no thing can have it."""
        return self[name] if self.knows(name) else default

    def name_of(self, thing: Thing) -> str | None:
        """The name by which it was asked for in this process, or added."""
        return next((name for name, known in {**self._loaded, **self._added}.items() if known is thing), None)

    def unknown(self, name: str) -> str:
        """What to say of a name that nothing has."""
        return f"unknown {self.kind} {name!r}; {nearest(name, self)}"

    def __getitem__(self, name: str) -> Thing:
        """UserError, in one line, where there is none of that name, and where code of others fails or is of the wrong
        kind.
        """
        if name in self._added:
            return self._added[name]
        if name not in self._loaded:
            if name in self.ours:
                self._loaded[name] = _imported(self.ours[name])
            else:
                place = name if ":" in name else self._packages().get(name)
                if place is None:
                    raise UserError(self.unknown(name))
                self._loaded[name] = self._of_others(name, place)
        return self._loaded[name]

    def _of_others(self, name: str, place: str) -> Thing:
        module, _, attribute = place.partition(":")
        told = f"{self.kind} {name}" + (f" ({place})" if name != place else "")
        if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            raise UserError(f"{told}: module:NAME says where it is, such as my_package.my_module:NAME")
        try:
            with here():
                found: Any = importlib.import_module(module)
        except (Exception, SystemExit) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            where = "" if "importlib" in last.filename else f" ({last.filename}, line {last.lineno})"
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{told}: the module {module} cannot be imported: {said:.300}{where}") from error
        try:
            for part in attribute.split("."):
                found = getattr(found, part)
        except AttributeError:
            near = nearest(part, [each for each in dir(found) if not each.startswith("_")])
            raise UserError(f"{told}: {module} has no {attribute}; {near:.300}") from None
        self._check(told, found)
        return found

    def _check(self, told: str, thing: Any) -> None:
        """UserError where the thing is of another kind."""
        kind = _imported(self._of)
        sound = isinstance(thing, type) and issubclass(thing, kind) if self._classes else isinstance(thing, kind)
        if not sound:
            what = f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"
            raise UserError(f"{told}: it is {what}, and must be a {'subclass of ' * self._classes}{kind.__name__}")
        if self._takes:
            try:
                signature = inspect.signature(thing)
            except ValueError:  # of what tells none
                return
            try:
                signature.bind(*self._takes)
            except TypeError as error:
                raise UserError(f"{told}: it must take ({', '.join(self._takes)}): {error}") from None

    def _packages(self) -> dict[str, str]:
        """``module:NAME`` by name, of installed packages; ours go before those."""
        points = _entry_points(self.group)
        return {point.name: f"{point.module}:{point.attr}" for point in points if point.name not in self.ours}

    def __contains__(self, name: object) -> bool:
        return name in self.ours or name in self._added or name in self._packages()

    def __iter__(self) -> Iterator[str]:
        yield from {**self.ours, **self._packages(), **self._added}

    def __len__(self) -> int:
        return sum(1 for _ in self)  # a list of it would ask for its length


@contextmanager
def here() -> Iterator[None]:
    """Modules in the current folder are found, as ``python -m`` finds them."""
    path = os.getcwd()
    sys.path.insert(0, path)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(path)


@functools.cache
def _entry_points(group: str) -> EntryPoints:
    return entry_points(group=group)


def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
