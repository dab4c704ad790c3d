"""Queries about offline data: random pairs of segments of a Minari dataset, answered by a teacher or left open.

Minari (the extra ``minari``) is read from this machine (MINARI_DATASETS_PATH); nothing is downloaded. An episode there
has one observation more than actions: step t of a segment is (obs_t, act_t, reward_t). Actions are clipped to the
space's bounds, as the environment does it, and scaled to [-1, 1].
"""

from __future__ import annotations

import warnings
from itertools import combinations
from typing import Any

import numpy as np
import torch

from rlhf_bilevel.data.answers import ask_teacher
from rlhf_bilevel.data.label_log import encode_pairs as contents
from rlhf_bilevel.data.preference_dataset import OPEN, SKIPPED, Dataset
from rlhf_bilevel.envs.interface import scale_action, space_problem
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.types import Queries, Segments, Teacher
from rlhf_bilevel.utils.files import check_memory
from rlhf_bilevel.utils.suggest import did_you_mean


def import_minari(
    dataset_id: str, pairs: int, segment_length: int, teacher: Teacher | None = None, seed: int = 0
) -> Dataset:
    """``pairs`` random pairs of segments of ``segment_length`` steps, uniform over all that lie within one episode.

    A pair has segments of two places, and no pair occurs twice. If there are fewer pairs, all of them are taken, with a
    warning. ``teacher`` answers them and sees the dataset's rewards as the truth; without one, all labels are open.

    UserError if Minari or the dataset is missing, if its spaces cannot be used, if no two segments are that long, and
    if there is too little memory.
    """
    data = _load_local(dataset_id)
    obs_space, act_space = data.observation_space, data.action_space
    if fault := space_problem(obs_space, act_space):
        raise UserError(f"{dataset_id} is of an environment that cannot be used as it is: {fault}")
    numbers = data.episode_indices
    lengths = np.array([int(metadata["total_steps"]) for metadata in data.storage.get_episode_metadata(numbers)])
    starts = np.maximum(lengths - segment_length + 1, 0)  # number of segments in each episode
    if not starts.sum():
        raise UserError(
            f"segment_length={segment_length} is longer than every episode of {dataset_id} (longest: "
            f"{lengths.max(initial=0)} steps)"
        )
    row = int(np.prod(obs_space.shape)) + act_space.shape[0] + 1  # floats in a step
    check_memory(f"{pairs} pairs", 16 * pairs * segment_length * row)
    possible = int(starts.sum()) * (int(starts.sum()) - 1) // 2
    if not possible:
        raise UserError(
            f"segment_length={segment_length} leaves a single segment in {dataset_id}, and a pair needs two"
        )
    if possible < pairs:
        warnings.warn(f"{dataset_id} has only {possible} different pairs, not {pairs}: these are all", stacklevel=2)
        pairs = possible
    drawn = _distinct_pairs(int(starts.sum()), pairs, np.random.default_rng(seed)).ravel()
    episode = np.searchsorted(starts.cumsum(), drawn, side="right")  # the episode of each segment
    start = drawn - (starts.cumsum() - starts)[episode]

    obs = np.zeros((2 * pairs, segment_length, int(np.prod(obs_space.shape))), np.float32)
    act = np.zeros((2 * pairs, segment_length, *act_space.shape), np.float32)
    truth = np.zeros((2 * pairs, segment_length), np.float32)
    used = np.unique(episode)
    for number, episode_data in zip(used, data.iterate_episodes(numbers[used]), strict=True):
        for row in np.flatnonzero(episode == number):
            steps = slice(start[row], start[row] + segment_length)
            obs[row] = np.asarray(episode_data.observations)[steps].reshape(segment_length, -1)
            act[row] = scale_action(episode_data.actions[steps], act_space)
            truth[row] = episode_data.rewards[steps]
    segments = [torch.from_numpy(column).unflatten(0, (2, pairs)) for column in (obs, act, truth)]
    queries = Queries(*(Segments(*(column[side] for column in segments)) for side in (0, 1)))
    return Dataset.of(
        queries,
        torch.full((pairs,), torch.nan) if teacher is None else _ask(teacher, queries),
        env_id=data.env_spec.id if data.env_spec else dataset_id,
        labeller="" if teacher is None else type(teacher).__name__,
        sampler="uniform",
        unlabelled=OPEN if teacher is None else SKIPPED,
    )


def _distinct_pairs(total: int, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """``pairs`` random pairs (2, pairs) of different numbers below ``total``; none occurs twice, in either order."""
    chosen: dict[tuple[int, int], tuple[int, int]] = {}
    while still_needed := pairs - len(chosen):
        drawn = rng.integers(total, size=2 * still_needed).reshape(2, -1).T
        if chosen and total * (total - 1) < 8 * pairs:  # at least a quarter of all: new ones are seldom hit by chance
            unused = np.array([pair for pair in combinations(range(total), 2) if pair not in chosen])
            drawn = rng.permuted(rng.permutation(unused), axis=1)[:still_needed]
        for first, second in drawn.tolist():
            if first != second:
                chosen.setdefault((min(first, second), max(first, second)), (first, second))
    return np.array([*chosen.values()]).T


def _ask(teacher: Teacher, queries: Queries) -> torch.Tensor:
    """The label of each query (B,), NaN if the teacher skips it."""
    answers = ask_teacher(teacher, queries)
    label = dict(zip(contents(answers), answers.label.tolist(), strict=True))
    return torch.tensor([label.get(pair, torch.nan) for pair in contents(queries)])


def _load_local(dataset_id: str) -> Any:
    try:
        import minari
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install 'rlhf-bilevel[minari]'") from None
    try:
        dataset_ids = minari.list_local_datasets()
    except ValueError as error:  # one folder that is no dataset, of all
        raise UserError(f"Minari cannot list the datasets of this machine: {error}") from None
    if dataset_id not in dataset_ids:
        hint = did_you_mean(dataset_id, dataset_ids) if dataset_ids else "there are none on this machine"
        raise UserError(f"unknown Minari dataset {dataset_id!r}; {hint} (minari download fetches one)")
    try:
        return minari.load_dataset(dataset_id)
    except ValueError as error:
        raise UserError(f"Minari cannot load {dataset_id!r}: {error}") from None
