"""What is timed of Stable-Baselines3 and of SBX, its JAX port. Run by the interpreter of their own environment."""

import io
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sized import Sized
from worker import Work, serve

UPDATES = 50


def filled(algorithm: type[Any], rows: int = 10_000, **settings: Any) -> Any:
    """A model with ``rows`` random transitions in its replay buffer."""
    model = algorithm(
        "MlpPolicy", Sized(), batch_size=256, buffer_size=rows, learning_rate=5e-4, gamma=0.99, tau=0.005,
        ent_coef="auto_0.1", learning_starts=1, policy_kwargs={"net_arch": [256, 256], **settings}
    )  # fmt: skip
    model._setup_learn(1)
    buffer, rng = model.replay_buffer, np.random.default_rng(0)
    for column in (buffer.observations, buffer.actions, buffer.next_observations, buffer.rewards):
        column[:] = rng.uniform(-1, 1, column.shape)
    buffer.pos, buffer.full = 0, True
    return model


def update(algorithm: type[Any], **settings: Any) -> Work:
    """UPDATES gradient steps."""
    model = filled(algorithm, **settings)

    def work() -> None:
        for _ in range(UPDATES):  # one by one, as in a run
            model.train(1, 256)
        if hasattr(model, "ent_coef_state"):  # JAX returns before it has computed
            import jax

            jax.block_until_ready((model.policy.actor_state.params, model.policy.qf_state.params))

    return UPDATES, work


def sb3() -> Work:
    from stable_baselines3 import SAC

    return update(SAC)


def sb3_fused() -> Work:
    from stable_baselines3 import SAC

    return update(SAC, optimizer_kwargs={"fused": True})


def sbx() -> Work:
    from sbx import SAC

    return update(SAC)


def checkpoint() -> Work:
    """What SB3 offers: the model and the whole replay buffer."""
    from stable_baselines3 import SAC

    model, folder = filled(SAC, rows=100_000), Path(tempfile.mkdtemp())

    def work() -> None:
        model.save(io.BytesIO())
        model.save_replay_buffer(folder / "buffer.pkl")

    return 1, work


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    serve(
        {"update": sb3, "update_fused": sb3_fused, "update_sbx": sbx, "checkpoint": checkpoint},
        lambda: {name: version(name) for name in ("stable-baselines3", "sbx-rl", "jax", "torch", "numpy")},
    )
