"""Names of settings: those of a method's own options, and old ones."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from typing import Any

from rlhf_bilevel.errors import UserError

RENAMED = {
    "steps": "total_timesteps", "batch": "batch_size", "hidden": "net_arch", "initial_alpha": "ent_coef",
    "update_every": "train_freq", "updates": "gradient_steps", "eval_every": "eval_freq",
    "eval_episodes": "n_eval_episodes", "session_every": "num_interact", "session_labels": "queries_per_session",
    "oversample": "large_batch", "members": "ensemble_size", "reward_hidden": "reward_net_arch",
    "reward_learning_rate": "reward_lr",
}  # fmt: skip
"""Old names of settings, still read, and today's: those of Stable-Baselines3 and B-Pref."""

MOVED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("sigma", "sigma_spread", "upper_weight", "gap_share", "gap_surgery", "sides", "careful_from",
                     "fork_response", "use_gap"), ("penalty",)),
    **dict.fromkeys(("objective", "win_weight", "cost", "cost_hidden", "cost_learning_rate", "cost_steps", "cost_pairs",
                     "cost_labels", "use_cost"), ("penalty", "hypergradient")),
    "visit_episodes": ("penalty", "hypergradient", "incumbent", "parl"),
    "visit_batch": ("penalty", "incumbent"),
    "visit_discount": ("penalty", "hypergradient", "incumbent"),
}  # fmt: skip
"""Old settings of all runs, still read, and the methods whose options they are today."""


def nest_options(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """Settings by ``Config``'s names: ``method.name`` moves into ``options``; those of other methods are left out."""
    shared = {key: value for key, value in settings.items() if "." not in key}
    prefix = f"{method}."
    method_options = {key.removeprefix(prefix): value for key, value in settings.items() if key.startswith(prefix)}
    return shared | ({"options": {**shared.get("options", {}), **method_options}} if method_options else {})


def flatten_options(settings: Mapping[str, Any], method: str) -> dict[str, Any]:
    """The opposite of ``nest_options``, for the settings in a run's config.yaml. Old names become today's."""
    shared = dict(current_setting(key, value) for key, value in settings.items() if key not in MOVED)
    method_options = {key: value for key, value in settings.items() if method in MOVED.get(key, ())}
    if isinstance(shared.get("options", {}), Mapping):
        method_options |= shared.pop("options", {})
    return shared | {f"{method}.{key}": value for key, value in method_options.items()}


def current_names(settings: Mapping[str, Any], methods: Collection[str]) -> dict[str, Any]:
    """A user's settings for ``methods``, with today's names in place of old ones (``RENAMED`` and ``MOVED``).

    Warns about each old name, unless it is an option of another method. UserError if a setting has both its names.
    """
    current: dict[str, Any] = {}
    for key, value in settings.items():
        names = [current_setting(key, value)[0]]
        if key in MOVED:
            owners = [method for method in MOVED[key] if method in methods]
            names = [f"{method}.{key}" for method in owners or MOVED[key]]
        if given_names := [name for name in names if name != key and name in settings]:
            raise UserError(f"{key} and {given_names[0]} are the same setting: give it once")
        if key in RENAMED or (key in MOVED and owners):
            warnings.warn(f"{key} is called {' or '.join(names)} now", stacklevel=2)
        current |= dict.fromkeys(names, current_setting(key, value)[1])
    return current


def current_setting(key: str, value: Any) -> tuple[str, Any]:
    """Today's name of a setting, and its value as that setting takes it."""
    if key == "initial_alpha":
        value = f"auto_{value}"
    return RENAMED.get(key, key), value
