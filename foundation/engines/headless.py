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
    os.environ.setdefault("MUJOCO_GL", "egl" if ctypes.util.find_library("EGL") else "osmesa")
