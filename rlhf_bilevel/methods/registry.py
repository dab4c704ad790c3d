"""Methods by name; the table is in ``rlhf_bilevel/registries.py``."""

from rlhf_bilevel.registries import METHODS as METHODS
