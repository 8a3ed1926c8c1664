"""Drawing on a machine without a display."""

from __future__ import annotations

import ctypes.util
import os

from core.errors import UserError


def prepare(needs_mujoco: bool) -> None:
    """Chooses how pygame and MuJoCo draw, before they are imported; what the user has set stays.

    Raises UserError where MuJoCo is needed and the machine has no OpenGL library for it.
    """
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a desktop otherwise, and complains that there is none
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    if not needs_mujoco or os.environ.get("MUJOCO_GL"):
        return
    for name, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library):
            os.environ["MUJOCO_GL"] = name
            return
    raise UserError(
        "MuJoCo cannot draw on this machine: neither EGL nor OSMesa is installed. "
        "Try: apt-get install libegl1 (with a GPU or Mesa) or libosmesa6"
    )
