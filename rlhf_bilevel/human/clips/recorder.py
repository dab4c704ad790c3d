"""A film of training: how things stood at every row of the store, kept beside the run and out of its checkpoints.

A row's pose is what stood before its action: for an env of MuJoCo's, the state that forward kinematics need, in the
model of its episode; for any other, a picture. Poses lie in ``poses.bin``, a fixed number of bytes a row; what is
larger and shared by many of them, a model's changes or a picture, in ``records.bin``, which only grows.

Rows are written with one system call each and are there after a ``kill -9``. A run that is resumed at row r writes its
rows from r on again, and both files become, byte for byte, those of a run that was never cut off.
"""

from __future__ import annotations

import base64
import io
import math
import os
import struct
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import mujoco
import numpy as np
from PIL import Image
from torch import Tensor

from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs import dm_control, registry, wrappers
from rlhf_bilevel.envs.interface import InvalidEnvError
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.human.clips import scene
from rlhf_bilevel.utils.files import plain, written

POSES, RECORDS = "poses.bin", "records.bin"
PIXELS = 256  # a picture's longer side, at most about
QUALITY = 80  # of its JPEG

HEAD = struct.Struct("<8sQ")  # of RECORDS: what it is, bytes of a row of POSES
LENGTH = struct.Struct("<Q")  # before each record; a row of POSES begins with its record's offset, 0 where none is
KIND = b"film v1\n"


class Pose(NamedTuple):
    record: bytes | None  # None: the one of the pose before
    values: np.ndarray  # (n,) float32


class Set(NamedTuple):
    """What stays the same all along."""

    model: bytes  # of MuJoCo, packed; empty for pictures
    camera: int
    fps: float  # steps of the environment in a second


class Told(Enum):
    """Keys of an info, which no environment can have: ``Pose`` after every step and reset, ``Set`` after the first."""

    POSE = 0
    SET = 1


class Posed(wrappers.EpisodeCounter):
    """Tells how things stand, in its info: see ``Told``.

    Nothing that the env does is changed, and no random number is drawn.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], source: Bodies | Pictures) -> None:
        super().__init__(env)
        self._source, self._fresh = source, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        obs, info = self.env.reset(seed=seed, options=options)
        info[Told.POSE] = self._source.first()
        if self._fresh:
            info[Told.SET], self._fresh = self._source.set(), False
        return obs, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        info[Told.POSE] = self._source.next()
        return obs, reward, terminated, truncated, info


class Bodies:
    """Poses of an env with MuJoCo's own model and data, Gymnasium's, dm_control's or Meta-World's."""

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], fps: float) -> None:
        self._env, self._fps = env.unwrapped, fps
        self._model, self._data = _simulator(self._env)

    def set(self) -> Set:
        named = getattr(self._env, "camera_name", None)  # the one from which the env itself draws
        number = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, named) if named else 0
        return Set(scene.pack(self._model), min(number, self._model.ncam - 1), self._fps)

    def first(self) -> Pose:
        self._model, self._data = _simulator(self._env)  # an episode may have a model of its own
        return Pose(scene.look(self._model), scene.pose(self._model, self._data))

    def next(self) -> Pose:
        return Pose(None, scene.pose(self._model, self._data))


class Pictures:
    """Poses of an env that draws itself."""

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], fps: float) -> None:
        self._env, self._fps = env, fps

    def set(self) -> Set:
        return Set(b"", -1, self._fps)

    def first(self) -> Pose:
        return self.next()

    def next(self) -> Pose:
        picture = Image.fromarray(np.asarray(self._env.render()))
        file = io.BytesIO()
        picture.reduce(max(1, round(max(picture.size) / PIXELS))).save(file, "JPEG", quality=QUALITY)
        return Pose(file.getvalue(), np.zeros(0, np.float32))


def _simulator(env: Any) -> tuple[Any, Any]:
    """MuJoCo's model and data, or two times None where the env has none."""
    if isinstance(env, dm_control.DMControlEnv):
        return env.physics.model.ptr, env.physics.data.ptr
    model, data = getattr(env, "model", None), getattr(env, "data", None)
    return (model, data) if isinstance(model, mujoco.MjModel) else (None, None)


