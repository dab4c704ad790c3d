"""Which OpenGL can draw on this machine."""

from __future__ import annotations

import functools
import os
import subprocess
import sys


@functools.cache
def _find_opengl() -> None:
    """Sets MUJOCO_GL, if unset, to what can draw here: a child tries, since a bad driver may end its process."""
    draw = "import mujoco as m; c = m.GLContext(9, 9); c.make_current(); m.MjrContext(m.MjSpec().compile(), 150)"
    given = os.environ.get("MUJOCO_GL")
    for backend in [given] if given else ["egl", "glfw", "osmesa"]:
        tried = os.environ | {"MUJOCO_GL": backend}
        if subprocess.run([sys.executable, "-c", draw], env=tried, capture_output=True).returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return
    found = f"MUJOCO_GL={given} does not work here" if given else "no OpenGL was found"
    raise RuntimeError(f"cannot draw pictures: {found}; on Debian or Ubuntu, apt-get install libegl1 libgl1")
