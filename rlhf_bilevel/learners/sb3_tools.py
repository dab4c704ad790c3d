"""What learners need of Stable-Baselines3's models beside training: random numbers, logs, files that it can read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger


@contextmanager
def drawing_from(rng: torch.Generator) -> Iterator[None]:
    """Inside, torch's global generator, from which SB3 draws, continues ``rng``; what is drawn moves ``rng``."""
    outer = torch.get_rng_state()
    torch.set_rng_state(rng.get_state())
    try:
        yield
    finally:
        rng.set_state(torch.get_rng_state())
        torch.set_rng_state(outer)


@contextmanager
def logging_to(logger: Logger, model: Any) -> Iterator[None]:
    """Inside, ``model`` logs to ``logger``, as SB3's ``train`` does with its metrics."""
    outer, model._logger = model._logger, logger
    try:
        yield
    finally:
        model._logger = outer


@contextmanager
def on_its_own(model: Any) -> Iterator[None]:
    """Makes ``model`` independent of ``BatchedSAC`` while it is saved.

    Its tensors are views of the memory of all learners, which torch would save whole: they become copies. Adam loses
    the argument ``fused``, which only concerns speed here. A model that is not SB3's stays as it is.
    """
    if not isinstance(model, BaseAlgorithm):
        yield
        return
    modules, variables = model._get_torch_save_params()
    tensors = [*model.policy.parameters(), *(getattr(model, name) for name in variables)]
    parts = [attrgetter(name)(model) for name in modules]
    optimizers = [part for part in parts if isinstance(part, torch.optim.Optimizer)]
    groups = [group for optimizer in optimizers for group in optimizer.param_groups if "fused" in group]
    for optimizer in optimizers:
        tensors += [moment for moments in optimizer.state.values() for moment in moments.values()]
    views, fused = [tensor.data for tensor in tensors], [group["fused"] for group in groups]
    kwargs = model.policy_kwargs
    for tensor in tensors:
        tensor.data = tensor.data.clone()
    for group in groups:
        group["fused"] = None
    optimizer_kwargs = {key: value for key, value in kwargs.get("optimizer_kwargs", {}).items() if key != "fused"}
    model.policy_kwargs = {key: value for key, value in kwargs.items() if key != "optimizer_kwargs"}
    model.policy_kwargs |= {"optimizer_kwargs": optimizer_kwargs} if optimizer_kwargs else {}
    try:
        yield
    finally:
        model.policy_kwargs = kwargs
        for group, value in zip(groups, fused, strict=True):
            group["fused"] = value
        for tensor, data in zip(tensors, views, strict=True):
            tensor.data = data


def save_for_sb3(
    model: Any, path: Any, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None
) -> None:
    """SB3's ``save``: SB3 can load the file and train the model further."""
    with on_its_own(model):
        type(model).save(model, path, {*(exclude or ()), "_last_obs", "save", "save_replay_buffer"}, include)
