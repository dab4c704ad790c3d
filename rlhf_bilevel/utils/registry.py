"""Things that have a name: ours, those of installed packages, and a user's own, as ``module:NAME``.

Nothing is imported before it is used, so that names can be listed without loading torch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar, cast

from rlhf_bilevel.config import did_you_mean
from rlhf_bilevel.errors import UserError

Thing = TypeVar("Thing")


class Registry(Mapping[str, Thing], Generic[Thing]):
    """A mapping from names to things of one ``kind``, such as methods.

    ``ours`` gives the place of each of ours as ``module:NAME``. A package adds its own by entry points of the group
    ``rlhf_bilevel.KINDs``. ``registry["my_module:THING"]`` imports a user's module. All things must be instances of the
    class at ``base`` (``module:NAME``). Iteration and ``in`` use names only, and import nothing.
    """

    def __init__(self, kind: str, ours: Mapping[str, str], base: str) -> None:
        self.kind, self._ours, self._base = kind, ours, base
        self._loaded: dict[str, Thing] = {}

    @cached_property
    def places(self) -> dict[str, str]:
        """``module:NAME`` by name; ours take precedence over those of other packages."""
        installed = {point.name: point.value for point in entry_points(group=f"rlhf_bilevel.{self.kind}s")}
        return installed | dict(self._ours)

    def __getitem__(self, name: str) -> Thing:
        """UserError, with the nearest name, if there is none, or if the module of a package or user cannot be used."""
        if name not in self._loaded:
            place = name if ":" in name else self.places.get(name)
            if place is None:
                raise UserError(f"unknown {self.kind} {name!r}; {did_you_mean(name, self.places)}")
            self._loaded[name] = self._load(place)
        return self._loaded[name]

    def _load(self, place: str) -> Thing:
        module, _, attribute = place.partition(":")
        expected = _import_class(self._base)
        if place in self._ours.values():
            return getattr(importlib.import_module(module), attribute)
        try:
            thing = getattr(importlib.import_module(module), attribute)
        except (Exception, SystemExit) as error:
            failure = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{self.kind} {place}: it cannot be imported: {failure:.300}") from error
        if not isinstance(thing, expected):
            raise UserError(f"{self.kind} {place}: it is a {type(thing).__name__}, and must be a {expected.__name__}")
        return cast(Thing, thing)

    def get(self, name: str, default: Any = None) -> Any:
        """The thing with that name; ``default`` if the name is not known."""
        return self[name] if name in self else default  # noqa: SIM401

    def __contains__(self, name: object) -> bool:
        return name in self.places

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _import_class(place: str) -> type:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
