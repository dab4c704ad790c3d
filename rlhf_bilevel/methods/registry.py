"""All methods by name. To add one to this package: its file, and its name here. CONTRIBUTING.md has the other ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_bilevel.utils.registry import Registry

if TYPE_CHECKING:
    from rlhf_bilevel.training.method import Method

OURS = "rlhf_bilevel.methods", "rlhf_bilevel.baselines"
METHODS: Registry[Method] = Registry(
    "method",
    {
        "penalty": f"{OURS[0]}.penalty:PENALTY",
        "detached": f"{OURS[0]}.detached:DETACHED",
        **{
            name: f"{OURS[1]}.{name}:{name.upper()}"
            for name in (
                "hypergradient",
                "incumbent",
                "mrn",
                "parl",
                "pebble",
                "prefppo",
                "qpa",
                "random",
                "rime",
                "rune",
                "sac",
                "surf",
                "twin",
                "unlabelled",
            )
        },
    },
    base="rlhf_bilevel.training.method:Method",
)
