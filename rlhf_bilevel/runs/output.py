"""What a run leaves in its folder: its settings, the agent's model, the reward model, which policy was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from rlhf_bilevel.config import Config
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.learners.sb3_tools import on_its_own
from rlhf_bilevel.rewards.ensemble import RewardEnsemble
from rlhf_bilevel.rewards.reward_file import RewardInfo, to_bytes
from rlhf_bilevel.runs import selection
from rlhf_bilevel.runs.parts import Parts
from rlhf_bilevel.runs.process import delayed_interrupts
from rlhf_bilevel.runs.spec import RunSpec
from rlhf_bilevel.utils.files import write
from rlhf_bilevel.utils.json_yaml import to_json


def save(
    folder: Path, spec: RunSpec, parts: Parts, config: Config, model: BaseAlgorithm, reward: RewardEnsemble
) -> None:
    """Writes what ``build.load_learnt`` needs, without a pickle, and SB3's own file ``model.zip``, which is a pickle.

    Nothing is written if ``folder`` holds this agent already. UserError if it holds anything else.
    """
    record = config_record(spec, parts, config)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and no folder for a run")
    with delayed_interrupts():
        if not folder.exists() or not any(folder.iterdir()):
            folder.mkdir(parents=True, exist_ok=True)
            RunFolder(folder).write_config(record)
        elif not (
            RunFolder(folder).ended
            and RunFolder(folder).has_config(record)
            and RunFolder(folder).has_models(model, _reward_file(spec.env, config, model, reward))  # type: ignore[arg-type]
        ):
            raise UserError(f"{folder} holds something else than this agent, and is not overwritten: choose another")
        else:
            return
        write_learnt(folder, spec.env, config, model, reward)


def write_selection(folder: Path, chosen: selection.Selection) -> None:
    """Writes which policy was chosen, and how, into a run's folder."""
    write(RunFolder(folder).selection, to_json(chosen.record(), indent=1).encode())


def write_learnt(folder: Path, env_id: str, config: Config, model: BaseAlgorithm, reward: RewardEnsemble) -> None:
    """Writes the agent's model and the reward model into a run's folder."""
    with on_its_own(model):
        RunFolder(folder).write_models(model, _reward_file(env_id, config, model, reward))  # type: ignore[arg-type]


def _reward_file(env_id: str, config: Config, model: BaseAlgorithm, reward: RewardEnsemble) -> bytes:
    info = RewardInfo.of(reward, env_id, config, model.observation_space, model.action_space)
    return to_bytes(reward, info)


def config_record(spec: RunSpec, parts: Parts, config: Config) -> dict[str, Any]:
    """The contents of a run's config.yaml, except for versions."""
    return {
        "method": spec.method,
        **({"method_name": parts.method.name} if ":" in spec.method else {}),
        "env": spec.env,
        "teacher": parts.teacher_name,
        "algorithm": spec.algorithm or parts.algorithm_name,
        "algorithm_settings": parts.algorithm_settings,
        "device": spec.device,
        "threads": torch.get_num_threads(),
        **({"cores": spec.threads} if (spec.threads or 1) > 1 else {}),
        **({"checkpoint_every": spec.checkpoint_every} if spec.checkpoint_every != "1m" else {}),
        **({"keep_every": spec.keep_every} if spec.keep_every else {}),
        "settings": config.model_dump(mode="json"),
    }
