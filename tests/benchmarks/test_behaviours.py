"""Behaviours that a script teaches: what it likes is what it sees, and a criterion is met by what it describes."""

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from dm_control import suite
from dm_control.rl import control
from torch import Tensor

from benchmarks.learning import behaviours
from benchmarks.learning.behaviours import BEHAVIOURS, joints
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.data.run_folder import RunFolder

FALLEN = {"rootz": -1.2, "rooty": 1.5}
KNEELING = {"rootz": -0.5, "right_knee": -1.57, "left_knee": -1.57}
ON_ONE_LEG = {"right_hip": 1.4, "right_knee": -1.4}
STRIDING = {"right_hip": 0.7, "left_hip": -0.2, "right_knee": -1.2, "rooty": 0.3}

loaded = cache(suite.load)


def simulated(behaviour: str, place: dict[str, float], speed: dict[str, float] | None = None) -> control.Environment:
    """The behaviour's simulation with joints at these places and speeds, by name; the others are 0."""
    env = loaded(*BEHAVIOURS[behaviour].env.removeprefix("dm_control/").removesuffix("-v0").split("-"))
    with env.physics.reset_context():
        for values, now in ((place, env.physics.named.data.qpos), (speed or {}, env.physics.named.data.qvel)):
            for name, value in values.items():
                now[name] = value
    return env


def observed(behaviour: str, place: dict[str, float], speed: dict[str, float] | None = None) -> Tensor:
    """The observation (n,) there."""
    env = simulated(behaviour, place, speed)
    parts = env.task.get_observation(env.physics).values()
    return torch.as_tensor(np.concatenate([np.atleast_1d(part) for part in parts]))


def test_a_walkers_joints_are_where_its_simulation_has_them() -> None:
    at, data = joints(observed("walker_kneel", STRIDING)), simulated("walker_kneel", STRIDING).physics.named.data
    for row, side in enumerate(("right", "left")):
        leg = f"{side}_leg"
        middle, half = data.xpos[leg, "z"], 0.25 * data.xmat[leg, "zz"]
        assert at.knees[row].item() == pytest.approx(middle + half)
        assert at.ankles[row].item() == pytest.approx(middle - half)
        assert at.hip.item() == pytest.approx(data.xpos[f"{side}_thigh", "z"])


@pytest.mark.parametrize(
    "behaviour, pose, other",
    [
        ("walker_kneel", KNEELING, FALLEN),
        ("walker_kneel", KNEELING, {}),  # it stands
        ("walker_one_leg", ON_ONE_LEG, {}),
        ("walker_one_leg", ON_ONE_LEG, KNEELING),
    ],
)
def test_a_walker_in_the_pose_meets_the_criterion_and_is_liked_more_than_in_another(
    behaviour: str, pose: dict[str, float], other: dict[str, float]
) -> None:
    told = BEHAVIOURS[behaviour]
    inside, outside = observed(behaviour, pose), observed(behaviour, other)
    assert told.likes(inside) > told.likes(outside) + 0.1
    half, less = (torch.stack([inside] * n + [outside] * (100 - n)) for n in (50, 49))
    assert told.meets(half) and not told.meets(less)


def test_five_turns_clockwise_meet_the_criterion() -> None:
    told = BEHAVIOURS["cartpole_spin"]

    def episode(turns: float) -> Tensor:
        angles = np.linspace(0, 2 * np.pi * turns, 60)
        return torch.stack([observed("cartpole_spin", {"hinge_1": angle}) for angle in angles])

    assert told.meets(episode(5.01)) and not told.meets(episode(4.9)) and not told.meets(episode(-6))
    slow, fast, back = (
        told.likes(observed("cartpole_spin", {}, {"hinge_1": speed})).item() for speed in (2.0, 4.0, -4.0)
    )
    assert back < 0 < slow < fast
    tip = simulated("cartpole_spin", {"hinge_1": 0.3}).physics.named.data.geom_xpos["pole_1", "x"]
    assert tip > 0  # to the right, as the camera sees it


@pytest.mark.slow
def test_a_run_is_taught_through_the_label_store_by_what_the_script_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behaviours, "EPISODES", 1)
    told = ["--seeds", "1", "--first", "3", "--steps", "120", "--labels", "6", "--out", str(tmp_path / "runs")]
    told += ["--behaviour", "cartpole_spin", "--results", str(tmp_path / "spin.csv")]
    behaviours.main(told)
    run = RunFolder(tmp_path / "runs/cartpole_spin-3")
    answers = Dataset.read(run.path / "preferences.parquet").preferences()
    first, second = (BEHAVIOURS["cartpole_spin"].likes(part.obs).mean(-1) for part in answers[:2])
    assert torch.equal(answers.label, (first > second).float()) and len(answers.label) == 6
    assert (first - second).abs().min() >= behaviours.UNSURE
    learnt, random = csv.DictReader((tmp_path / "spin.csv").open())
    assert (learnt["policy"], learnt["seed"], learnt["steps"], learnt["labels"]) == ("learnt", "3", "120", "6")
    assert random["policy"] == "random" and random["labels"] == "0"
    assert learnt["likes"] != random["likes"]
    behaviours.main(told)  # what has ended is watched again, and says the same
    assert list(csv.DictReader((tmp_path / "spin.csv").open())) == [learnt, random]
