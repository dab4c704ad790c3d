"""Clips show what happened: poses as the simulator had them, at the rows of the replay buffer, also after a kill."""

from __future__ import annotations

import base64
import copy
import io
import json
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
import pytest
import torch
from PIL import Image

from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.envs import registration
from rlhf_bilevel.envs.fault_tolerance import FaultTolerantEnv
from rlhf_bilevel.envs.interface import FAULT
from rlhf_bilevel.envs.opengl import find_opengl
from rlhf_bilevel.envs.subprocess import SubprocessEnv
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.human.clips import recorder as clip_recorder
from rlhf_bilevel.human.clips.recorder import ClipRecorder, RecordedEnv
from rlhf_bilevel.human.clips.scene import Stage, pack
from rlhf_bilevel.training.loop import train
from rlhf_bilevel.training.snapshot import capture, restore
from tests.conftest import Steer, build

CARTPOLE = "dm_control/cartpole-balance-v0"
WALKER, DOOR, ANT = "dm_control/walker-walk-v0", "Meta-World/door-open-v3", "Ant-v5"


class Drawn(Steer):
    """Steer that draws a white column where its point is."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def render(self) -> np.ndarray:  # type: ignore[override]
        picture = np.zeros((64, 96, 3), np.uint8)
        column = int(np.clip(24 * (self.x[0] + 2), 4, 91))
        picture[:, column - 4 : column + 4] = 255
        return picture


class Undrawable(Drawn):
    def render(self) -> np.ndarray:
        raise OSError("no display\nis here")


gymnasium.register("Drawn-v0", Drawn)
gymnasium.register("Undrawable-v0", Undrawable)


Recorded = tuple[RecordedEnv, ReplayBuffer, ClipRecorder]


def recorded(env_id: str, folder: Path, rows: int, apart: bool = False) -> Recorded:
    make: Any = partial(clip_recorder.make, env_id, 0)
    env: Any = FaultTolerantEnv(partial(SubprocessEnv, make, env_id, 60.0) if apart else make)
    store = ReplayBuffer(env.observation_space.shape[0], env.action_space.shape[0], rows)
    recorder = ClipRecorder(folder)
    return RecordedEnv(env, store, recorder), store, recorder


def play(env: Any, store: ReplayBuffer, episodes: int, steps: int, seen: Any = lambda: None) -> list[Any]:
    """Fills the store under random actions; what ``seen`` tells before each."""
    rng, told = np.random.default_rng(0), []
    for _ in range(episodes):
        store.begin(0)
        obs, info = env.reset()
        for _ in range(steps):
            told.append(seen())
            action = rng.uniform(-1, 1, env.action_space.shape).astype(np.float32)
            following, env_reward, terminated, _, info = env.step(action)
            store.add(obs, action, following, env_reward, terminated)
            obs = following
        assert not set(clip_recorder.InfoKey) & info.keys()
    return told


def unrolled(clip: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Positions (T, P, 3) in m and quaternions (T, P, 4) of a clip, from what ``scene.frames`` says of its tracks."""
    frames = clip["frames"]
    tracks = [[np.cumsum(track) + np.zeros(frames["count"]) for track in part] for part in frames["parts"]]
    parts = np.array(tracks).transpose(2, 0, 1)  # (T, P, 7)
    return parts[..., :3] * frames["unit"], parts[..., 3:] * frames["quaternion"]


