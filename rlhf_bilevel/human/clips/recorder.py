"""Records what the environment looked like at every row of the replay buffer, and makes clips of it for people.

Each row has a *pose*: what things looked like before its action. For a MuJoCo environment this is the state from which
forward kinematics follow; for any other it is a picture. Poses are in ``poses.bin``, a fixed number of bytes for a row.
Larger things that many rows share, such as changes of the model or a picture, are *records* in ``records.bin``.

Both files are beside the run, not in its checkpoints. Each row is written with one system call, so it is there after a
``kill -9``. A run that is resumed at row r writes its rows from r on again. The files then have exactly the bytes of a
run that was never stopped.
"""

from __future__ import annotations

import base64
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
from torch import Tensor

from rlhf_bilevel.data.replay_buffer import ReplayBuffer
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.envs import registration, wrappers
from rlhf_bilevel.envs.interface import InvalidEnvError
from rlhf_bilevel.envs.suite import SuiteEnv
from rlhf_bilevel.errors import CorruptFileError, UserError
from rlhf_bilevel.human.clips import scene
from rlhf_bilevel.human.clips.renderer import jpeg
from rlhf_bilevel.utils.files import check_plain_file, naming_write_errors

POSES, RECORDS = "poses.bin", "records.bin"

HEAD = struct.Struct("<8sQ")  # the start of RECORDS: MAGIC, and the bytes of a row of POSES
LENGTH = struct.Struct("<Q")  # before each record: its length. A row of POSES starts with its record's offset, or 0
MAGIC = b"film v1\n"


class Pose(NamedTuple):
    """What the environment looks like at one moment."""

    record: bytes | None  # None: the record of the pose before
    values: np.ndarray  # (n,) float32


class Setup(NamedTuple):
    """What stays the same for a whole run."""

    model: bytes  # the MuJoCo model, packed; empty if clips are pictures
    camera: int  # its number in the model; -1 for MuJoCo's free camera
    fps: float  # steps of the environment in a second


class InfoKey(Enum):
    """Keys that ``PoseWrapper`` adds to the info. They are no strings, so no environment has them."""

    POSE = 0  # a ``Pose``, after every step and reset
    SETUP = 1  # the ``Setup``, after the first reset


class PoseWrapper(wrappers.EpisodeCounter):
    """Adds the pose to the info: see ``InfoKey``.

    It does not change what the environment does, and draws no random number.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], source: MujocoPoses | RenderedPoses) -> None:
        super().__init__(env)
        self._source, self._is_first_reset = source, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """As Gymnasium's, with the pose in the info."""
        obs, info = self.env.reset(seed=seed, options=options)
        info[InfoKey.POSE] = self._source.first()
        if self._is_first_reset:
            info[InfoKey.SETUP], self._is_first_reset = self._source.setup(), False
        return obs, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """As Gymnasium's, with the pose in the info."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        info[InfoKey.POSE] = self._source.next()
        return obs, reward, terminated, truncated, info


class MujocoPoses:
    """Poses of an environment with a MuJoCo model: one of Gymnasium, dm_control or Meta-World.

    ``fps`` is how many steps of the environment make a second.
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], fps: float) -> None:
        self._env, self._fps = env.unwrapped, fps
        self._model, self._data = _simulator(self._env)

    def setup(self) -> Setup:
        """The model, and the camera with which the environment itself draws, or else its first."""
        camera = getattr(self._env, "camera_name", None)
        number = mujoco.mj_name2id(self._model, mujoco.mjtObj.mjOBJ_CAMERA, camera) if camera else 0
        return Setup(scene.pack(self._model), min(number, self._model.ncam - 1), self._fps)

    def first(self) -> Pose:
        """The pose after a reset; its record is what the reset changed in the model."""
        self._model, self._data = _simulator(self._env)  # an episode may have a model of its own
        return Pose(scene.look(self._model), scene.pose(self._model, self._data))

    def next(self) -> Pose:
        """The pose after a step."""
        return Pose(None, scene.pose(self._model, self._data))


class RenderedPoses:
    """Poses of an environment that draws itself: each is a JPEG. ``fps`` as for ``MujocoPoses``."""

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], fps: float) -> None:
        self._env, self._fps = env, fps

    def setup(self) -> Setup:
        """Nothing but ``fps``."""
        return Setup(b"", -1, self._fps)

    def first(self) -> Pose:
        """The pose after a reset."""
        return self.next()

    def next(self) -> Pose:
        """The pose after a step."""
        return Pose(jpeg(np.asarray(self._env.render())), np.zeros(0, np.float32))


def _simulator(env: Any) -> tuple[Any, Any]:
    """The MuJoCo model and data of an environment, or (None, None) if it has none."""
    own = (getattr(env, "model", None), getattr(env, "data", None))
    model, data = env.simulator if isinstance(env, SuiteEnv) else own
    return (model, data) if isinstance(model, mujoco.MjModel) else (None, None)


