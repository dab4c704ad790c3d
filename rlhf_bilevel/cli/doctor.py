"""What works on this machine, and what to install where something does not."""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable

from rlhf_bilevel.cli.arguments import Work
from rlhf_bilevel.envs import registration
from rlhf_bilevel.utils.versions import installed_versions

HELP = "check what works on this machine, and say what to install"
EXAMPLES = (
    "rlhf-bilevel doctor",
    "MUJOCO_GL=egl rlhf-bilevel doctor",
)


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """It has none."""


def run(_: argparse.Namespace) -> Work:
    """Checks the options and returns the work. UserError, before anything is written, if one is wrong."""
    return lambda: print(report())


def report() -> str:
    """One line a check, ``ok`` or what is wrong."""
    lines = [f"{name:18} {found}" for name, found in installed_versions().items()]
    checks: dict[str, Callable[[], str]] = {
        "gymnasium": lambda: step("Pendulum-v1"),
        "dm_control": lambda: step("dm_control/cartpole-balance-v0"),
        "Meta-World": lambda: step("Meta-World/door-open-v3"),
        "pictures": lambda: picture("dm_control/cartpole-balance-v0"),
        "gymnasium pictures": lambda: picture("Pendulum-v1"),
        "device": device,
        "folder": writable,
    }
    for name, check in checks.items():
        try:
            lines.append(f"{name:18} ok: {check()}")
        except Exception as error:  # whatever is broken here, the other checks still count
            lines.append(f"{name:18} fails: {' '.join(str(error).split())}")
    return "\n".join(lines)


def step(env_id: str) -> str:
    """Takes a step of an environment."""
    env = registration.make(env_id, seed=0)
    env.reset()
    env.step(env.action_space.sample())
    return f"{env_id} steps"


def picture(env_id: str) -> str:
    """Draws a picture of an environment."""
    env = registration.make(env_id, seed=0, render_mode="rgb_array")
    env.reset()
    frame = env.render()
    env.close()
    return f"{frame.shape} with MUJOCO_GL={os.environ.get('MUJOCO_GL', 'unset')}"  # type: ignore[union-attr]


def device() -> str:
    """What torch computes on."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores, no CUDA"


def writable() -> str:
    """Makes a folder here."""
    with tempfile.TemporaryDirectory(dir="."):
        return f"{os.getcwd()} can be written to"
