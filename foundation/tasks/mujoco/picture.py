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
    """Draws states of a model that begins with a free joint.

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
        """Draw states side by side; the camera follows the mean of their places.

        Args:
            qpos: Generalised positions, a free joint's first. Shape: (num_shown, nq).
            colours: Red, green and blue of each, from 0 to 1; none: those of the model.

        Returns:
            Shape: (height, width, 3), uint8.
        """
        mujoco = self._mujoco
        number = len(qpos)
        shown = qpos.copy()
        if number > 1:
            shown[:, 1] += (np.arange(number) - 0.5 * (number - 1)) * self._viewer.spacing
        self._camera.lookat[:] = shown[:, :3].mean(0)
        scene = self._renderer.scene
        moving = mujoco.mjtCatBit.mjCAT_DYNAMIC
        for index, state in enumerate(shown):
            self._data.qpos[:] = state
            mujoco.mj_forward(self._model, self._data)
            first = scene.ngeom
            if index == 0:
                first = 0
                self._renderer.update_scene(self._data, self._camera, self._option)
            else:
                mujoco.mjv_addGeoms(self._model, self._data, self._option, mujoco.MjvPerturb(), moving, scene)
            if colours:
                _colour(scene.geoms[first : scene.ngeom], colours[index], moving)
        return np.ascontiguousarray(self._renderer.render())

    def close(self) -> None:
        """Release the graphics context."""
        self._renderer.close()


def _colour(geoms: Sequence[Any], colour: Sequence[float], category: int) -> None:
    """Give the drawn geoms of a category a colour, without the material that would cover it."""
    for geom in geoms:
        if geom.category == category:
            geom.matid = -1
            geom.rgba[:3] = colour
