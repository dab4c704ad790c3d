"""Things that have a name: ours, those of installed packages, and a user's own, as ``module:NAME``.

Nothing is imported before it is used, so that names can be listed without loading torch.
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
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlhf_bilevel.errors import UserError
from rlhf_bilevel.utils.suggest import did_you_mean

Thing = TypeVar("Thing")


class Registry(Mapping[str, Thing], Generic[Thing]):
    """A mapping from names to things of one ``kind``, such as methods.

    ``ours`` gives the place of each of ours as ``module:NAME``. A package adds its own by entry points of ``group``, a
    program by ``add``. ``registry["my_module:NAME"]`` imports a user's module, also from the current folder. All things
    must be instances of the class at ``base`` (``module:NAME``); with ``classes``, subclasses of it. ``takes`` names
    the arguments that a thing must be callable with. Iteration and ``in`` use names only, and import nothing.
    """

    def __init__(
        self, kind: str, ours: Mapping[str, str], base: str, classes: bool = False, takes: Sequence[str] = ()
    ) -> None:
        self.kind, self.ours = kind, dict(ours)
        self.group = f"rlhf_bilevel.{kind.replace(' ', '_')}s"
        self._base, self._classes, self._takes = base, classes, takes
        self._loaded: dict[str, Thing] = {}
        self._added: dict[str, Thing] = {}

    def add(self, name: str, thing: Thing) -> None:
        """Gives a thing of this program a name, in this process.

        UserError if it is of the wrong kind, and if the name is one of ours or of an installed package.
        """
        if not name or ":" in name or name in self.ours or name in self._packages():
            taken = ", ".join([*self.ours, *self._packages()])
            raise UserError(f"{self.kind} {name!r}: choose another name, without a colon, and none of {taken}")
        self._check(f"{self.kind} {name}", thing)
        self._added[name] = thing

    def knows(self, name: str) -> bool:
        """Whether a thing has this name, or it is ``module:NAME``, which is checked when it is imported."""
        return ":" in name or name in self

    def get(self, name: str, default: Any = None) -> Any:
        """The thing with that name; ``default`` if the name is not known."""
        return self[name] if self.knows(name) else default

    def name_of(self, thing: Thing) -> str | None:
        """The name by which this process got it from the registry, or added it. None if it did not."""
        return next((name for name, known in {**self._loaded, **self._added}.items() if known is thing), None)

    def unknown(self, name: str) -> str:
        """The message about a name that is not known."""
        module = Path(name).name.removesuffix(".py")
        if module.isidentifier() and Path(f"{module}.py").is_file():  # of a user, in the current folder
            return f"unknown {self.kind} {name!r}; for the one in {module}.py write {module}:NAME, its name there"
        return f"unknown {self.kind} {name!r}; {did_you_mean(name, self)}"

    def __getitem__(self, name: str) -> Thing:
        """UserError, with the nearest name, if there is none, or if the module of a package or user cannot be used."""
        if name in self._added:
            return self._added[name]
        if name not in self._loaded:
            if name in self.ours:
                self._loaded[name] = _import_place(self.ours[name])
            else:
                place = name if ":" in name else self._packages().get(name)
                if place is None:
                    raise UserError(self.unknown(name))
                self._loaded[name] = self._load(name, place)
        return self._loaded[name]

    def _load(self, name: str, place: str) -> Thing:
        module, _, attribute = place.partition(":")
        label = f"{self.kind} {name}" + (f" ({place})" if name != place else "")
        if module.endswith(".py"):
            plain = f"{module.removesuffix('.py')}:{attribute}"
            raise UserError(f"{label}: a module is named without .py: {plain}")
        if not all(part.isidentifier() for part in (*module.split("."), *attribute.split("."))):
            raise UserError(f"{label}: module:NAME says where it is, such as my_package.my_module:NAME")
        try:
            with current_folder_importable():
                found: Any = importlib.import_module(module)
        except (Exception, SystemExit) as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            where = "" if "importlib" in frame.filename else f" ({frame.filename}, line {frame.lineno})"
            failure = " ".join(f"{type(error).__name__}: {error}".split())
            if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
                where = "; Python looks in this folder, in those of PYTHONPATH and in installed packages"
            raise UserError(f"{label}: the module {module} cannot be imported: {failure:.300}{where}") from error
        try:
            for part in attribute.split("."):
                found = getattr(found, part)
        except AttributeError:
            hint = did_you_mean(part, [each for each in dir(found) if not each.startswith("_")])
            raise UserError(f"{label}: {module} has no {attribute}; {hint:.300}") from None
        self._check(label, found)
        return found

    def _check(self, label: str, thing: Any) -> None:
        """UserError if the thing is of another kind."""
        kind = _import_place(self._base)
        sound = isinstance(thing, type) and issubclass(thing, kind) if self._classes else isinstance(thing, kind)
        if not sound:
            what = f"the class {thing.__name__}" if isinstance(thing, type) else f"a {type(thing).__name__}"
            raise UserError(f"{label}: it is {what}, and must be a {'subclass of ' * self._classes}{kind.__name__}")
        if self._takes:
            try:
                signature = inspect.signature(thing)
            except ValueError:  # some builtins have none
                return
            try:
                signature.bind(*self._takes)
            except TypeError as error:
                raise UserError(f"{label}: it must take ({', '.join(self._takes)}): {error}") from None

    def _packages(self) -> dict[str, str]:
        """``module:NAME`` by name, of installed packages; ours take precedence."""
        points = _entry_points(self.group)
        return {point.name: f"{point.module}:{point.attr}" for point in points if point.name not in self.ours}

    def __contains__(self, name: object) -> bool:
        return name in self.ours or name in self._added or name in self._packages()

    def __iter__(self) -> Iterator[str]:
        yield from {**self.ours, **self._packages(), **self._added}

    def __len__(self) -> int:
        return sum(1 for _ in self)  # a list of it would ask for its length


@contextmanager
def current_folder_importable() -> Iterator[None]:
    """Modules in the current folder can be imported, as with ``python -m``."""
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


def _import_place(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