def make(
    env_id: str, seed: int, stream: int = 0, protocol: str = "bpref", action_repeat: int = 1, **others: Any
) -> PoseWrapper:
    """The environment of ``envs.registration.make`` with the same arguments, and with poses in its info.

    ``others`` are more arguments of ``registration.make``. UserError if a person could see nothing of the environment:
    it has no MuJoCo model, and draws no pictures.
    """
    env = registration.make(env_id, seed, stream, protocol, None, action_repeat, **others)
    if _simulator(env.unwrapped)[0] is not None:
        return PoseWrapper(env, MujocoPoses(env, frame_rate(env, action_repeat)))
    env.close()
    if "rgb_array" not in (env.unwrapped.metadata or {}).get("render_modes", ()):
        raise UserError(f"{env_id} cannot be shown to a person: it has no MuJoCo model and no render_mode rgb_array")
    env = make_drawn(env_id, seed, stream, protocol, action_repeat, **others)
    return PoseWrapper(env, RenderedPoses(env, frame_rate(env, action_repeat)))


def make_drawn(
    env_id: str, seed: int, stream: int = 0, protocol: str = "bpref", action_repeat: int = 1, **others: Any
) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """As ``make``, but with pictures from ``render`` and without poses. UserError if it cannot draw here."""
    try:
        env = registration.make(env_id, seed, stream, protocol, "rgb_array", action_repeat, **others)
        env.reset()
        drawn = np.asarray(env.render())
    except InvalidEnvError as error:
        raise UserError(f"{env_id}: {error}") from error
    except Exception as error:  # a library or a display that is missing
        raise UserError(f"{env_id} draws no pictures here: {' '.join(str(error).split())}") from error
    if drawn.dtype != np.uint8 or drawn.ndim != 3 or drawn.shape[2] != 3:
        raise UserError(f"{env_id} draws no pictures: render gives {drawn.dtype} {drawn.shape}, not uint8 (h, w, 3)")
    env.set_wrapper_attr("episode", 0)
    return env


def frame_rate(env: gymnasium.Env[np.ndarray, np.ndarray], action_repeat: int) -> float:
    """Steps of the environment in a second, by its metadata; 30 steps of the simulator if they do not say it."""
    metadata: Any = env.unwrapped.metadata or {}
    fps = metadata.get("render_fps")
    return (fps if isinstance(fps, int | float) and 0 < fps < math.inf else 30) / action_repeat


