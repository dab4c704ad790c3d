"""Pictures of a MuJoCo model by MuJoCo's own renderer, for teachers that look and have no browser. Needs OpenGL."""

from __future__ import annotations

import importlib
import io
import os
import sys
from typing import Any

import mujoco
import numpy as np
from PIL import Image

from rlhf_bilevel.envs.opengl import find_opengl

PIXELS = 256  # of a side
QUALITY = 80  # of a JPEG


class Renderer:
    """Draws ``model`` as it is then; ``camera`` as in ``scene.Stage``. To be used in one thread.

    RuntimeError where OpenGL is missing.
    """

    def __init__(self, model: mujoco.MjModel, camera: int) -> None:
        find_opengl()
        name = os.environ["MUJOCO_GL"]
        module = "cgl" if sys.platform == "darwin" else name if name in ("egl", "osmesa") else "glfw"
        size = model.vis.global_
        size.offwidth, size.offheight = max(size.offwidth, PIXELS), max(size.offheight, PIXELS)
        self._model, self._gl = model, importlib.import_module(f"mujoco.{module}").GLContext(PIXELS, PIXELS)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene, self._options = mujoco.MjvScene(model, maxgeom=10_000), mujoco.MjvOption()
        self._camera: Any = mujoco.MjvCamera()
        mujoco.mjv_defaultFreeCamera(model, self._camera)
        if camera >= 0:
            self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera

    def draw(self, data: mujoco.MjData) -> np.ndarray:
        """A picture (PIXELS, PIXELS, 3) uint8 of what forward kinematics have placed in ``data``.

        Where the camera hangs upside down, as Meta-World's does, it is turned by half a circle.
        """
        self._gl.make_current()
        for field in range(self._model.nhfield):
            mujoco.mjr_uploadHField(self._model, self._context, field)
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._camera, everything, self._scene)
        view, pixels = mujoco.MjrRect(0, 0, PIXELS, PIXELS), np.empty((PIXELS, PIXELS, 3), np.uint8)
        mujoco.mjr_render(view, self._scene, self._context)
        mujoco.mjr_readPixels(pixels, None, view, self._context)
        number = self._camera.fixedcamid
        hangs = number >= 0 and data.cam_xmat[number].reshape(3, 3)[2, 1] < 0
        return pixels[:, ::-1] if hangs else pixels[::-1]  # OpenGL's rows begin at the bottom

    def close(self) -> None:
        """Frees what the renderer holds."""
        self._gl.make_current()
        self._context.free()
        self._gl.free()


def jpeg(pixels: np.ndarray) -> bytes:
    """Of a picture (height, width, 3) uint8, made smaller until its longer side is about PIXELS at most."""
    picture, file = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    picture.reduce(max(1, round(max(picture.size) / PIXELS))).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
