"""Point control with a seen target in Isaac Lab (3.0): the group ``camera`` is a ``TiledCamera`` on the vehicle.

Settings are those of the built-in camera, ``env.camera``: kind, size, angle, pose, range, type, delay and noise mean
the same, and so do the images' values. The ground stays at the middle of its range, as the simulator builds it once.
"""

# Isaac Lab has an environment of its own, so a type checker may not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

import math
from dataclasses import field
from typing import Any

import isaaclab.sim as sim_utils
import torch
from isaaclab.assets import AssetBaseCfg
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sensors import TiledCameraCfg
from isaaclab.utils import configclass

from foundation.tasks.camera.camera import Camera, CameraCfg, check_camera_cfg
from foundation.tasks.camera.sensor import DEPTH, measured
from foundation.tasks.quadrotor.env_cfg import InitCfg
from foundation.tasks.quadrotor.isaaclab_env import (
    QuadcopterPointCtrlIsaacEnv,
    QuadcopterPointCtrlIsaacEnvCfg,
    QuadcopterSceneCfg,
)
from foundation.tasks.quadrotor.mdp import POSITION_FIELDS, ROTATION_FIELDS
from foundation.tasks.seen_target.seen_env import BallCfg, SeenInitCfg, check_seen_cfg, seen_groups

_NEAREST = 0.01
"""Near clipping distance of the camera [m]."""
_GROUND = 6.0
"""Side of the ground below each ball [m]."""


@configclass
class SeenSceneCfg(QuadcopterSceneCfg):
    """A vehicle, what marks its target, and the ground, so far apart that no camera sees another environment's."""

    ball: AssetBaseCfg | None = None
    """Filled in by the environment."""
    ground: AssetBaseCfg | None = None
    """Filled in by the environment."""
    camera: TiledCameraCfg | None = None
    """Filled in by the environment; none with ``env.camera.image=none``."""


@configclass
class QuadcopterPointCtrlSeenIsaacEnvCfg(QuadcopterPointCtrlIsaacEnvCfg):
    """A quadrotor flies to a place before a ball and stays."""

    scene: InteractiveSceneCfg = SeenSceneCfg(num_envs=512, env_spacing=8.0)
    """Environments."""
    num_rerenders_on_reset: int = 1
    """So that an episode's first image is its own."""
    init: InitCfg = field(default_factory=SeenInitCfg)
    """Initial states."""
    ball: BallCfg = field(default_factory=BallCfg)
    """What marks the target."""
    camera: CameraCfg = field(default_factory=lambda: CameraCfg(image="depth"))
    """The camera on the vehicle."""
    success_distance: float = 0.1
    """Mean distance to the target over the last second, below which a whole episode is a success [m]."""


@configclass
class QuadcopterPointCtrlSeenIsaacEnvCfg_PLAY(QuadcopterPointCtrlSeenIsaacEnvCfg):  # noqa: N801 (Isaac Lab's name)
    """The same with few environments."""

    scene: InteractiveSceneCfg = SeenSceneCfg(num_envs=64, env_spacing=8.0)
    """Environments."""


def sensor_cfg(camera: CameraCfg) -> TiledCameraCfg | None:
    """Return the sensor that takes the images of a camera; None where it has none."""
    if camera.image == "none":
        return None
    kinds = {"depth": [DEPTH], "rgb": ["rgb"], "rgbd": ["rgb", DEPTH]}
    w, x, y, z = camera.rotation
    focal_length = 1.0
    lens = sim_utils.PinholeCameraCfg(
        focal_length=focal_length,
        horizontal_aperture=2.0 * focal_length * math.tan(0.5 * camera.horizontal_fov),
        clipping_range=(_NEAREST, max(camera.max_depth, 100.0 * _NEAREST)),
    )
    return TiledCameraCfg(
        prim_path="/World/envs/env_.*/Robot/Camera",
        offset=TiledCameraCfg.OffsetCfg(pos=camera.position, rot=(x, y, z, w), convention="world"),
        spawn=lens,
        data_types=kinds[camera.image],
        width=camera.width,
        height=camera.height,
    )


class QuadcopterPointCtrlSeenIsaacEnv(QuadcopterPointCtrlIsaacEnv):
    """Many quadrotors, each flying to its target, which a ball ahead of it marks."""

    cfg: QuadcopterPointCtrlSeenIsaacEnvCfg  # pyright: ignore[reportIncompatibleVariableOverride]  (a narrower one)
    position_fields = {**POSITION_FIELDS, "target": (0, "body")}  # noqa: RUF012
    """Observation group -> (first column of the position error, its frame: ``body`` or ``world``)."""
    rotation_fields = {**ROTATION_FIELDS, "proprioception": 0, "inertial": 0}  # noqa: RUF012
    """Observation group -> first column of the rotation matrix, body to world, row by row."""

    def __init__(self, cfg: QuadcopterPointCtrlSeenIsaacEnvCfg, render_mode: str | None = None, **kwargs: object):
        """Build the scene."""
        check_seen_cfg(cfg)
        check_camera_cfg(cfg.camera)
        cfg.scene.camera = sensor_cfg(cfg.camera)
        cfg.scene.ball, cfg.scene.ground = _marks(cfg.ball)
        self._camera: Camera | None = None
        super().__init__(cfg, render_mode, **kwargs)
        if cfg.camera.image != "none":
            self._camera = Camera(cfg.camera, self.num_envs, torch.device(self.device))

    def _get_rewards(self) -> torch.Tensor:
        rewards = super()._get_rewards()
        metrics = self.extras["episode_metrics"]
        metrics["success"] = self.reset_time_outs & (metrics["position_error"] < self.cfg.success_distance)
        return rewards

    def _get_observations(self) -> dict[str, Any]:
        groups = seen_groups(super()._get_observations())
        if self._camera is not None:
            fresh = self._camera.compose(*measured(self.scene["camera"].data.output))
            groups["camera"] = self._camera.delayed(fresh, self.episode_length_buf == 0)
        return groups

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begin a new episode in every environment."""
        if self._camera is not None and seed is not None:
            self._camera.seed(seed)
        return super().reset(seed, options)


def _marks(ball: BallCfg) -> tuple[AssetBaseCfg, AssetBaseCfg]:
    """Return the ball and the ground of an environment, which are seen and touch nothing."""
    height = 0.5 * sum(ball.ground)
    red, grey = (sim_utils.PreviewSurfaceCfg(diffuse_color=colour) for colour in ((0.9, 0.2, 0.1), (0.5, 0.5, 0.5)))
    return (
        AssetBaseCfg(
            prim_path="/World/envs/env_.*/Ball",
            spawn=sim_utils.SphereCfg(radius=ball.radius, visual_material=red),
            init_state=AssetBaseCfg.InitialStateCfg(pos=(ball.distance, 0.0, 0.0)),
        ),
        AssetBaseCfg(
            prim_path="/World/envs/env_.*/Ground",
            spawn=sim_utils.CuboidCfg(size=(_GROUND, _GROUND, 0.02), visual_material=grey),
            init_state=AssetBaseCfg.InitialStateCfg(pos=(0.0, 0.0, height - 0.01)),
        ),
    )


def make_env(
    cfg: QuadcopterPointCtrlSeenIsaacEnvCfg, render_mode: str | None = None
) -> QuadcopterPointCtrlSeenIsaacEnv:
    """Build the environment (called by the task's gym entry point)."""
    return QuadcopterPointCtrlSeenIsaacEnv(cfg, render_mode)
