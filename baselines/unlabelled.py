"""The control without labels: state entropy is the reward from the first step to the last.

What PEBBLE's pre-training is worth by itself, and what a method reaches whose teacher never answers.
"""

from rlhf_bilevel.algorithm import Method
from rlhf_bilevel.explore import entropy_signal

UNLABELLED = Method(
    "unlabelled",
    learners=1,
    sees=lambda run: [entropy_signal(run.store, run.config, run.rng["entropy"])],
    keep=False,
)
