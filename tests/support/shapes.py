"""The shapes in annotations (jaxtyping) are checked while tests run, by beartype."""

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float

MODULES = [
    "rlhf_bilevel.bilevel.penalty",
    "rlhf_bilevel.feedback.queries",
    "rlhf_bilevel.methods.cost",
    "rlhf_bilevel.rewards.bradley_terry",
    "rlhf_bilevel.rewards.ensemble",
]
install_import_hook(MODULES, "tests.support.shapes.typechecker")
