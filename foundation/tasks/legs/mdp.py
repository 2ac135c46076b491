"""The maths of the velocity tasks: frames, gait, reward. Pure functions of tensors."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

CONTACT_HEIGHT = 0.03
"""A foot, whose radius is 0.023 m, is on the ground where its centre is lower than this [m]."""
TRUNK_HEIGHT = 0.27
"""Height of the trunk that the reward asks for [m]."""
SWING_UNIT = 0.1
"""Unit of the missing clearance [m]."""
MOVING = 0.1
"""Least norm of a command that is not to stand still."""
REWARD_TERMS = (
    "track_lin_vel",
    "track_ang_vel",
    "lin_vel_z",
    "ang_vel_xy",
    "orientation",
    "action_rate",
    "posture",
    "base_height",
    "gait",
    "foot_slip",
    "foot_clearance",
    "stand_still",
    "termination",
)
LIMITS = ("tilt", "height")


class Body(NamedTuple):
    """Motion of the trunks in their own frames: x ahead, y left, z up."""

    lin_vel: torch.Tensor
    """[m/s]. Shape: (num_envs, 3)."""
    ang_vel: torch.Tensor
    """[rad/s]. Shape: (num_envs, 3)."""
    gravity: torch.Tensor
    """Unit vector along gravity. Shape: (num_envs, 3)."""


class Feet(NamedTuple):
    """The feet of a step, in the order of ``go1_model.FEET``."""

    height: torch.Tensor
    """Of their centres above the ground [m]. Shape: (num_envs, 4)."""
    contact: torch.Tensor
    """Whether they are on the ground, bool. Shape: (num_envs, 4)."""
    speed: torch.Tensor
    """Horizontal [m/s]. Shape: (num_envs, 4)."""


def rotation_matrix(quaternion: torch.Tensor) -> torch.Tensor:
    """Return the rotations, body to world, of unit quaternions (w, x, y, z). Shape: (n, 4) to (n, 3, 3)."""
    w, x, y, z = quaternion.unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
    ]
    return torch.stack(rows, -2)


def body_motion(qpos: torch.Tensor, qvel: torch.Tensor) -> Body:
    """Return the trunks' motion from MuJoCo's free joints.

    Args:
        qpos: Position [m], quaternion, joints. Shape: (num_envs, 19).
        qvel: Velocity in the world [m/s], body rates in the trunk's frame [rad/s], joints. Shape: (num_envs, 18).
    """
    rotation = rotation_matrix(qpos[:, 3:7])
    lin_vel = torch.einsum("nji,nj->ni", rotation, qvel[:, :3])
    return Body(lin_vel.float(), qvel[:, 3:6].float(), -rotation[:, 2].float())


def clock(steps: torch.Tensor, step_dt: float, frequency: float) -> torch.Tensor:
    """Return sine and cosine of the gait's phase. Shape: (num_envs,) to (num_envs, 2)."""
    phase = (2.0 * math.pi * frequency * step_dt) * steps
    return torch.stack([phase.sin(), phase.cos()], -1).float()


def stance(phase_sine: torch.Tensor) -> torch.Tensor:
    """Return which feet a trot has on the ground: front right and rear left in the first half of a stride.

    Args:
        phase_sine: Shape: (num_envs,).

    Returns:
        Bool. Shape: (num_envs, 4).
    """
    first = phase_sine > 0.0
    return torch.stack([first, ~first, ~first, first], -1)


def moving(command: torch.Tensor) -> torch.Tensor:
    """Return where a command is not to stand still. Shape: (num_envs, 3) to (num_envs,)."""
    return command.norm(dim=-1) > MOVING


def reward_terms(
    *,
    body: Body,
    feet: Feet,
    command: torch.Tensor,
    phase_sine: torch.Tensor,
    action_change: torch.Tensor,
    joint_offset: torch.Tensor,
    height: torch.Tensor,
    clearance: float,
    fallen: torch.Tensor,
) -> torch.Tensor:
    """Compute the terms of the reward without their weights, in the order of :data:`REWARD_TERMS`.

    Args:
        body: Motion of the trunks.
        feet: The feet.
        command: Velocities ahead and to the left [m/s], yaw rate [rad/s]. Shape: (num_envs, 3).
        phase_sine: Sine of the gait's phase. Shape: (num_envs,).
        action_change: Action less the one before. Shape: (num_envs, 12).
        joint_offset: Joint angles less those of standing [rad]. Shape: (num_envs, 12).
        height: Of the trunks above the ground [m]. Shape: (num_envs,).
        clearance: Height that a swinging foot is to reach [m].
        fallen: Bool. Shape: (num_envs,).

    Returns:
        Shape: (num_terms, num_envs).
    """
    on_ground = stance(phase_sine)
    walks = moving(command).float()
    slip = (feet.speed.square() * feet.contact).clamp(max=2.0)
    lacking = (clearance - feet.height).clamp(min=0.0) * ~on_ground / SWING_UNIT
    return torch.stack(
        [
            torch.exp(-(command[:, :2] - body.lin_vel[:, :2]).square().sum(-1) / 0.25),
            torch.exp(-(command[:, 2] - body.ang_vel[:, 2]).square() / 0.25),
            body.lin_vel[:, 2].square(),
            body.ang_vel[:, :2].square().sum(-1),
            body.gravity[:, :2].square().sum(-1),
            action_change.square().sum(-1),
            joint_offset.square().sum(-1),
            (height - TRUNK_HEIGHT).square(),
            ((feet.contact == on_ground).float().mean(-1) - 0.5) * walks,
            slip.sum(-1),
            lacking.sum(-1) * walks,
            joint_offset.abs().sum(-1) * (1.0 - walks),
            fallen.float(),
        ]
    )
