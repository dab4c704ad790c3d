"""Describes a MuJoCo scene for a browser: what its parts look like, once, and where each part is, in every frame.

Only ``Stage.draw`` renders. A part is a geom or a site that MuJoCo itself draws: one of the groups 0 to 2 that is not
fully transparent. Poses come from forward kinematics on a private copy of the model, on the CPU and without OpenGL.

Numbers that change are written as integers, to keep the JSON short; the scene and the clip name their unit. A position
is exact to extent / 2^16, a quaternion to 2^-15. Lengths are in metres. ``extent`` is the size of the model.
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
LOOKS = ("geom_size", "geom_rgba", "site_size", "site_rgba", "mat_rgba", "hfield_data")
GREY = (0.5, 0.5, 0.5, 1.0)  # MuJoCo's colour if none is set
DETAIL = 640  # vertices of a mesh in one cell of size extent / DETAIL become one
HEIGHTS = 64  # the most rows and columns with which a heightfield is drawn
QUATERNION = 2.0**-14  # the unit of quaternions


def pack(model: mujoco.MjModel) -> bytes:
    """The whole model as bytes, for ``Stage``."""
    data = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, data)
    return data.tobytes()


def look(model: mujoco.MjModel) -> bytes:
    """The parts of a model that a task may change between episodes, as bytes for ``Stage.set``."""
    return zlib.compress(b"".join(np.ascontiguousarray(getattr(model, name)).tobytes() for name in PLACED + LOOKS), 1)


def pose(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """The state from which forward kinematics follow: a copy, float32 (nq + 7 nmocap,)."""
    if not model.nmocap:
        return data.qpos.astype(np.float32)
    return np.concatenate((data.qpos, data.mocap_pos, data.mocap_quat), axis=None, dtype=np.float32)


class Stage:
    """A private copy of a model that ``pack`` made. ``camera`` is the camera's number, -1 for MuJoCo's free camera."""

    def __init__(self, packed: bytes, camera: int) -> None:
        self._model = model = mujoco.MjModel.from_binary_path("model.mjb", {"model.mjb": packed})
        self._data, self._camera = mujoco.MjData(model), camera
        self._unit = float(model.stat.extent) / 2**15
        self._choose()
        self._meshes: dict[int, dict[str, Any]] = {}
        self._scenes: dict[bytes, tuple[str, dict[str, Any]]] = {}  # by the content of LOOKS
        self._look = b""
        self._renderer: Renderer | None = None

    def set(self, look: bytes) -> None:
        """Changes the model to what it was when ``look`` was taken. CorruptFileError if that was another model."""
        if look == self._look:
            return
        try:
            data = zlib.decompress(look)
        except zlib.error as error:
            raise CorruptFileError(f"a recorded scene is damaged: {error}") from None
        fields = [getattr(self._model, name) for name in PLACED + LOOKS]
        if len(data) != sum(field.nbytes for field in fields):
            raise CorruptFileError("a recorded scene belongs to another environment")
        start = 0
        for field in fields:
            field[...] = np.frombuffer(data, field.dtype, field.size, start).reshape(field.shape)
            start += field.nbytes
        self._look = look
        self._choose()

    def scene(self) -> tuple[str, dict[str, Any]]:
        """The parts, the camera and the meshes, as content for JSON, after an id that is a hash of them."""
        looks = b"".join(getattr(self._model, name).tobytes() for name in LOOKS)
        if looks not in self._scenes:
            content = self._describe()
            self._scenes[looks] = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32], content
        return self._scenes[looks]

    def frames(self, poses: np.ndarray) -> dict[str, Any]:
        """Where the parts are, and where the camera looks, in ``poses`` (T, n), as content for JSON.

        ``parts`` has a list for each part: the tracks of x, y and z (in ``unit`` metres) and of the quaternion w, x, y
        and z. A track is one number if nothing moves, otherwise the first number and T - 1 differences. ``focus`` has
        the tracks of x, y and z of the point at which the camera looks.
        """
        data, count = self._data, len(poses)
        placements = np.empty((count, len(self._geoms) + len(self._sites), 7))
        focus = np.empty((count, 3))
        for frame, values in enumerate(poses):
            self._place(values)
            focus[frame] = self._focus()
            placements[frame, :, :3] = np.concatenate((data.geom_xpos[self._geoms], data.site_xpos[self._sites]))
            for part, matrix in enumerate(np.concatenate((data.geom_xmat[self._geoms], data.site_xmat[self._sites]))):
                mujoco.mju_mat2Quat(placements[frame, part, 3:], matrix)
        # q and -q are one rotation: a sign that changes from frame to frame would turn the part around in between
        flipped = (placements[1:, :, 3:] * placements[:-1, :, 3:]).sum(-1, keepdims=True) < 0
        placements[1:, :, 3:] *= np.where(np.logical_xor.accumulate(flipped), -1, 1)
        focus[:, 2] = focus[:, 2].mean()  # the horizon does not move, so that a fall looks like a fall
        parts = np.concatenate((placements[..., :3] / self._unit, placements[..., 3:] / QUATERNION), -1)
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
        """Finds the parts: first geoms, then sites."""
        model = self._model
        drawn = (model.geom_group < 3) & (model.geom_type <= max(SHAPES))
        self._geoms = np.flatnonzero(drawn & (self._rgba(model.geom_rgba, model.geom_matid)[:, 3] > 0))
        self._sites = np.flatnonzero((model.site_group < 3) & (self._rgba(model.site_rgba, model.site_matid)[:, 3] > 0))

    def _rgba(self, colour: np.ndarray, material: np.ndarray) -> np.ndarray:
        """The colours (N, 4) of N geoms or sites: their own ``colour`` (N, 4) if it is set, else their material's.

        ``material`` (N,) is -1 for none.
        """
        is_set = (material < 0) | ~np.isclose(colour, GREY).all(1)
        return np.where(is_set[:, None], colour, self._model.mat_rgba[material] if self._model.nmat else colour)

    def _place(self, values: np.ndarray) -> None:
        model, data = self._model, self._data
        data.qpos[:] = values[: model.nq]
        data.mocap_pos[:], rest = _cut(values[model.nq :], model.nmocap, 3)
        data.mocap_quat[:], _ = _cut(rest, model.nmocap, 4)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_camlight(model, data)

    def _focus(self) -> np.ndarray:
        """The point (3,) at which the camera looks: the body that it follows, or the middle of the model.

        A fixed camera looks at the point as far in front of it as the middle of the model is.
        """
        model, data = self._model, self._data
        if self._camera < 0:
            return model.stat.center
        if body := model.cam_bodyid[self._camera]:
            return data.subtree_com[body]
        ahead = -data.cam_xmat[self._camera].reshape(3, 3)[:, 2]
        far = (model.stat.center - data.cam_xpos[self._camera]) @ ahead
        return data.cam_xpos[self._camera] + max(far, model.stat.extent / 4) * ahead

    def _describe(self) -> dict[str, Any]:
        model, camera = self._model, self._camera_view()  # which puts everything at its start
        parts = [self._geom(geom) for geom in self._geoms]
        for site in self._sites:
            colour = self._colour(model.site_rgba[site], model.site_matid[site])
            shape = {"type": SHAPES[int(model.site_type[site])], "size": _floats(model.site_size[site])}
            mark = bool(model.site_bodyid[site] == 0)  # a site of the world marks a goal
            parts.append(shape | {"rgba": colour, "mark": mark})
        used = sorted({part["mesh"] for part in parts if "mesh" in part})
        return {
            "extent": float(model.stat.extent),
            "unit": self._unit,
            "camera": camera,
            "meshes": {str(mesh): self._mesh(mesh) for mesh in used},
            "parts": parts,
        }

    def _camera_view(self) -> dict[str, Any]:
        """Where the camera is relative to the point at which it looks, and its vertical field of view in degrees."""
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
        shape, size, data_id = SHAPES[int(model.geom_type[geom])], model.geom_size[geom], int(model.geom_dataid[geom])
        colour = self._colour(model.geom_rgba[geom], model.geom_matid[geom])
        part: dict[str, Any] = {"type": shape, "size": _floats(size), "rgba": colour}
        if shape == "plane" and self._data.geom_xmat[geom][8] > 0.99:
            part["size"] = [0.0, 0.0, 0.0]  # the ground has no end, as in MuJoCo's physics
        if shape == "mesh":
            part["mesh"] = data_id
        if shape == "hfield":
            rows, columns = int(model.hfield_nrow[data_id]), int(model.hfield_ncol[data_id])
            start, step = int(model.hfield_adr[data_id]), -(-max(rows, columns) // HEIGHTS)
            heights = model.hfield_data[start : start + rows * columns].reshape(rows, columns)[::step, ::step]
            part |= {"size": _floats(model.hfield_size[data_id]), "columns": heights.shape[1]}
            part["heights"] = np.rint(heights.ravel() * 1000).astype(int).tolist()  # 1000 is the top
        return part

    def _mesh(self, mesh: int) -> dict[str, Any]:
        """The vertices, three numbers in units each, and the faces, three vertices each."""
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

    def _colour(self, own_colour: np.ndarray, material: int) -> list[float]:
        """The colour from a distance: a texture counts by its mean. Four numbers in [0, 1]."""
        model, colour = self._model, self._rgba(own_colour[None], np.array([material]))[0].astype(float)
        texture = int(model.mat_texid[material, mujoco.mjtTextureRole.mjTEXROLE_RGB]) if material >= 0 else -1
        if texture >= 0:
            start, channels = int(model.tex_adr[texture]), int(model.tex_nchannel[texture])
            pixels = int(model.tex_height[texture]) * int(model.tex_width[texture]) * channels
            mean = model.tex_data[start : start + pixels].reshape(-1, channels).mean(0) / 255
            colour[:3] *= mean[:3]
        return [round(value, 3) for value in colour.tolist()]


def simplified(vertices: np.ndarray, faces: np.ndarray, cell: float) -> tuple[np.ndarray, np.ndarray]:
    """A mesh with fewer vertices: those in one cell of a grid become one, at their mean.

    Takes vertices (v, 3), faces (f, 3) and the length of a cell; returns new vertices and faces. Faces with two equal
    corners are left out.
    """
    _, new_index, count = np.unique(np.floor(vertices / cell), axis=0, return_inverse=True, return_counts=True)
    new_index = new_index.ravel()
    total = np.zeros((len(count), 3))
    np.add.at(total, new_index, vertices)
    corners = new_index[faces]
    is_triangle = (corners != np.roll(corners, 1, axis=1)).all(1)
    return total / count[:, None], corners[is_triangle]


def _track(values: np.ndarray) -> list[int]:
    """Numbers (T,), rounded: the first and the differences, or only the first if all are the same."""
    rounded = np.rint(values).astype(int)
    return rounded[:1].tolist() if (rounded == rounded[0]).all() else np.diff(rounded, prepend=0).tolist()


def _cut(values: np.ndarray, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``count * size`` values as (count, size), and the rest."""
    return values[: count * size].reshape(count, size), values[count * size :]


def _floats(values: np.ndarray) -> list[float]:
    return [round(value, 6) for value in np.asarray(values, float).tolist()]
