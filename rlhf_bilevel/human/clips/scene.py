"""A MuJoCo scene for a browser to draw: what there is to see, once; where each part of it is, frame by frame.

Nothing is rendered but by ``Stage.draw``. A part is a geom or a site that MuJoCo itself would draw: of the groups 0 to
2, and not wholly transparent. Poses come from forward kinematics on a private copy of the model, on the CPU and without
OpenGL.

Numbers that vary are integers in a unit that the scene and the clip name, so that JSON stays short: a position is exact
to extent / 2^16, a quaternion to 2^-15.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from typing import Any

import mujoco
import numpy as np

from rlhf_bilevel.errors import CorruptFileError
from rlhf_bilevel.human.clips.renderer import Renderer, jpeg

SHAPES = {0: "plane", 1: "hfield", 2: "sphere", 3: "capsule", 4: "ellipsoid", 5: "cylinder", 6: "box", 7: "mesh"}
PLACED = ("qpos0", "body_pos", "body_quat", "jnt_pos", "jnt_axis", "geom_pos", "geom_quat", "site_pos", "site_quat",
          "cam_pos", "cam_quat")  # fmt: skip
SEEN = ("geom_size", "geom_rgba", "site_size", "site_rgba", "mat_rgba", "hfield_data")
GREY = (0.5, 0.5, 0.5, 1.0)  # MuJoCo's colour for "none was given"
DETAIL = 640  # vertices of a mesh that are closer than extent / DETAIL are drawn as one
HEIGHTS = 64  # a heightfield is drawn with at most so many rows and columns
QUATERNION = 2.0**-14


def pack(model: mujoco.MjModel) -> bytes:
    """The whole model, as ``Stage`` takes it."""
    data = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, data)
    return data.tobytes()


def look(model: mujoco.MjModel) -> bytes:
    """What tasks change in a model from episode to episode: where bodies and goals are, and how they look."""
    return zlib.compress(b"".join(np.ascontiguousarray(getattr(model, name)).tobytes() for name in PLACED + SEEN), 1)


def pose(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """All from which forward kinematics follow, float32 (nq + 7 nmocap,). A copy."""
    if not model.nmocap:
        return data.qpos.astype(np.float32)
    return np.concatenate((data.qpos, data.mocap_pos, data.mocap_quat), axis=None, dtype=np.float32)


class Stage:
    """A private copy of a packed model; ``camera`` is where one looks from at first, -1 for MuJoCo's free camera."""

    def __init__(self, packed: bytes, camera: int) -> None:
        self._model = model = mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": packed})
        self._data, self._camera = mujoco.MjData(model), camera
        self._unit = float(model.stat.extent) / 2**15
        self._choose()
        self._meshes: dict[int, dict[str, Any]] = {}
        self._scenes: dict[bytes, tuple[str, dict[str, Any]]] = {}  # by what of the model is seen
        self._look = b""
        self._renderer: Renderer | None = None

    def set(self, look: bytes) -> None:
        """The model as it was when ``look`` was taken. CorruptFileError where that was another model."""
        if look == self._look:
            return
        try:
            data = zlib.decompress(look)
        except zlib.error as error:
            raise CorruptFileError(f"a scene of the film is damaged: {error}") from None
        fields = [getattr(self._model, name) for name in PLACED + SEEN]
        if len(data) != sum(field.nbytes for field in fields):
            raise CorruptFileError("a scene of the film is of another environment")
        start = 0
        for field in fields:
            field[...] = np.frombuffer(data, field.dtype, field.size, start).reshape(field.shape)
            start += field.nbytes
        self._look = look
        self._choose()

    def scene(self) -> tuple[str, dict[str, Any]]:
        """The parts, the camera and the meshes, JSON-ready, under an id that follows from them."""
        seen = b"".join(getattr(self._model, name).tobytes() for name in SEEN)
        if seen not in self._scenes:
            shown = self._describe()
            self._scenes[seen] = hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:32], shown
        return self._scenes[seen]

    def frames(self, poses: np.ndarray) -> dict[str, Any]:
        """Where the parts of the scene are, and what is looked at, in poses (T, n): JSON-ready.

        ``parts`` has a list for each part: the tracks of x, y, z (in ``unit`` m) and of the quaternion w, x, y, z. A
        track is one number where nothing moves, else the first and T - 1 differences. ``focus`` has tracks of x, y, z.
        """
        data, count = self._data, len(poses)
        where = np.empty((count, len(self._geoms) + len(self._sites), 7))
        focus = np.empty((count, 3))
        for frame, values in enumerate(poses):
            self._place(values)
            focus[frame] = self._focus()
            for part, (position, matrix) in enumerate(self._each(data)):
                where[frame, part, :3] = position
                mujoco.mju_mat2Quat(where[frame, part, 3:], matrix)
        turned = (where[1:, :, 3:] * where[:-1, :, 3:]).sum(-1, keepdims=True) < 0  # q and -q are one rotation
        where[1:, :, 3:] *= np.where(np.logical_xor.accumulate(turned), -1, 1)
        focus[:, 2] = focus[:, 2].mean()  # the horizon stands still: a fall looks like one
        parts = np.concatenate((where[..., :3] / self._unit, where[..., 3:] / QUATERNION), -1)
        return {
            "count": count,
            "unit": self._unit,
            "quaternion": QUATERNION,
            "focus": [_track(column) for column in (focus / self._unit).T],
            "parts": [[_track(column) for column in part.T] for part in parts.transpose(1, 0, 2)],
        }

    def draw(self, values: np.ndarray) -> bytes:
        """A JPEG of the model in a pose (n,), from the camera. RuntimeError where OpenGL is missing."""
        if self._renderer is None:
            self._renderer = Renderer(self._model, self._camera)
        self._place(values)
        return jpeg(self._renderer.draw(self._data))

    def close(self) -> None:
        """Gives back what was drawn with."""
        if self._renderer:
            self._renderer.close()
            self._renderer = None

    def _choose(self) -> None:
        """The parts: geoms, then sites."""
        model = self._model
        drawn = (model.geom_group < 3) & (model.geom_type <= max(SHAPES))
        self._geoms = np.flatnonzero(drawn & (self._rgba(model.geom_rgba, model.geom_matid)[:, 3] > 0))
        self._sites = np.flatnonzero((model.site_group < 3) & (self._rgba(model.site_rgba, model.site_matid)[:, 3] > 0))

    def _rgba(self, own: np.ndarray, material: np.ndarray) -> np.ndarray:
        """The colours (N, 4) of geoms or sites with ``own`` colours and materials (N,), -1 for none."""
        given = (material < 0) | ~np.isclose(own, GREY).all(1)
        return np.where(given[:, None], own, self._model.mat_rgba[material] if self._model.nmat else own)

    def _place(self, values: np.ndarray) -> None:
        model, data = self._model, self._data
        data.qpos[:] = values[: model.nq]
        data.mocap_pos[:], rest = _cut(values[model.nq :], model.nmocap, 3)
        data.mocap_quat[:], _ = _cut(rest, model.nmocap, 4)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)

    def _each(self, data: mujoco.MjData) -> Any:
        """Position and rotation of each part, in their order."""
        yield from ((data.geom_xpos[geom], data.geom_xmat[geom]) for geom in self._geoms)
        yield from ((data.site_xpos[site], data.site_xmat[site]) for site in self._sites)

    def _focus(self) -> np.ndarray:
        """What is looked at: the body to which the camera belongs, or the model's middle."""
        body = self._model.cam_bodyid[self._camera] if self._camera >= 0 else 0
        return self._data.subtree_com[body] if body else self._middle()

    def _middle(self) -> np.ndarray:
        """Where a camera that stays looks at: as far in front of it as the model's middle is."""
        model, data = self._model, self._data
        if self._camera < 0:
            return model.stat.center
        ahead = -data.cam_xmat[self._camera].reshape(3, 3)[:, 2]
        far = (model.stat.center - data.cam_xpos[self._camera]) @ ahead
        return data.cam_xpos[self._camera] + max(far, model.stat.extent / 4) * ahead

    def _describe(self) -> dict[str, Any]:
        model, camera = self._model, self._from()  # the latter puts everything at the start
        parts = [self._geom(geom) for geom in self._geoms]
        for site in self._sites:
            colour = self._colour(model.site_rgba[site], model.site_matid[site])
            shape = {"type": SHAPES[int(model.site_type[site])], "size": _floats(model.site_size[site])}
            parts.append(shape | {"rgba": colour, "mark": bool(model.site_bodyid[site] == 0)})  # of the world: a goal
        used = sorted({part["mesh"] for part in parts if "mesh" in part})
        return {
            "extent": float(model.stat.extent),
            "unit": self._unit,
            "camera": camera,
            "meshes": {str(mesh): self._mesh(mesh) for mesh in used},
            "parts": parts,
        }

    def _from(self) -> dict[str, Any]:
        """The camera's place relative to what it looks at, and its field of view in degrees, top to bottom."""
        model, data, number = self._model, self._data, self._camera
        mujoco.mj_resetData(model, data)
        self._place(pose(model, data))
        if number < 0:
            free = model.vis.global_
            turn, tilt = math.radians(free.azimuth), math.radians(free.elevation)
            ahead = np.array([math.cos(tilt) * math.cos(turn), math.cos(tilt) * math.sin(turn), math.sin(tilt)])
            return {"offset": _floats(-1.5 * model.stat.extent * ahead), "fovy": float(free.fovy)}
        ahead = -data.cam_xmat[number].reshape(3, 3)[:, 2]
        far = max((self._focus() - data.cam_xpos[number]) @ ahead, model.stat.extent / 4)
        return {"offset": _floats(-far * ahead), "fovy": float(model.cam_fovy[number])}

    def _geom(self, geom: int) -> dict[str, Any]:
        model = self._model
        shape, size, held = SHAPES[int(model.geom_type[geom])], model.geom_size[geom], int(model.geom_dataid[geom])
        colour = self._colour(model.geom_rgba[geom], model.geom_matid[geom])
        part: dict[str, Any] = {"type": shape, "size": _floats(size), "rgba": colour}
        if shape == "plane" and self._data.geom_xmat[geom][8] > 0.99:
            part["size"] = [0.0, 0.0, 0.0]  # ground goes on for ever, as it does in MuJoCo's physics
        if shape == "mesh":
            part["mesh"] = held
        if shape == "hfield":
            rows, columns = int(model.hfield_nrow[held]), int(model.hfield_ncol[held])
            start, step = int(model.hfield_adr[held]), -(-max(rows, columns) // HEIGHTS)
            heights = model.hfield_data[start : start + rows * columns].reshape(rows, columns)[::step, ::step]
            part |= {"size": _floats(model.hfield_size[held]), "columns": heights.shape[1]}
            part["heights"] = np.rint(heights.ravel() * 1000).astype(int).tolist()  # 1000 is the highest
        return part

    def _mesh(self, mesh: int) -> dict[str, Any]:
        """Vertices in units and faces, three numbers each."""
        if mesh not in self._meshes:
            model = self._model
            start, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
            first, faces = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
            vertices, corners = simplified(
                model.mesh_vert[start : start + count],
                model.mesh_face[first : first + faces],
                model.stat.extent / DETAIL,
            )
            placed = np.rint(vertices / self._unit).astype(int)
            self._meshes[mesh] = {"vertices": placed.ravel().tolist(), "faces": corners.ravel().tolist()}
        return self._meshes[mesh]

    def _colour(self, own: np.ndarray, material: int) -> list[float]:
        """What is seen of it from afar: textures by their mean."""
        model, colour = self._model, self._rgba(own[None], np.array([material]))[0].astype(float)
        texture = int(model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB]) if material >= 0 else -1
        if texture >= 0:
            start, channels = int(model.tex_adr[texture]), int(model.tex_nchannel[texture])
            pixels = int(model.tex_height[texture]) * int(model.tex_width[texture]) * channels
            mean = model.tex_data[start : start + pixels].reshape(-1, channels).mean(0) / 255
            colour[:3] *= mean[:3]
        return [round(value, 3) for value in colour.tolist()]


def simplified(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """Vertices (v, 3) of one cell of a grid as one, in their middle; faces (f, 3) that are none any more left out."""
    _, joined, count = np.unique(np.floor(vertices / cell), axis=0, return_inverse=True, return_counts=True)
    joined = joined.ravel()
    middle = np.zeros((len(count), 3))
    np.add.at(middle, joined, vertices)
    corners = joined[faces]
    whole = (corners != np.roll(corners, 1, axis=1)).all(1)
    return middle / count[:, None], corners[whole]


def _track(values: np.ndarray) -> list[int]:
    """Numbers (T,) as whole ones: the first and the differences, or one where they are all the same."""
    whole = np.rint(values).astype(int)
    return whole[:1].tolist() if (whole == whole[0]).all() else np.diff(whole, prepend=0).tolist()


def _cut(values: np.ndarray, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    return values[: count * size].reshape(count, size), values[count * size :]


def _floats(values: np.ndarray) -> list[float]:
    return [round(value, 6) for value in np.asarray(values, float).tolist()]
