"""What the penalty method is compared with, a file each. ``rlhf_bilevel.methods.registry`` has their table."""

from typing import Any


def __getattr__(name: str) -> Any:
    """``METHODS`` was here: it is still found, when it is asked for, as the table imports these files."""
    if name == "METHODS":
        from rlhf_bilevel.methods.registry import METHODS

        return METHODS
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