@pytest.mark.parametrize("env_id", [WALKER, ANT, DOOR])
def test_parts_are_where_the_live_simulator_had_them(env_id: str, tmp_path: Path) -> None:
    env, store, recorder = recorded(env_id, tmp_path, 60)
    live: Any = env.unwrapped
    model, data = (live.physics.model.ptr, live.physics.data.ptr) if env_id == WALKER else (live.model, live.data)
    geoms = np.flatnonzero((model.geom_group < 3) & (model.geom_rgba[:, 3] > 0))

    def seen() -> tuple[np.ndarray, np.ndarray, Any]:
        mujoco.mj_forward(model, data)
        rotations = np.empty((len(geoms), 4))
        for rotation, geom in zip(rotations, geoms, strict=True):
            mujoco.mju_mat2Quat(rotation, data.geom_xmat[geom])
        goal = data.site("goal").xpos.copy() if env_id == DOOR else None
        return data.geom_xpos[geoms].copy(), rotations, goal

    before = play(env, store, 2, 30, seen=seen)
    assert max(np.abs(a[0] - b[0]).max() for a, b in zip(before, before[30:], strict=False)) > 0.01  # episodes differ
    for start in (5, 35):
        clip = recorder.clip(range(start, start + 20))
        positions, quaternions = unrolled(clip)
        scene = recorder.scene(clip["scene"])
        assert len(scene["parts"]) == positions.shape[1] >= len(geoms)
        for frame, (position, rotation, goal) in enumerate(before[start : start + 20]):
            np.testing.assert_allclose(positions[frame, : len(geoms)], position, atol=2e-4)
            alike = np.abs((quaternions[frame, : len(geoms)] * rotation).sum(-1))
            np.testing.assert_allclose(alike, 1, atol=1e-3)
            if goal is not None:
                (mark,) = [i for i, part in enumerate(scene["parts"]) if part.get("mark")]
                np.testing.assert_allclose(positions[frame, mark], goal, atol=2e-4)
        assert np.abs(np.diff(quaternions, axis=0)).max() < 1  # never from q to -q, between which nothing can be drawn
        json.dumps([clip, scene])
    recorder.close()


def test_one_scene_serves_all_episodes_of_a_task_that_moves_its_door(tmp_path: Path) -> None:
    env, store, recorder = recorded(DOOR, tmp_path, 6)
    play(env, store, 3, 2)
    clips = [recorder.clip(range(start, start + 2)) for start in (0, 2, 4)]
    assert len({clip["scene"] for clip in clips}) == 1
    assert len({json.dumps(clip["frames"]["parts"]) for clip in clips}) == 3
    recorder.close()


def test_recording_changes_neither_episodes_nor_random_numbers(tmp_path: Path) -> None:
    def played(env: Any) -> tuple[ReplayBuffer, list[np.ndarray]]:
        store = ReplayBuffer(24, 6, 40)
        if isinstance(env, RecordedEnv):
            env._buffer = store
        play(env, store, 2, 20)
        env.action_space.seed(0)
        return store, [env.action_space.sample(), env.np_random.random(3)]

    plain, drawn = played(registration.make(WALKER, 0))
    env, _, recorder = recorded(WALKER, tmp_path, 40)
    recorded_too, drawn_too = played(env)
    assert torch.equal(plain.table, recorded_too.table)
    assert all(np.array_equal(a, b) for a, b in zip(drawn, drawn_too, strict=True))
    recorder.close()


@pytest.mark.slow
def test_an_env_in_a_process_of_its_own_is_recorded_as_well(tmp_path: Path) -> None:
    clips = []
    for apart in (False, True):
        env, store, recorder = recorded(WALKER, tmp_path / str(apart), 10, apart)
        play(env, store, 1, 10)
        clips.append(recorder.clip(range(2, 10)))
        recorder.close()
        env.close()
    assert clips[0] == clips[1]


def files(folder: Path) -> tuple[bytes, ...]:
    return tuple((folder / "clips" / name).read_bytes() for name in (clip_recorder.POSES, clip_recorder.RECORDS))


