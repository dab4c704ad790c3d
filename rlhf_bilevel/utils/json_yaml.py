"""JSON and YAML of plain values, read without a way to run code or to grow beyond the file."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from rlhf_bilevel.errors import CorruptFileError
from rlhf_bilevel.utils.files import JSON_LIMIT, one_line, read_text

YAML_LIMIT = 2**17  # most bytes; our own files are much smaller


def to_json(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON. JSON has no NaN and no infinity: they become null."""

    def finite(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: finite(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [finite(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(value), indent=indent, allow_nan=False)


def read_json(path: Path) -> Any:
    """The content of a JSON file. CorruptFileError if it is not JSON, UserError if it cannot be read."""
    text = read_text(path, JSON_LIMIT)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path} is damaged or no JSON: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from names to plain values. CorruptFileError if it is not one, UserError if it cannot be read.

    Aliases are refused: a few lines with them can grow beyond any memory. A name that occurs twice is refused, too.
    """
    text = read_text(path, YAML_LIMIT)
    try:
        content = from_yaml(text)
    except ValueError as error:
        raise CorruptFileError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise CorruptFileError(f"{path} holds no mapping of settings")
    for key in content:
        if not isinstance(key, str):
            raise CorruptFileError(f"{path}: {key!r} is no name of a setting; names are text")
    return content


def from_yaml(text: str) -> Any:
    """Plain values from YAML. ValueError in one line."""
    try:
        return yaml.load(text, _PlainLoader)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(one_line(error)) from None


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases and without repeated names."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuses aliases."""
        if self.check_event(yaml.AliasEvent):
            raise ValueError("aliases (*name) are not read")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Refuses a name that occurs twice."""
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if names and max(names.values()) > 1:
            raise ValueError(f"{names.most_common(1)[0][0]!r} is given twice")
        return super().construct_mapping(node, deep)


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as YAML that ``read_yaml`` can read."""
    return yaml.dump(values, Dumper=_WithoutAliases, sort_keys=False)


class _WithoutAliases(yaml.SafeDumper):
    """Writes repeated values out."""

    def ignore_aliases(self, data: Any) -> bool:
        """True: nothing refers to what was written before."""
        return True
