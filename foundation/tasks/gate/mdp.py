"""The gate task's maths: observations, passing, reward, and the velocity that a teacher is trained to have.

Tensors are components first, environments last. A gate stands upright; its axes are x along the way through, y to the
left and z up, and a vehicle begins where x is negative.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch

from foundation.tasks.quadrotor.mdp import motor_commands
from foundation.tasks.quadrotor.sim.quadrotor import BODY_RATES, POSITION, QUATERNION, ROTORS, VELOCITY
from foundation.tasks.quadrotor.sim.rotation import rotation_rows, to_body

CENTRE = slice(0, 3)
YAW = 3
GATE_SIZE = 4
"""Numbers of a gate: its centre (3), world frame [m], and its yaw [rad]."""
REWARD_TERMS = ("progress", "orientation", "action_rate", "passed", "termination")
LIMITS = ("position", "velocity", "body_rate", "hit", "missed", "passed")
"""What ends an episode, ``passed`` being the success."""
RELATIVE_POSITION = 0
ROTATION = 3
POLICY_SIZE = 29


def to_gate(vector: torch.Tensor, yaw: torch.Tensor) -> torch.Tensor:
    """Turn a world-frame vector into the gate's axes. Shape: (3, num_envs), and (num_envs,) for the yaw."""
    cosine = yaw.cos()
    sine = yaw.sin()
    return torch.stack([cosine * vector[0] + sine * vector[1], cosine * vector[1] - sine * vector[0], vector[2]])


def observations(state: torch.Tensor, previous_action: torch.Tensor, gate: torch.Tensor) -> dict[str, torch.Tensor]:
    """Build the observation groups.

    Args:
        state: Packed state. Shape: (17, num_envs).
        previous_action: In [-1, 1]. Shape: (4, num_envs).
        gate: Centre and yaw. Shape: (4, num_envs).

    Returns:
        ``policy`` (num_envs, 29); ``deployable`` (num_envs, 25), the same without the motor speeds; ``proprioception``
        (num_envs, 19), without the gate; ``inertial`` (num_envs, 16), without the velocity either; ``gate``
        (num_envs, 6), where the gate is.
    """
    rotation = rotation_rows(state[QUATERNION])
    axis = torch.stack([gate[YAW].cos(), gate[YAW].sin(), torch.zeros_like(gate[YAW])])
    relative = state[POSITION] - gate[CENTRE]
    position, velocity, way = to_body(rotation, [relative, state[VELOCITY], axis])
    rates = state[BODY_RATES]
    motors = motor_commands(state[ROTORS])
    parts = [position, rotation, velocity, rates, previous_action, way, motors]
    policy = torch.cat(cast("list[torch.Tensor]", parts)).T
    return {
        "policy": policy,
        "deployable": policy[:, :25],
        "proprioception": policy[:, 3:22],
        "inertial": torch.cat([policy[:, 3:12], policy[:, 15:22]], dim=1),
        "gate": torch.cat([policy[:, :3], policy[:, 22:25]], dim=1),
    }


class Crossing(NamedTuple):
    """Which vehicles crossed the gate's plane in a step, and how. Each of shape (num_envs,)."""

    passed: torch.Tensor
    """Through the opening."""
    hit: torch.Tensor
    """Against the frame."""
    missed: torch.Tensor
    """Beside the gate."""


def crossing(
    before: torch.Tensor, after: torch.Tensor, gate: torch.Tensor, opening: float, bar: float, clearance: float
) -> Crossing:
    """Find where a straight step crosses the gate's plane.

    Args:
        before: Position before the step, world frame [m]. Shape: (3, num_envs).
        after: Position after it.
        gate: Centre and yaw. Shape: (4, num_envs).
        opening: Side of the opening [m].
        bar: Width of the frame around it [m].
        clearance: Half of the vehicle's width [m].
    """
    start = to_gate(before - gate[CENTRE], gate[YAW])
    end = to_gate(after - gate[CENTRE], gate[YAW])
    crosses = (start[0] < 0.0) & (end[0] >= 0.0)
    share = start[0] / (start[0] - end[0]).clamp(max=-1e-9)
    place = start[1:] + share * (end[1:] - start[1:])
    offset = place.abs().amax(0)
    passed = crosses & (offset <= 0.5 * opening - clearance)
    near = crosses & (offset <= 0.5 * opening + bar + clearance)
    return Crossing(passed, near & ~passed, crosses & ~near)


def reward_terms(
    progress: torch.Tensor,
    quaternion: torch.Tensor,
    action: torch.Tensor,
    previous_action: torch.Tensor,
    passed: torch.Tensor,
    failed: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Compute the weighted terms of the reward, whose sum is the reward.

    Args:
        progress: How much nearer to the gate's centre the vehicle came in the step [m]. Shape: (num_envs,).
        quaternion: After the step. Shape: (4, num_envs).
        action: The one applied in the step. Shape: (4, num_envs).
        previous_action: The one before it. Shape: (4, num_envs).
        passed: Shape: (num_envs,).
        failed: Whether anything else ended the episode but its time. Shape: (num_envs,).
        weights: In the order of :data:`REWARD_TERMS`. Shape: (5, 1).

    Returns:
        Shape: (5, num_envs).
    """
    angle = (1.0 - quaternion[3].abs()).acos() * 2.0
    change = (action - previous_action).square().sum(0).sqrt()
    return torch.stack([progress, angle, change, passed.to(progress.dtype), failed.to(progress.dtype)]) * weights


def guidance(place: torch.Tensor, speed: float) -> torch.Tensor:
    """Return the velocity that leads through a gate: along its way, the slower the farther off it, and onto it.

    Args:
        place: Position from the gate's centre, gate's axes [m]. Shape: (3, num_envs).
        speed: On the way through [m/s].

    Returns:
        Gate's axes [m/s]. Shape: (3, num_envs).
    """
    off = place[1:]
    ahead = (-place[0]).clamp(min=0.0)
    tightness = off.square().sum(0) / (0.1 + 0.5 * ahead).square()
    forward = speed * (-tightness).exp()
    aside = -2.0 * off
    aside = aside / (1.0 + aside.square().sum(0)).sqrt()
    return torch.cat([forward.unsqueeze(0), aside])
