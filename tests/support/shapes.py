"""With SHAPES=1 in the environment, beartype checks the shapes in annotations (jaxtyping) while tests run.

``make test-slow`` sets it: the checks make a run of a test take up to half as long again.
"""

import os

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float

MODULES = [
    "rlhf_bilevel.bilevel.penalty",
    "rlhf_bilevel.feedback.query_rules",
    "rlhf_bilevel.methods.cost",
    "rlhf_bilevel.rewards.bradley_terry",
    "rlhf_bilevel.rewards.ensemble",
    "rlhf_bilevel.rewards.forms",
]
if os.environ.get("SHAPES"):
    install_import_hook(MODULES, "tests.support.shapes.typechecker")
