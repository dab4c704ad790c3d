"""States as trees: dicts with names as keys, lists, tensors, and the plain values that JSON knows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tree = Any

Table = Mapping[str, Tensor]
"""Columns of equally many rows (n, ...): what only ever grows at its end."""


def pack(tree: Tree) -> tuple[Any, dict[str, Tensor]]:
    """The tree as JSON, with {"tensor": path} for each tensor in it, and the tensors by their paths."""
    found: dict[str, Tensor] = {}

    def walk(node: Tree, path: str) -> Any:
        if isinstance(node, Tensor):
            found[path] = node
            return {"tensor": path}
        if isinstance(node, dict):
            return {key: walk(value, f"{path}/{key}") for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [walk(value, f"{path}/{i}") for i, value in enumerate(node)]
        return node

    return walk(tree, ""), found


def unpack(told: Any, found: Mapping[str, Tensor]) -> Tree:
    """What was packed, except that tuples have become lists."""
    if isinstance(told, dict):
        if set(told) == {"tensor"}:
            return found[told["tensor"]]
        return {key: unpack(value, found) for key, value in told.items()}
    return [unpack(value, found) for value in told] if isinstance(told, list) else told


def digest(tree: Tree) -> str:
    """SHA-256 of every bit of it."""
    told, found = pack(tree)
    total = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    for path in sorted(found):
        tensor = found[path].detach().contiguous().cpu()
        total.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def optimizer_state(optimizer: torch.optim.Optimizer) -> Tree:
    """``state_dict`` without integer keys, which JSON has not: an entry a parameter, None before its first step.

    Counts of steps are copied, as parameters may share one.
    """
    told = optimizer.state_dict()
    indices = [index for group in told["param_groups"] for index in group["params"]]

    def own(entry: Mapping[str, Any]) -> Tree:
        return {name: value.clone() if name == "step" else value for name, value in entry.items()}

    entries = [own(entry) if entry else None for entry in map(told["state"].get, indices)]
    return {"parameters": entries, "groups": told["param_groups"]}


def load_optimizer(optimizer: torch.optim.Optimizer, tree: Tree) -> None:
    indices = [index for group in tree["groups"] for index in group["params"]]
    entries = zip(indices, tree["parameters"], strict=True)
    state = {index: entry for index, entry in entries if entry is not None}
    held = dict(optimizer.state)
    optimizer.load_state_dict({"state": state, "param_groups": tree["groups"]})
    for parameter in held.keys() & optimizer.state.keys():  # in place, as a CUDA graph may hold them
        loaded = optimizer.state[parameter]
        optimizer.state[parameter] = {name: moment.copy_(loaded[name]) for name, moment in held[parameter].items()}


def random_state(rng: np.random.RandomState) -> Tree:
    told: Any = rng.get_state(legacy=False)
    return told | {"state": told["state"] | {"key": told["state"]["key"].tolist()}}