class RecordedEnv(wrappers.EpisodeCounter):
    """The outermost wrapper of a training environment: it records the pose of each row that ``buffer`` will get.

    ``env`` is an environment of ``make``, inside any other wrappers, in this process or another. The poses are removed
    from the info.
    """

    def __init__(
        self, env: gymnasium.Env[np.ndarray, np.ndarray], buffer: ReplayBuffer, recorder: ClipRecorder
    ) -> None:
        super().__init__(env)
        self._buffer, self._recorder = buffer, recorder
        self._record, self._values = b"", np.zeros(0, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """As Gymnasium's; takes the pose out of the info."""
        obs, info = self.env.reset(seed=seed, options=options)
        if InfoKey.SETUP in info:
            self._recorder.prepare(info.pop(InfoKey.SETUP))
        self._set_pose(info.pop(InfoKey.POSE))
        return obs, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        """As Gymnasium's; records the pose of before the action."""
        self._recorder.write(self._buffer.size, self._record, self._values)
        obs, reward, terminated, truncated, info = self.env.step(action)
        if InfoKey.POSE in info:  # it is missing if the step failed
            self._set_pose(info.pop(InfoKey.POSE))
        return obs, reward, terminated, truncated, info

    def _set_pose(self, pose: Pose) -> None:
        self._record, self._values = pose.record or self._record, pose.values


def picture(jpg: bytes) -> str:
    """A JPEG as a data: URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpg).decode()}"


class ClipMaker:
    """Makes clips for a browser of the poses of one environment (see docs/human/clips.md)."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._stage: scene.Stage | None = None
        self.scenes: dict[str, dict[str, Any]] = {}  # those that clips have named, as content for JSON

    def clip(self, records: Sequence[bytes], values: np.ndarray) -> dict[str, Any]:
        """The clip of T steps of one episode, as content for JSON: the record of each, and its values (T, n)."""
        fps = self._setup.fps
        if not self._setup.model:
            return {"kind": "frames", "fps": fps, "frames": [picture(jpg) for jpg in records]}
        stage = self._stage_with(records[0])
        name, self.scenes[name] = stage.scene()
        return {"kind": "scene", "scene": name, "fps": fps, "frames": stage.frames(values)}

    def pictures(self, records: Sequence[bytes], values: np.ndarray) -> list[str]:
        """Pictures of such steps, as data: URLs of JPEGs. RuntimeError if OpenGL is missing."""
        if not self._setup.model:
            return [picture(jpg) for jpg in records]
        stage = self._stage_with(records[0])
        return [picture(stage.draw(pose)) for pose in values]

    def _stage_with(self, record: bytes) -> scene.Stage:
        """The stage, with the model as it was in the episode of that record."""
        if self._stage is None:
            self._stage = scene.Stage(self._setup.model, self._setup.camera)
        self._stage.set(record)
        return self._stage

    def close(self) -> None:
        """Frees the renderer, if there is one."""
        if self._stage:
            self._stage.close()


class ClipRecorder:
    """Writes the poses of the run in ``folder`` and makes clips of them. The files are opened with the first row."""

    def __init__(self, folder: Path) -> None:
        self._folder = RunFolder(folder).clips
        self._maker: ClipMaker | None = None
        self._poses = self._records = -1  # file descriptors
        self._end = self._width = self._offset = 0  # of RECORDS; bytes of a row of POSES; of the newest record
        self._record = b""  # the newest, which is at ``_offset``

    def prepare(self, setup: Setup) -> None:
        """Must be called first. All environments of a run have the same setup, so only the first call counts."""
        self._maker = self._maker or ClipMaker(setup)

    def write(self, row: int, record: bytes, values: np.ndarray) -> None:
        """Writes the pose of ``row``. The first call deletes all rows from there on, which a stopped run has left."""
        with naming_write_errors(self._folder):
            if self._poses < 0:
                self._open(row, LENGTH.size + values.nbytes)
            if record != self._record or not self._offset:
                os.pwrite(self._records, LENGTH.pack(len(record)) + record, self._end)
                self._record, self._offset = record, self._end
                self._end += LENGTH.size + len(record)
            os.pwrite(self._poses, LENGTH.pack(self._offset) + values.tobytes(), row * self._width)

    def flush(self) -> None:
        """Forces all rows onto the disk, so that a crash of the machine loses none. Call it before each checkpoint."""
        if self._poses >= 0:
            os.fsync(self._records)
            os.fsync(self._poses)

    def close(self) -> None:
        """Closes the files."""
        if self._poses >= 0:
            os.close(self._poses)
            os.close(self._records)
            self._poses = self._records = -1
        if self._maker:
            self._maker.close()

    def clip(self, rows: Tensor | Sequence[int]) -> dict[str, Any]:
        """The clip of ``rows`` (T,), consecutive rows of one episode, as content for JSON (see docs/human/clips.md).

        ValueError if a row has not been recorded.
        """
        maker, table = self._recorded(rows)
        return maker.clip(self._records_of(table), table["values"])

    def pictures(self, rows: Tensor | Sequence[int], steps: Sequence[int]) -> list[str]:
        """Pictures of some ``steps`` of the rows, as data: URLs of JPEGs. RuntimeError if OpenGL is missing."""
        maker, table = self._recorded(rows)
        table = table[steps]
        return maker.pictures(self._records_of(table), table["values"])

    def _recorded(self, rows: Tensor | Sequence[int]) -> tuple[ClipMaker, np.ndarray]:
        first, count = int(rows[0]), len(rows)
        data = os.pread(self._poses, count * self._width, first * self._width) if self._poses >= 0 else b""
        table = np.frombuffer(data, self._row()) if len(data) == count * self._width > 0 else None
        if table is None or not table["record"].all() or self._maker is None:
            raise ValueError(f"rows {first} to {first + count - 1} have not all been recorded")
        return self._maker, table

    def _records_of(self, table: np.ndarray) -> list[bytes]:
        """The record of each row; one that rows share is read once."""
        known = {offset: self._read(offset) for offset in set(table["record"].tolist())}
        return [known[offset] for offset in table["record"].tolist()]

    def scene(self, name: str) -> dict[str, Any]:
        """The scene that a clip of this process named, as content for JSON. KeyError if none did."""
        if self._maker is None:
            raise KeyError(name)
        return self._maker.scenes[name]

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
        """Opens the files and cuts them to what they held before ``row``. CorruptFileError if rows are missing."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in (POSES, RECORDS):
            check_plain_file(self._folder / name)
        self._poses, self._records = (
            os.open(self._folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644) for name in (POSES, RECORDS)
        )
        self._width, self._end = width, HEAD.size
        if row:
            if os.pread(self._records, HEAD.size, 0) != HEAD.pack(MAGIC, width):
                raise CorruptFileError(f"{self._folder / RECORDS} is damaged or of another environment")
            rows = os.fstat(self._poses).st_size // width
            if rows < row:
                raise CorruptFileError(f"{self._folder / POSES} holds {rows} rows and {row} have been stored")
            newest = int(np.memmap(self._folder / POSES, self._row(), "r", shape=row)["record"].max())
            self._offset, self._record = newest, self._read(newest)
            self._end = newest + LENGTH.size + len(self._record)
        else:
            os.pwrite(self._records, HEAD.pack(MAGIC, width), 0)
        os.ftruncate(self._poses, row * width)
        os.ftruncate(self._records, self._end)
