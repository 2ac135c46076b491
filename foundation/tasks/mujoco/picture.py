"""Pictures of MuJoCo models, several states of one model beside one another, with or without a display."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.tasks.mujoco.package import import_mujoco

if TYPE_CHECKING:
    from foundation.tasks.mujoco.env import ViewerCfg


class Picture:
    """Draws states of a model.

    Args:
        model: ``mujoco.MjModel``.
        viewer: Size of the picture and the camera's place.

    Raises:
        UserError: If nothing can be drawn here.
    """

    def __init__(self, model: Any, viewer: ViewerCfg):
        mujoco = import_mujoco()
        width, height = viewer.resolution
        if min(width, height) < 16:
            raise UserError(f"env.viewer.resolution must be at least 16 x 16, it is {width} x {height}")
        model.vis.global_.offwidth = width
        model.vis.global_.offheight = height
        # Shadows and anti-aliasing cost fifty times what the rest does where no graphics card draws.
        model.vis.quality.shadowsize = 0
        model.vis.quality.offsamples = 0
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:  # of GLFW, EGL, OSMesa or PyOpenGL, each with exceptions of its own
            backend = os.environ.get("MUJOCO_GL", "unset")
            raise UserError(
                f"MuJoCo cannot draw here with MUJOCO_GL {backend} ({one_line(error)}): install libegl1 or libosmesa6, "
                "and set MUJOCO_GL=egl or MUJOCO_GL=osmesa"
            ) from error
        self._mujoco = mujoco
        self._model = model
        self._data = mujoco.MjData(model)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = [1, 1, 1, 0, 0, 0]  # group 3 is by custom what collides
        self._viewer = viewer
        self._camera = mujoco.MjvCamera()
        self._camera.distance = viewer.distance
        self._camera.azimuth = viewer.azimuth
        self._camera.elevation = viewer.elevation

    def draw(self, qpos: np.ndarray, colours: Sequence[Sequence[float]] = ()) -> np.ndarray:
        """Draw states beside one another, along the world's y; the camera follows the mean of their places.

        Args:
            qpos: Generalised positions. Shape: (num_shown, nq).
            colours: Red, green and blue of each, from 0 to 1; none: those of the model.

        Returns:
            Shape: (height, width, 3), uint8.
        """
        mujoco = self._mujoco
        side = (np.arange(len(qpos)) - 0.5 * (len(qpos) - 1)) * self._viewer.spacing
        self._camera.lookat[:] = np.mean([self._centre(state) for state in qpos], 0)
        scene = self._renderer.scene
        moving = mujoco.mjtCatBit.mjCAT_DYNAMIC
        first = 0
        for index, state in enumerate(qpos):
            self._data.qpos[:] = state
            mujoco.mj_forward(self._model, self._data)
            if index == 0:
                self._renderer.update_scene(self._data, self._camera, self._option)
            else:
                mujoco.mjv_addGeoms(self._model, self._data, self._option, mujoco.MjvPerturb(), moving, scene)
            for geom in scene.geoms[first : scene.ngeom]:
                if geom.category == moving:
                    geom.pos[1] += side[index]
                    if colours:
                        geom.matid = -1  # a material would cover it
                        geom.rgba[:3] = colours[index]
            first = scene.ngeom
        return np.ascontiguousarray(self._renderer.render())

    def _centre(self, state: np.ndarray) -> np.ndarray:
        """Return the centre of mass of the first body and what hangs on it [m]. Shape: (3,)."""
        self._data.qpos[:] = state
        self._mujoco.mj_kinematics(self._model, self._data)
        self._mujoco.mj_comPos(self._model, self._data)
        return self._data.subtree_com[1].copy()

    def close(self) -> None:
        """Release the graphics context."""
        self._renderer.close()
