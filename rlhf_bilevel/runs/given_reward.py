"""A run whose learners see a reward that was learnt before, in a file: nobody is asked, and the reward never moves."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gymnasium.spaces import Space

from rlhf_bilevel.config import Config
from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.data.run_folder import REWARD_LIMIT, RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.learned_reward import LearnedReward
from rlhf_bilevel.rewards.reward_file import from_bytes
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.utils.files import read, sha256

LEARNER_OF = {"pebble": "SAC", "prefppo": "PPO"}  # with a fixed reward, these methods are no more than their learner


def completed(own: Mapping[str, Any], method: Method) -> dict[str, Any]:
    """The settings ``own``, with ``reward`` among them, and those that follow from its file.

    UserError if the file holds no learnt reward, or is not the one of ``reward_sha256``; if another setting contradicts
    the reward's; and if the method needs more than a fixed reward.
    """
    if method.name not in LEARNER_OF:
        known = " and ".join(f"{name} ({learner})" for name, learner in LEARNER_OF.items())
        raise UserError(f"{method.name}: on a given reward nothing is left of it but its learner: choose {known}")
    file = Path(own["reward"])
    learned = LearnedReward.load(file)
    file = RunFolder(file).reward if file.is_dir() else file
    reward, info = learned.ensemble, learned.info
    level = 1 if info.termination == "nonnegative" else 0
    if (reward.level, reward.bound) != (level, 1):
        raise UserError(
            f"{file}: its reward is {reward.level:g} + {reward.bound:g} tanh, and learners see {level} + tanh"
        )
    shape: dict[str, Any] = {"ensemble_size": len(reward.weights[0]), "reward_form": info.form}
    if not reward.linear:
        shape["reward_net_arch"] = [bias.shape[-1] for bias in reward.biases[:-1]]
    shape["reward_use_action"] = bool((reward.low < reward.high)[-info.act_size :].any())
    must = info.settings | shape
    for key, value in must.items():
        if key in own and validate({"total_timesteps": 1, key: own[key]}).model_dump(mode="json")[key] != value:
            raise UserError(f"{key}={own[key]}: the reward in {file} has {key}={value}")
    found = sha256(read(file, REWARD_LIMIT))
    if own.get("reward_sha256", found) != found:
        raise UserError(_changed(file))
    free = {"pessimism": info.pessimism, "pretrain_steps": 0}  # there is nothing to wait for
    return free | dict(own) | must | {"reward": str(file), "reward_sha256": found}


def fill(reward: RewardEnsemble, config: Config, env_id: str, obs: Space[Any], act: Space[Any]) -> None:
    """Makes ``reward`` the one in the file. UserError where it is not of such an environment, or has changed."""
    file = Path(config.reward)
    data = read(file, REWARD_LIMIT)
    if sha256(data) != config.reward_sha256:
        raise UserError(_changed(file))
    learned = LearnedReward(*from_bytes(data, file))
    try:
        learned.check(obs, act)
    except UserError as error:
        raise UserError(f"{env_id} does not fit {file}: {error}") from None
    if learned.info.env != env_id:
        warnings.warn(f"the reward in {file} was learnt on {learned.info.env}, not on {env_id}", stacklevel=3)
    reward.load_state_dict(learned.ensemble.state_dict())
    reward.labels = learned.info.labels


def _changed(file: Path) -> str:
    return f"{file} is not the file that this run began with: its SHA-256 is another"
