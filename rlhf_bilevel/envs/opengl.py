"""Which OpenGL can draw on this machine."""

from __future__ import annotations

import functools
import os
import subprocess
import sys


@functools.cache
def find_opengl() -> None:
    """Sets MUJOCO_GL, unless it is set, to an OpenGL that can draw here. RuntimeError if there is none.

    Each one is tried in a child process, since a bad driver may end its process.
    """
    draw = "import mujoco as m; c = m.GLContext(9, 9); c.make_current(); m.MjrContext(m.MjSpec().compile(), 150)"
    user_choice = os.environ.get("MUJOCO_GL")
    for backend in [user_choice] if user_choice else ["egl", "glfw", "osmesa"]:
        environment = os.environ | {"MUJOCO_GL": backend}
        if subprocess.run([sys.executable, "-c", draw], env=environment, capture_output=True).returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return
    reason = f"MUJOCO_GL={user_choice} does not work here" if user_choice else "no OpenGL was found"
    raise RuntimeError(f"cannot draw pictures: {reason}; on Debian or Ubuntu, apt-get install libegl1 libgl1")