def make(
    env_id: str, seed: int, stream: int = 0, protocol: str = "bpref", action_repeat: int = 1, absorb: bool = False
) -> Posed:
    """As ``envs.make``, with poses. UserError where a person could see nothing: neither MuJoCo nor pictures."""
    env = registry.make(env_id, seed, stream, protocol, None, action_repeat, absorb)
    if _simulator(env.unwrapped)[0] is not None:
        return Posed(env, Bodies(env, frame_rate(env, action_repeat)))
    env.close()
    if "rgb_array" not in (env.unwrapped.metadata or {}).get("render_modes", ()):
        raise UserError(
            f"{env_id} cannot be shown to a person: it is none of MuJoCo's and has no render_mode rgb_array"
        )
    env = make_drawn(env_id, seed, stream, protocol, action_repeat, absorb)
    return Posed(env, Pictures(env, frame_rate(env, action_repeat)))


def make_drawn(
    env_id: str, seed: int, stream: int = 0, protocol: str = "bpref", action_repeat: int = 1, absorb: bool = False
) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """As ``envs.make``, with pictures from ``render``. UserError where it cannot draw here."""
    try:
        env = registry.make(env_id, seed, stream, protocol, "rgb_array", action_repeat, absorb)
        env.reset()
        np.asarray(env.render())
    except InvalidEnvError as error:
        raise UserError(f"{env_id}: {error}") from error
    except Exception as error:  # a library or a display that is missing
        raise UserError(f"{env_id} draws no pictures here: {' '.join(str(error).split())}") from error
    env.set_wrapper_attr("episode", 0)
    return env


def frame_rate(env: gymnasium.Env[np.ndarray, np.ndarray], action_repeat: int) -> float:
    """Steps of the environment in a second, as its metadata tell; 30 of the simulator's where they do not."""
    told = (env.unwrapped.metadata or {}).get("render_fps")
    return (told if isinstance(told, int | float) and 0 < told < math.inf else 30) / action_repeat


