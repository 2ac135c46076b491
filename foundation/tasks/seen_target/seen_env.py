"""Seen target: hold a place before a ball that the camera sees, at 100 Hz, for 5 s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from foundation.core.errors import UserError
from foundation.tasks.camera.camera import CameraCfg
from foundation.tasks.camera.scene import Scene
from foundation.tasks.quadrotor.env_cfg import InitCfg, QuadcopterPointCtrlEnvCfg, SceneCfg, refuse_nulls
from foundation.tasks.quadrotor.mdp import DEPLOYABLE_SIZE, POSITION_FIELDS, ROTATION_FIELDS, between
from foundation.tasks.quadrotor.quadrotor_env import TABLE_STEPS, QuadrotorEnv
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

__all__ = ["QuadcopterPointCtrlSeenEnv", "QuadcopterPointCtrlSeenEnvCfg", "QuadcopterPointCtrlSeenEnvCfg_PLAY"]


@dataclass
class SeenInitCfg(InitCfg):
    """Distribution of initial states: as in point control, but less tilted, so that the ball is soon in view."""

    max_angle: float = 0.6
    """Greatest rotation about a random axis [rad]."""


@dataclass
class BallCfg:
    """The ball, straight ahead of the target along the world's x, at its height."""

    distance: float = 1.25
    """Of its centre from the target [m]."""
    radius: float = 0.2
    """[m]."""
    ground: tuple[float, float] = (-2.0, -1.2)
    """Range of the ground's height below the target, drawn per episode, so that it does not tell the target's [m]."""


@dataclass
class QuadcopterPointCtrlSeenEnvCfg(QuadcopterPointCtrlEnvCfg):
    """A quadrotor flies to a place before a ball and stays."""

    init: InitCfg = field(default_factory=SeenInitCfg)
    """Initial states."""
    ball: BallCfg = field(default_factory=BallCfg)
    """What marks the target."""
    camera: CameraCfg = field(default_factory=lambda: CameraCfg(image="depth"))
    """The camera on the vehicle."""
    success_distance: float = 0.1
    """Mean distance to the target over the last second, below which a whole episode is a success [m]."""


@dataclass
class QuadcopterPointCtrlSeenEnvCfg_PLAY(QuadcopterPointCtrlSeenEnvCfg):  # noqa: N801 (Isaac Lab's name for it)
    """The same with few environments."""

    scene: SceneCfg = field(default_factory=lambda: SceneCfg(num_envs=64))


def check_seen_cfg(cfg: QuadcopterPointCtrlSeenEnvCfg) -> None:
    """Refuse values that no such task can have; the rest is checked as for point control."""
    refuse_nulls(cfg, "ball", "camera")
    for name, value in (("ball.radius", cfg.ball.radius), ("success_distance", cfg.success_distance)):
        if not value > 0:
            raise UserError(f"env.{name} must be positive, it is {value}")
    if not cfg.ball.distance > cfg.ball.radius:
        raise UserError(
            f"env.ball.distance must be greater than env.ball.radius ({cfg.ball.radius:g}), it is {cfg.ball.distance}"
        )


def seen_groups(groups: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the groups of point control, those without the position, and the position alone.

    Args:
        groups: Of point control. Shape of each: (num_envs, size).
    """
    deployable = groups["deployable"]
    return {
        **groups,
        "proprioception": deployable[:, 3:],
        "inertial": torch.cat([deployable[:, 3:12], deployable[:, 15:DEPLOYABLE_SIZE]], dim=1),
        "target": deployable[:, :3],
    }


class QuadcopterPointCtrlSeenEnv(QuadcopterPointCtrlEnv):
    """Many quadrotors, each flying to its target, which a ball ahead of it marks.

    The vehicle's start and yaw are random, so that only the camera tells where the target is: ``proprioception`` (or
    ``inertial``, without the velocity) does not. An episode is a success if it ends by time-out with a mean distance
    below ``success_distance`` over its last second. Teachers of point control know this task.
    """

    cfg: QuadcopterPointCtrlSeenEnvCfg  # pyright: ignore[reportIncompatibleVariableOverride]  (a narrower one)
    position_fields = {**POSITION_FIELDS, "target": (0, "body")}  # noqa: RUF012
    """Observation group -> (first column of the position error, its frame: ``body`` or ``world``)."""
    rotation_fields = {**ROTATION_FIELDS, "proprioception": 0, "inertial": 0}  # noqa: RUF012
    """Observation group -> first column of the rotation matrix, body to world, row by row."""
    _TENSORS = (*QuadrotorEnv._TENSORS, "_ground", "_ground_table")

    def __init__(self, cfg: QuadcopterPointCtrlSeenEnvCfg | None = None, render_mode: str | None = None):
        """Build the environments and reset them with ``cfg.seed``."""
        cfg = cfg or QuadcopterPointCtrlSeenEnvCfg()
        check_seen_cfg(cfg)
        super().__init__(cfg, render_mode)

    def prepare(self) -> None:
        """Place the balls."""
        super().prepare()
        ball = self.cfg.ball
        sphere = torch.tensor([ball.distance, 0.0, 0.0, ball.radius], device=self.device)
        self._balls = sphere.view(1, 4, 1).expand(1, 4, self.num_envs)

    def draw_task_table(self) -> None:
        """Draw the ground's height of the episodes that begin in the coming steps."""
        shape = (TABLE_STEPS, self.num_envs)
        uniform = torch.rand(shape, generator=self._generator, device=self.device, dtype=self._dtype)
        self._ground_table = between(uniform, self.cfg.ball.ground)

    def begin_task(self, dones: torch.Tensor | None) -> None:
        """Take this step's row of the table where episodes begin."""
        ground = self._ground_table[self.table_row]
        self._ground = ground.clone() if dones is None else torch.where(dones, ground, self._ground)

    def observe(self) -> dict[str, torch.Tensor]:
        """Build the groups of point control, those without the position, and the position alone."""
        return seen_groups(super().observe())

    def task_metrics(self, metrics: dict[str, torch.Tensor], time_outs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return which episodes are a success. Shape: (num_envs,)."""
        return {"success": time_outs & (metrics["position_error"] < self.cfg.success_distance)}

    def scene(self) -> Scene:
        """Return the ball and the ground."""
        return Scene(ground=self._ground, spheres=self._balls)

    def renderer_options(self) -> dict[str, Any]:
        """Return how much is shown: the ball too."""
        return {"share_shown": 1.1 * self.cfg.ball.distance / self.cfg.terminations.position}
