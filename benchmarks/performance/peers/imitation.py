"""What is timed of imitation, at the sizes of ``ours.py``. Run by the interpreter of its own environment."""

import os
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from imitation.algorithms import preference_comparisons as pc
from imitation.data.types import TrajectoryWithRew
from imitation.policies.replay_buffer_wrapper import ReplayBufferRewardWrapper
from imitation.rewards.reward_nets import BasicRewardNet, RewardEnsemble
from sized import ACT, OBS, Sized
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv
from worker import Work, serve

PAIRS, LENGTH, BIG = 128, 50, (256, 256, 256)


def ensemble(hidden: tuple[int, ...] = BIG) -> RewardEnsemble:
    spaces = Sized.observation_space, Sized.action_space
    members = [BasicRewardNet(*spaces, use_next_state=False, use_done=False, hid_sizes=hidden) for _ in range(3)]
    return RewardEnsemble(*spaces, members)


def pairs(count: int) -> list[tuple[TrajectoryWithRew, TrajectoryWithRew]]:
    rng = np.random.default_rng(0)

    def fragment() -> TrajectoryWithRew:
        return TrajectoryWithRew(
            obs=rng.normal(size=(LENGTH + 1, OBS)).astype(np.float32),
            acts=rng.uniform(-1, 1, (LENGTH, ACT)).astype(np.float32),
            infos=None, terminal=False, rews=rng.normal(size=LENGTH).astype(np.float32),
        )  # fmt: skip

    return [(fragment(), fragment()) for _ in range(count)]


def reward_update(hidden: tuple[int, ...]) -> Work:
    rng, preferences = np.random.default_rng(0), pc.PreferenceModel(ensemble(hidden))
    loss = pc.CrossEntropyRewardLoss()
    trainer = pc.EnsembleTrainer(preferences, loss, rng, batch_size=PAIRS, minibatch_size=PAIRS, epochs=2, lr=3e-4)
    data = pc.PreferenceDataset()
    data.push(pairs(PAIRS), rng.integers(0, 2, PAIRS).astype(np.float32))
    return 2 * PAIRS, partial(trainer.train, data)


def relabel(rows: int = 100_000) -> Work:
    """As its replay buffer does: a batch at a time."""
    model, rng = ensemble(), np.random.default_rng(0)
    obs, act = rng.normal(size=(rows, OBS)).astype(np.float32), rng.uniform(-1, 1, (rows, ACT)).astype(np.float32)
    done = np.zeros(rows, dtype=np.float32)

    def work() -> None:
        for start in range(0, rows, 256):
            part = slice(start, start + 256)
            model.predict_processed(obs[part], act[part], obs[part], done[part])

    return rows, work


def disagreement(count: int = 1000) -> Work:
    candidates = pairs(count)

    def base(trajectories: Any, fragment_length: int, num_pairs: int) -> Any:
        return candidates

    fragmenter = pc.ActiveSelectionFragmenter(pc.PreferenceModel(ensemble()), base, count / 100, "probability")
    return count, partial(fragmenter, [], LENGTH, 100)


def loop(steps: int = 1000) -> Work:
    """A quarter of the steps random, then an update a step; 20 labels after each of the first three quarters."""
    quarter, rng = steps // 4, np.random.default_rng(0)

    def work() -> None:
        venv, reward = DummyVecEnv([Sized]), ensemble()
        agent = SAC(
            "MlpPolicy", venv, batch_size=256, learning_rate=5e-4, learning_starts=0, ent_coef="auto_0.1",
            buffer_size=steps, policy_kwargs={"net_arch": [256, 256]}, replay_buffer_class=ReplayBufferRewardWrapper,
            replay_buffer_kwargs={"replay_buffer_class": ReplayBuffer, "reward_fn": reward.predict_processed},
        )  # fmt: skip
        trainer = pc.EnsembleTrainer(
            pc.PreferenceModel(reward), pc.CrossEntropyRewardLoss(), rng, batch_size=128, epochs=10, lr=3e-4
        )
        pc.PreferenceComparisons(
            pc.AgentTrainer(agent, reward, venv, rng), reward, num_iterations=2, reward_trainer=trainer,
            fragmenter=pc.RandomFragmenter(rng, warning_threshold=0), fragment_length=LENGTH,
            transition_oversampling=quarter / (2 * 20 * LENGTH), initial_comparison_frac=1 / 3,
            initial_epoch_multiplier=1, preference_gatherer=pc.SyntheticGatherer(rng=rng), query_schedule="constant",
        ).train(2 * quarter, 60)  # fmt: skip
        assert agent.num_timesteps == 3 * quarter, agent.num_timesteps  # the first quarter is sampled without training

    return steps, work


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    serve(
        {
            "loop": loop,
            "reward_update": partial(reward_update, BIG),
            "reward_update_small": partial(reward_update, (32, 32)),
            "relabel": relabel,
            "disagreement": disagreement,
        },
        lambda: {name: version(name) for name in ("imitation", "stable-baselines3", "torch", "numpy")},
    )
