"""States as trees: dicts with names as keys, lists, tensors, and JSON's plain values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlhf_bilevel.errors import UserError

Tree = Any

Table = Mapping[str, Tensor]
"""Columns of equally many rows (n, ...): what only ever grows at its end."""


def pack(tree: Tree) -> tuple[Any, dict[str, Tensor]]:
    """The tree as JSON, with {"tensor": path} for each tensor, and the tensors by their paths.

    UserError for what would not come back as it was, as a learner or a method of a user's own may hold: a key that is
    no text, and any other object.
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: Tree, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node
            return {"tensor": path}
        if isinstance(node, dict):
            if wrong := [key for key in node if not isinstance(key, str)]:
                hint = "keys must be text; utils.serialization.optimizer_state has an optimizer's state with such keys"
                raise UserError(f"the state to save has a key {wrong[0]!r:.60} in {path.lstrip('/') or 'it'}: {hint}")
            return {key: walk(value, f"{path}/{key}") for key, value in node.items()}
        if isinstance(node, list | tuple):
            return [walk(value, f"{path}/{i}") for i, value in enumerate(node)]
        if not (node is None or isinstance(node, bool | int | float | str)):
            kind = f"{type(node).__module__}.{type(node).__name__}"
            raise UserError(f"the state to save has a {kind} in {path.lstrip('/')}: it takes tensors and plain values")
        return node

    return walk(tree, ""), tensors


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Tree:
    """The tree that was packed, except that tuples have become lists."""
    if isinstance(packed, dict):
        if set(packed) == {"tensor"}:
            return tensors[packed["tensor"]]
        return {key: unpack(value, tensors) for key, value in packed.items()}
    return [unpack(value, tensors) for value in packed] if isinstance(packed, list) else packed


def digest(tree: Tree) -> str:
    """SHA-256 of every bit of the tree."""
    tree_json, tensors = pack(tree)
    total = hashlib.sha256(json.dumps(tree_json, sort_keys=True).encode())
    for path in sorted(tensors):
        tensor = tensors[path].detach().contiguous().cpu()
        total.update(f"{path} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.numpy().tobytes())
    return total.hexdigest()


def optimizer_state(optimizer: torch.optim.Optimizer) -> Tree:
    """``state_dict`` without integer keys, which JSON lacks: an entry for each parameter, None before its first step.

    Step counts are copied, as parameters may share one.
    """
    state = optimizer.state_dict()
    indices = [index for group in state["param_groups"] for index in group["params"]]

    def copied_entry(entry: Mapping[str, Any]) -> Tree:
        return {name: value.clone() if name == "step" else value for name, value in entry.items()}

    entries = [copied_entry(entry) if entry else None for entry in map(state["state"].get, indices)]
    return {"parameters": entries, "groups": state["param_groups"]}


def load_optimizer(optimizer: torch.optim.Optimizer, tree: Tree) -> None:
    """Loads what ``optimizer_state`` gave. Moments are overwritten in place, as a CUDA graph may hold them."""
    indices = [index for group in tree["groups"] for index in group["params"]]
    entries = zip(indices, tree["parameters"], strict=True)
    state = {index: entry for index, entry in entries if entry is not None}
    old_state = dict(optimizer.state)
    optimizer.load_state_dict({"state": state, "param_groups": tree["groups"]})
    for parameter in old_state.keys() & optimizer.state.keys():  # in place: a CUDA graph may hold them
        loaded = optimizer.state[parameter]
        optimizer.state[parameter] = {name: moment.copy_(loaded[name]) for name, moment in old_state[parameter].items()}


def random_state(rng: np.random.RandomState) -> Tree:
    """The state of a random generator as a tree."""
    state: Any = rng.get_state(legacy=False)
    return state | {"state": state["state"] | {"key": state["state"]["key"].tolist()}}
