"""Things that are called by a name: our own, those of installed packages, and a user's own, as ``module:NAME``.

Nothing is imported before it is asked for, so that names can be told without loading torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from rlhf_bilevel.config import nearest
from rlhf_bilevel.errors import UserError

Thing = TypeVar("Thing")


class Registry(Mapping[str, Thing], Generic[Thing]):
    """A mapping from names to things of one ``kind``, such as methods.

    ``own`` says where each of ours is, as ``module:NAME``. A package adds its own by entry points of the group
    ``rlhf_bilevel.KINDs``. ``registry["my_module:THING"]`` imports a module of the user's. ``of`` is the class that all
    of them have. Iteration and ``in`` know the names alone, and import nothing.
    """

    def __init__(self, kind: str, own: Mapping[str, str], of: str) -> None:
        self.kind, self._own, self._of = kind, own, of
        self._found: dict[str, Thing] = {}

    @cached_property
    def places(self) -> dict[str, str]:
        """``module:NAME`` by name; ours go before those of other packages."""
        theirs = {point.name: point.value for point in entry_points(group=f"rlhf_bilevel.{self.kind}s")}
        return theirs | dict(self._own)

    def __getitem__(self, name: str) -> Thing:
        """UserError, with the nearest name, where there is none, and where a module of others fails or has no such."""
        if name not in self._found:
            place = name if ":" in name else self.places.get(name)
            if place is None:
                raise UserError(f"unknown {self.kind} {name!r}; {nearest(name, self.places)}")
            self._found[name] = self._load(place)
        return self._found[name]

    def _load(self, place: str) -> Thing:
        module, _, attribute = place.partition(":")
        expected = _resolved(self._of)
        if place in self._own.values():
            return getattr(importlib.import_module(module), attribute)
        try:
            thing = getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{self.kind} {place}: it cannot be imported: {told:.300}") from error
        if not isinstance(thing, expected):
            raise UserError(f"{self.kind} {place}: it is a {type(thing).__name__}, and must be a {expected.__name__}")
        return cast(Thing, thing)

    def get(self, name: str, default: Any = None) -> Any:
        """The thing of a known name, else ``default``."""
        return self[name] if name in self else default  # noqa: SIM401

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _resolved(place: str) -> type:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
