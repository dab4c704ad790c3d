"""All that changes in a run: after ``restore(run, *capture(other), answers)`` ``run`` goes on as ``other`` would.

Two things are left out, because they follow from the rest: the learners' rewards, and the environments, whose episode
k is a function of the seed and of k. So a state can only be taken between two episodes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from rlhf_bilevel.training.run import Run, set_learner_rewards
from rlhf_bilevel.types import Preferences
from rlhf_bilevel.utils.serialization import Table, Tree, load_optimizer, optimizer_state, random_state


def capture(run: Run) -> tuple[Tree, dict[str, Table]]:
    """A tree of what changes, and the table ``rows`` of transitions, which only grows. Tensors are not copied.

    The teacher's answers are not in it: the label log keeps them.
    """
    tree = {
        "step": run.step,
        "episode": run.episode,
        "labelling_seconds": run.labelling_seconds,
        "in_refresh": run.in_refresh,
        "method": run.state.state_dict(),
        "generator": run.generator.get_state(),
        "asked": run.asked.state_dict(),
        "fresh_loss": run.prefs.fresh_loss,
        "envs": [env.episode for env in run.envs],
        "store": run.store.index(),
        "reward": run.reward.state_dict(),
        "reward_optimizer": optimizer_state(run.reward_optimizer),
        "health": run.health.state_dict(),
        "learners": [learner.state_dict() for learner in run.learners],
        "rng": {purpose: rng.bit_generator.state for purpose, rng in run.rng.items()},
        "global_rng": {
            "python": random.getstate(),
            "numpy": random_state(np.random.mtrand._rand),
            "torch": torch.get_rng_state(),
        },
    }
    return tree, {"rows": run.store.columns()}


def restore(run: Run, tree: Tree, tables: Mapping[str, Table], sessions: Sequence[Preferences | None]) -> None:
    """Puts a captured state into ``run``, which has the same settings.

    ``sessions`` are the answers of each query session until then, None for a session without answers.
    """
    run.step, run.episode, run.in_refresh = tree["step"], tree["episode"], tree["in_refresh"]
    run.labelling_seconds = tree.get("labelling_seconds", None if sessions else 0.0)  # older states lack it
    run.asked.load_state_dict(tree["asked"])
    for env, episode in zip(run.envs, tree["envs"], strict=True):
        env.episode = episode
    run.store.load(tables["rows"], tree["store"])
    run.prefs.load(sessions, tree["fresh_loss"])
    run.reward.load_state_dict(tree["reward"])
    load_optimizer(run.reward_optimizer, tree["reward_optimizer"])
    run.health.load_state_dict(tree["health"])
    run.reward.labels = len(run.prefs) or run.reward.labels  # of a reward that was given
    if tree["method"] is not None:  # None: a fork to another method begins with the new one's own
        run.state.load_state_dict(tree["method"])
        run.generator.set_state(tree["generator"])
    set_learner_rewards(run)
    for learner, state in zip(run.learners, tree["learners"], strict=True):
        learner.load_state_dict(state)  # after its reward is set: the rewards that it has cached are part of its state
    for purpose, rng in run.rng.items():
        rng.bit_generator.state = tree["rng"][purpose]
    version, internal, gauss = tree["global_rng"]["python"]
    random.setstate((version, tuple(internal), gauss))
    np.random.set_state(tree["global_rng"]["numpy"])
    torch.set_rng_state(tree["global_rng"]["torch"])