def test_a_run_that_is_cut_off_and_resumed_leaves_the_clips_of_one_that_was_not(tmp_path: Path) -> None:
    """Records too: those of rows that are written again go, and none is there twice."""

    def run_of(folder: Path) -> tuple[Any, ClipRecorder]:
        run, recorder = build("random", "Drawn-v0", steps=200), ClipRecorder(folder)
        run.envs = [RecordedEnv(FaultTolerantEnv(partial(clip_recorder.make, "Drawn-v0", 0)), run.store, recorder)]
        return run, recorder

    whole, recorder = run_of(tmp_path / "whole")
    assert len(list(train(whole))) == 200
    recorder.close()
    cut, recorder = run_of(tmp_path / "cut")
    for row in train(cut):
        if cut.step == 150 and "rollout/true_return" in row:
            tree, tables = copy.deepcopy(capture(cut))
        if cut.step == 180:
            break
    with open(tmp_path / "cut" / "clips" / clip_recorder.RECORDS, "ab") as torn:
        torn.write(b"half a rec")
    again, recorder_again = run_of(tmp_path / "cut")
    restore(again, tree, tables, [])
    assert again.step == 150
    list(train(again))
    recorder_again.close()
    assert torch.equal(again.store.table, whole.store.table)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_recording_that_has_lost_rows_or_is_of_another_env_is_refused(tmp_path: Path) -> None:
    recorder = ClipRecorder(tmp_path)
    recorder.write(0, b"scene", np.zeros(3, np.float32))
    recorder.close()
    with pytest.raises(CorruptFileError, match="holds 1 rows and 5 have been stored"):
        ClipRecorder(tmp_path).write(5, b"scene", np.zeros(3, np.float32))
    with pytest.raises(CorruptFileError, match="another environment"):
        ClipRecorder(tmp_path).write(1, b"scene", np.zeros(4, np.float32))


def test_rows_that_were_not_recorded_cannot_be_shown(tmp_path: Path) -> None:
    env, store, recorder = recorded("Drawn-v0", tmp_path, 9)
    with pytest.raises(ValueError, match="rows 0 to 3 have not all been recorded"):
        recorder.clip(range(4))
    play(env, store, 1, 5)
    assert len(recorder.clip(range(1, 5))["frames"]) == 4
    with pytest.raises(ValueError, match="rows 2 to 5 have not"):
        recorder.clip(range(2, 6))
    recorder.close()


def test_an_env_without_mujoco_is_shown_by_its_own_pictures(tmp_path: Path) -> None:
    env, store, recorder = recorded("Drawn-v0", tmp_path, 8)
    where = play(env, store, 2, 4, seen=lambda: float(env.unwrapped.x[0]))  # type: ignore[attr-defined]
    clip = recorder.clip(range(4, 8))
    assert clip["kind"] == "frames" and clip["fps"] == 20
    assert recorder.pictures(range(4, 8), [0, 2]) == clip["frames"][::2]
    for x, source in zip(where[4:], clip["frames"], strict=True):
        picture = jpeg_of(source).mean(-1)
        middle = (picture.mean(0) @ np.arange(96)) / picture.mean(0).sum()
        assert abs(middle - np.clip(24 * (x + 2), 4, 91)) < 2
    recorder.close()


@pytest.mark.parametrize("env_id", [CARTPOLE, pytest.param(DOOR, marks=pytest.mark.slow)])
def test_pictures_are_those_that_the_env_draws_itself(env_id: str, tmp_path: Path) -> None:
    try:
        find_opengl()
    except RuntimeError as error:
        pytest.skip(str(error))
    env, store, recorder = recorded(env_id, tmp_path, 40)
    play(env, store, 1, 40)
    shown, steps = list[np.ndarray](), [0, 20, 39]
    drawn = registration.make(env_id, 0, render_mode="rgb_array")
    play(drawn, ReplayBuffer(store.obs.shape[1], store.act.shape[1], 40), 1, 40, seen=lambda: shown.append(see(drawn)))
    pictures = [jpeg_of(url) for url in recorder.pictures(range(40), steps)]
    recorder.close()
    apart = [[np.abs(picture - shown[step]).mean() for step in steps] for picture in pictures]
    assert [int(np.argmin(row)) for row in apart] == [0, 1, 2] and np.diag(apart).max() < 8, apart