class RecordedEnv(wrappers.EpisodeCounter):
    """The outermost wrapper of a training env: a row that ``store`` is about to get is filmed.

    ``env`` is of ``make``, however it is guarded, in this process or another. Poses are taken out of ``info``.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], store: ReplayBuffer, film: ClipRecorder) -> None:
        super().__init__(env)
        self._store, self._film = store, film
        self._record, self._values = b"", np.zeros(0, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        obs, info = self.env.reset(seed=seed, options=options)
        if Told.SET in info:
            self._film.prepare(info.pop(Told.SET))
        self._keep(info.pop(Told.POSE))
        return obs, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._film.write(self._store.size, self._record, self._values)
        obs, reward, terminated, truncated, info = self.env.step(action)
        if Told.POSE in info:  # not where the step failed
            self._keep(info.pop(Told.POSE))
        return obs, reward, terminated, truncated, info

    def _keep(self, pose: Pose) -> None:
        self._record, self._values = pose.record or self._record, pose.values


class Clips:
    """Poses of one environment as clips for a browser, JSON-ready (docs/human/clips.md)."""

    def __init__(self, told: Set) -> None:
        self._set = told
        self._stage = scene.Stage(told.model, told.camera) if told.model else None
        self.scenes: dict[str, dict[str, Any]] = {}  # those that clips have named

    def clip(self, records: Sequence[bytes], values: np.ndarray) -> dict[str, Any]:
        """Of one episode: for each of T frames its record, and the values (T, n)."""
        if self._stage is None:
            frames: Any = [f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}" for picture in records]
            return {"kind": "frames", "fps": self._set.fps, "frames": frames}
        self._stage.set(records[0])
        number, self.scenes[number] = self._stage.scene()
        return {"kind": "scene", "scene": number, "fps": self._set.fps, "frames": self._stage.frames(values)}


class ClipRecorder:
    """Of the run in ``folder``. Nothing is touched on the disk before the first row is written."""

    def __init__(self, folder: Path) -> None:
        self._folder = RunFolder(folder).clips
        self._clips: Clips | None = None
        self._poses = self._records = -1  # file descriptors
        self._end = self._width = self._offset = 0
        self._record = b""  # the newest, which is at ``_offset``

    def prepare(self, told: Set) -> None:
        """To be called before anything else. All envs of a run are alike: the first call counts."""
        self._clips = self._clips or Clips(told)

    def write(self, row: int, record: bytes, values: np.ndarray) -> None:
        """The pose at ``row`` of the store. The first call drops all rows from there on, which are of a run cut off."""
        with written(self._folder):
            if self._poses < 0:
                self._open(row, LENGTH.size + values.nbytes)
            if record != self._record or not self._offset:
                os.pwrite(self._records, LENGTH.pack(len(record)) + record, self._end)
                self._record, self._offset = record, self._end
                self._end += LENGTH.size + len(record)
            os.pwrite(self._poses, LENGTH.pack(self._offset) + values.tobytes(), row * self._width)

    def flush(self) -> None:
        """Puts all rows on the disk, so that they outlive the machine too: before a checkpoint that needs them."""
        if self._poses >= 0:
            os.fsync(self._records)
            os.fsync(self._poses)

    def close(self) -> None:
        if self._poses >= 0:
            os.close(self._poses)
            os.close(self._records)
            self._poses = self._records = -1

    def clip(self, rows: Tensor | Sequence[int]) -> dict[str, Any]:
        """What a person sees of ``rows`` (T,), which follow one another in one episode: JSON-ready, see docs.

        ValueError where a row has not been filmed.
        """
        first, count = int(rows[0]), len(rows)
        data = os.pread(self._poses, count * self._width, first * self._width) if self._poses >= 0 else b""
        table = np.frombuffer(data, self._row()) if len(data) == count * self._width > 0 else None
        if table is None or not table["record"].all() or self._clips is None:
            raise ValueError(f"rows {first} to {first + count - 1} have not all been filmed")
        known = {offset: self._read(offset) for offset in set(table["record"].tolist())}
        return self._clips.clip([known[offset] for offset in table["record"].tolist()], table["values"])

    def scene(self, number: str) -> dict[str, Any]:
        """The scene that a clip of this process named."""
        assert self._clips is not None
        return self._clips.scenes[number]

    def _row(self) -> np.dtype:
        return np.dtype([("record", "<u8"), ("values", "<f4", ((self._width - LENGTH.size) // 4,))])

    def _read(self, offset: int) -> bytes:
        size = os.fstat(self._records).st_size
        if offset + LENGTH.size > size:
            raise CorruptFileError(f"{self._folder / RECORDS} is damaged: it ends before byte {offset}")
        (length,) = LENGTH.unpack(os.pread(self._records, LENGTH.size, offset))
        if length > size:
            raise CorruptFileError(f"{self._folder / RECORDS} is damaged: it has no record of {length} bytes")
        return os.pread(self._records, length, offset + LENGTH.size)

    def _open(self, row: int, width: int) -> None:
        """The files as they were when ``row`` was next."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in (POSES, RECORDS):
            plain(self._folder / name)
        self._poses, self._records = (
            os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644) for name in (POSES, RECORDS)
        )
        self._width, self._end = width, HEAD.size
        if row:
            if os.pread(self._records, HEAD.size, 0) != HEAD.pack(KIND, width):
                raise CorruptFileError(f"{self._folder / RECORDS} is damaged or of another environment")
            filmed = os.fstat(self._poses).st_size // width
            if filmed < row:
                raise CorruptFileError(f"{self._folder / POSES} holds {filmed} rows and {row} have been stored")
            newest = int(np.memmap(self._folder / POSES, self._row(), "r", shape=row)["record"].max())
            self._offset, self._record = newest, self._read(newest)
            self._end = newest + LENGTH.size + len(self._record)
        else:
            os.pwrite(self._records, HEAD.pack(KIND, width), 0)
        os.ftruncate(self._poses, row * width)
        os.ftruncate(self._records, self._end)
