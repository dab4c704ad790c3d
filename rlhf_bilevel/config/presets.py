"""Presets: settings that differ from the defaults, by name."""

from __future__ import annotations

from typing import Any

from rlhf_bilevel.errors import UserError

BPREF: dict[str, Any] = {
    "query": "disagreement", "policy_aligned": False, "newest_share": 0.0, "anchor_share": 0.0,
    "critic_layer_norm": False, "reward_use_action": True, "initial_comparison_frac": 0.0, "reward_form": "network",
}  # fmt: skip
"""B-Pref's values of settings whose defaults are others here. They were the defaults before."""

DISTANCES = {"reward_form": "network"}
"""For a suite whose tasks are about the distance of two positions, which no additive reward knows."""

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"net_arch": (64, 64), "batch_size": 128, "learning_rate": 1e-3, "reward_net_arch": (64, 64),
              "reward_lr": 3e-3, "reward_batch": 32, "action_repeat": 4, "segment_length": 25},
    "quick/Meta-World": DISTANCES,
    "cpu": {},
    "cpu/Meta-World": DISTANCES,
    "paper": BPREF | {"tau": 0.0025, "n_eval_episodes": 10, "net_arch": (1024, 1024), "batch_size": 1024},
    "paper/Meta-World": {"net_arch": (256, 256, 256), "batch_size": 512, "learning_rate": 3e-4, "reward_epochs": 10},
    "figure1": {"batch_size": 128, "action_repeat": 2, "segment_length": 25, "eval_freq": 5000,
                "total_timesteps": 125_000, "labels": 100},
    "figure1/Meta-World": DISTANCES | {"total_timesteps": 200_000, "labels": 1000, "reward_clip": True,
                                       "num_interact": 7500, "queries_per_session": 27},
}  # fmt: skip
"""Differences from Config's defaults; those of NAME/SUITE are added to NAME's. ``paper`` has B-Pref's protocol and
sizes, which differ between the two suites. ``figure1`` is what ``make figure1`` runs.

B-Pref updates the target critics by .005 at every second update; SB3 does it at every update, hence half of that.
"""


def preset_settings(name: str, env_id: str, given_reward: bool = False) -> dict[str, Any]:
    """The settings of preset ``name`` for the environment ``env_id``, without its labels where a reward is given.

    UserError if there is no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    suite = env_id.split("/")[0]
    settings = PRESETS[name] | PRESETS.get(f"{name}/{suite}", {})
    return {key: value for key, value in settings.items() if not (given_reward and key == "labels")}