def see(env: Any) -> np.ndarray:
    """What it draws, as large as our pictures."""
    return np.asarray(Image.fromarray(env.render()).resize((256, 256)), float)


def jpeg_of(url: str) -> np.ndarray:
    kind, _, data = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(float)


def test_a_landscape_is_shown_with_its_heights_and_a_free_camera_with_its_angle() -> None:
    model = mujoco.MjModel.from_xml_string("""
    <mujoco>
      <visual><global azimuth="90" elevation="-45" fovy="30"/></visual>
      <asset><hfield name="hills" nrow="2" ncol="3" size="4 5 1 0.1" elevation="0 1 2 3 4 4"/></asset>
      <worldbody><geom type="hfield" hfield="hills"/></worldbody>
    </mujoco>""")
    _, scene = Stage(pack(model), -1).scene()
    (hills,) = (part for part in scene["parts"] if part["type"] == "hfield")
    assert hills["columns"] == 3 and hills["heights"] == [750, 1000, 1000, 0, 250, 500]  # the XML has the far row first
    assert hills["size"] == pytest.approx([4, 5, 1, 0.1], abs=1e-3)
    x, y, z = scene["camera"]["offset"]
    assert scene["camera"]["fovy"] == 30 and abs(x) < 1e-3 and -y == pytest.approx(z, abs=1e-3) and z > 0


def test_who_cannot_be_shown_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"^Steer-v0 cannot be shown to a person: .*render_mode rgb_array$"):
        clip_recorder.make("Steer-v0", 0)
    with pytest.raises(UserError, match=r"^Undrawable-v0 draws no pictures here: no display is here$"):
        clip_recorder.make("Undrawable-v0", 0)


def test_a_guarded_env_that_fails_is_recorded_on(tmp_path: Path) -> None:
    """The row of a step that failed is written over by the next episode's first."""
    env, store, recorder = recorded("Drawn-v0", tmp_path, 8)
    play(env, store, 1, 3)
    env.reset()
    live: Any = env.unwrapped
    live.x = np.array([np.nan], np.float32)
    with pytest.warns(UserWarning, match="is cut"):
        assert FAULT in env.step(np.zeros(1, np.float32))[4]
    play(env, store, 1, 3)
    assert store.size == 6 and len(recorder.clip(range(3, 6))["frames"]) == 3
    assert env.episode == 3
    recorder.close()


class OwnWords(Drawn):
    """Has words of ours in its infos, and no number where one should be."""

    metadata: ClassVar = {"render_modes": ["rgb_array"], "render_fps": None}

    def reset(self, **given: Any) -> tuple[np.ndarray, dict]:
        return super().reset(**given)[0], {"pose": 1, "set": 2}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        return *super().step(action)[:4], {"pose": 1, "set": 2, "fault": 3}


gymnasium.register("OwnWords-v0", OwnWords)


def test_an_envs_own_words_are_none_of_ours(tmp_path: Path) -> None:
    env, store, recorder = recorded("OwnWords-v0", tmp_path, 6)
    play(env, store, 2, 3)
    assert len(recorder.clip(range(3))["frames"]) == 3 and recorder.clip(range(3))["fps"] == 30
    env.reset()
    assert env.step(np.zeros(1, np.float32))[4] == {"pose": 1, "set": 2, "fault": 3}
    recorder.close()
    env.close()


class Shapeless(Drawn):
    def reset(self, **given: Any) -> tuple[np.ndarray, dict]:
        return np.zeros(3), super().reset(**given)[1]


gymnasium.register("Shapeless-v0", Shapeless)


def test_a_wrong_shape_is_not_called_a_missing_picture() -> None:
    with pytest.raises(UserError, match=r"^Shapeless-v0: an observation must have the shape \(1,\), not \(3,\)$"):
        clip_recorder.make("Shapeless-v0", 0)
