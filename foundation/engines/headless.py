"""Drawing without a display."""

from __future__ import annotations

import ctypes.util
import os


def prepare_rendering() -> None:
    """Let pygame and MuJoCo, not imported yet, draw without a display, unless the user has chosen how."""
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
    libraries = {"EGL": "egl", "OSMesa": "osmesa"}
    found = [backend for library, backend in libraries.items() if ctypes.util.find_library(library)]
    # MuJoCo cannot even be imported where the library that it is told to draw with is missing.
    os.environ.setdefault("MUJOCO_GL", found[0] if found else "disable")
