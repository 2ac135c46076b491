"""The task's maths: observations, rewards, terminations and resets as pure functions of state tensors.

Every engine calls these, so that one formula lives in one place. Tensors are components first, environments last
(an engine that keeps (num_envs, 3) passes ``x.T``); quaternions are (w, x, y, z), body to world; positions and
velocities are relative to the target. A vector is a block or rows (see ``sim.rows``): the compiled step and the
training through the simulator pass rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from foundation.tasks.quadrotor.sim.rotation import rotation_rows, to_body
from foundation.tasks.quadrotor.sim.rows import Vector, columns, difference, norm

POLICY_SIZE = 26
"""Position error, body frame (3); R row-major (9); velocity, body frame (3); body rates (3); previous action (4); motor
speeds as 2u - 1 (4)."""
DEPLOYABLE_SIZE = 22
"""The first 22 of ``policy``: what a vehicle without motor-speed sensors knows."""
L2F_SIZE = 22
"""Position and velocity in the world frame, in rl-tools' order: position, R, velocity, body rates, previous action."""

POSITION_FIELDS: dict[str, tuple[int, str]] = {"policy": (0, "body"), "deployable": (0, "body"), "l2f": (0, "world")}
"""Where each group has the position error: first column, and the frame it is in."""
ROTATION_FIELDS: dict[str, int] = {"policy": 3, "deployable": 3, "l2f": 3}
"""Where each group has the rotation matrix, body to world, row by row: first column."""
ACTION_FIELDS: dict[str, int] = {"policy": 18, "deployable": 18, "l2f": 18}
"""Where each group has the previous action: first column."""
METRIC_UNITS: dict[str, tuple[float, str]] = {"position_error": (100.0, "cm")}
"""What an episode's metrics, in SI units, are shown in: factor and unit."""
POSITION_UNIT = (100.0, "cm")
"""What positions [m] are shown in."""

REWARD_TERMS = ("alive", "position", "orientation", "action_rate", "termination")
TERMINATION_TERMS = ("position", "velocity", "body_rate")


def observations(
    position: Vector,
    velocity: Vector,
    body_rates: Vector,
    quaternion: Vector,
    previous_action: Vector,
    rotor_speeds: Vector,
) -> dict[str, torch.Tensor]:
    """Build the observation groups.

    Args:
        position: Relative to the target, world frame [m]. Shape: (3, num_envs).
        velocity: World frame [m/s]. Shape: (3, num_envs).
        body_rates: Body frame [rad/s]. Shape: (3, num_envs).
        quaternion: Shape: (4, num_envs).
        previous_action: In [-1, 1]. Shape: (4, num_envs).
        rotor_speeds: In [0, 1]. Shape: (4, num_envs).

    Returns:
        ``policy`` (num_envs, 26), ``deployable`` (num_envs, 22; a view of ``policy``), ``l2f`` (num_envs, 22).
    """
    rotation = rotation_rows(quaternion)
    position_body, velocity_body = to_body(rotation, [position, velocity])
    motors = motor_commands(rotor_speeds)
    policy = columns([position_body, rotation, velocity_body, body_rates, previous_action, motors])
    world = columns([position, rotation, velocity, body_rates, previous_action])
    return {"policy": policy, "deployable": policy[:, :DEPLOYABLE_SIZE], "l2f": world}


def motor_commands(rotor_speeds: Vector) -> Vector:
    """Return the motor commands in [-1, 1] that hold rotor speeds in [0, 1]: ``2 u - 1``."""
    if isinstance(rotor_speeds, torch.Tensor):
        return rotor_speeds * 2.0 - 1.0
    return [speed * 2.0 - 1.0 for speed in rotor_speeds]


def noise_columns(position: float, orientation: float, velocity: float, body_rates: float) -> list[float]:
    """Return the standard deviation of the noise of each column of ``deployable``; previous actions have none."""
    return [position] * 3 + [orientation] * 9 + [velocity] * 3 + [body_rates] * 3 + [0.0] * 4


def noise_scale(stds: Sequence[float], device: torch.device | str) -> torch.Tensor | None:
    """Return the noise of a group's columns as a tensor, shape (num_columns,), or None where it is all zero."""
    return torch.tensor(stds, device=device) if any(stds) else None


def reward_weights(
    alive: float,
    position: float,
    orientation: float,
    action_rate: float,
    termination: float,
    dtype: torch.dtype,
    device: torch.device | str,
) -> torch.Tensor:
    """Lay out the weights in the order of :data:`REWARD_TERMS`. Shape: (5, 1)."""
    weights = [alive, position, orientation, action_rate, termination]
    return torch.tensor(weights, dtype=dtype, device=device).unsqueeze(1)


def solved_return(alive: float, max_episode_length: int) -> float:
    """Return the mean return at which the task counts as solved: 80 % of what no error at any step would give.

    Args:
        alive: Weight of the reward for every step.
        max_episode_length: Steps of an episode.
    """
    return 0.8 * alive * max_episode_length


def angle_and_change(
    quaternion: Vector, action: Vector, previous_action: Vector, softness: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the yaw-like angle ``2 acos(1 - |q_z|)`` and the size of the change of action.

    Args:
        quaternion: 4 components.
        action: The one applied in the step. 4 components.
        previous_action: The one before it. 4 components.
        softness: 0 for the exact values. Otherwise both have finite gradients everywhere: the change as
            :func:`~foundation.tasks.quadrotor.sim.rows.norm` softens it, and the angle becomes its expansion
            ``sqrt(8 |q_z|)`` with the same softening. At the target, where a tenth of the episodes start, the exact
            values have no gradient or an infinite one.

    Returns:
        Angle [rad] and change of the action, each of shape (num_envs,).
    """
    change = norm(difference(action, previous_action), softness)
    if softness == 0.0:
        return (1.0 - quaternion[3].abs()).acos() * 2.0, change
    softened = (quaternion[3].square() + softness * softness).sqrt()
    return (8.0 * softened).sqrt() - math.sqrt(8.0 * softness), change


def reward_parts(
    distance: torch.Tensor,
    quaternion: Vector,
    action: Vector,
    previous_action: Vector,
    terminated: torch.Tensor,
) -> list[torch.Tensor]:
    """Compute what the reward weighs, in the order of :data:`REWARD_TERMS`: five tensors of shape (num_envs,).

    Args:
        distance: To the target, or to what a task follows or avoids, after the step [m]. Shape: (num_envs,).
        quaternion: After the step. 4 components.
        action: The one applied in the step. 4 components.
        previous_action: The one before it. 4 components.
        terminated: Shape: (num_envs,).
    """
    angle, change = angle_and_change(quaternion, action, previous_action)
    return [torch.ones_like(distance), distance, angle, change, terminated.to(distance.dtype)]


def reward_terms(
    distance: torch.Tensor,
    quaternion: torch.Tensor,
    action: torch.Tensor,
    previous_action: torch.Tensor,
    terminated: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """Compute the weighted terms of the reward, whose sum is the reward.

    Args:
        distance: To the target, or to what a task follows or avoids, after the step [m]. Shape: (num_envs,).
        quaternion: After the step. Shape: (4, num_envs).
        action: The one applied in the step. Shape: (4, num_envs).
        previous_action: The one before it. Shape: (4, num_envs).
        terminated: Shape: (num_envs,).
        weights: From :func:`reward_weights`. Shape: (5, 1).

    Returns:
        Shape: (5, num_envs).
    """
    return torch.stack(reward_parts(distance, quaternion, action, previous_action, terminated)) * weights


def smooth_reward(
    position: Vector,
    quaternion: Vector,
    action: Vector,
    previous_action: Vector,
    weights: torch.Tensor | Sequence[float],
    softness: float = 0.02,
) -> torch.Tensor:
    """Compute a reward with finite gradients everywhere, for backpropagation through the simulator.

    Termination is left to the caller.

    Args:
        position: 3 components.
        quaternion: 4 components.
        action: 4 components.
        previous_action: 4 components.
        weights: From :func:`reward_weights`, or as five numbers.
        softness: Where the softening begins, in the units of each term (see :func:`angle_and_change`).

    Returns:
        Shape: (num_envs,).
    """
    distance = norm(position, softness)
    angle, change = angle_and_change(quaternion, action, previous_action, softness)
    return weights[0] + weights[1] * distance + weights[2] * angle + weights[3] * change


def terminations(motion: torch.Tensor, limits: torch.Tensor) -> torch.Tensor:
    """Return which limit is passed on any axis.

    Args:
        motion: Position, velocity and body rates. Shape: (9, num_envs).
        limits: One for each of the nine. Shape: (9, num_envs) or (9, 1).

    Returns:
        In the order of :data:`TERMINATION_TERMS`. Shape: (3, num_envs).
    """
    return (motion.abs() > limits).view(3, 3, -1).any(1)


class InitialRanges(NamedTuple):
    """What :func:`initial_states` needs, as tensors or numbers."""

    position: torch.Tensor
    """Half-width of the box [m]. Shape: (num_envs,)."""
    max_angle: float
    """[rad]."""
    max_velocity: float
    """[m/s]."""
    max_body_rate: float
    """[rad/s]."""
    rotor_speed: tuple[float, float]
    """Of 1 at full speed."""
    at_target: float
    """Fraction of the episodes."""


def direction(uniform: torch.Tensor) -> torch.Tensor:
    """Turn uniform numbers into directions that are uniform on the sphere. Shape: (2, ...) -> (3, ...)."""
    cosine = uniform[0] * 2.0 - 1.0
    azimuth = uniform[1] * (2.0 * math.pi)
    sine = (1.0 - cosine.square()).clamp(min=0.0).sqrt()
    return torch.stack([sine * azimuth.cos(), sine * azimuth.sin(), cosine])


def between(uniform: torch.Tensor, limits: tuple[float, float]) -> torch.Tensor:
    """Map uniform numbers in [0, 1) to a range."""
    low, high = limits
    return uniform * (high - low) + low


NUM_UNIFORM = 3 + 3 + 1 + 4
"""Uniform numbers that :func:`initial_states` takes: position, rotation, at-target, rotors (and 6 for velocities)."""


def num_uniform(ranges: InitialRanges) -> int:
    """Count the uniform random numbers per state that :func:`initial_states` takes."""
    return NUM_UNIFORM + (6 if ranges.max_velocity or ranges.max_body_rate else 0)


def initial_states(uniform: torch.Tensor, ranges: InitialRanges) -> torch.Tensor:
    """Turn uniform random numbers into initial states.

    Args:
        uniform: In [0, 1). Shape: (num_uniform(ranges), ..., num_envs).
        ranges: The distribution.

    Returns:
        Position (3), velocity (3), body rates (3), quaternion (4), rotor speeds (4). Shape: (17, ..., num_envs).
    """
    position = (uniform[0:3] * 2.0 - 1.0) * ranges.position
    axis = direction(uniform[3:5])
    half = uniform[5] * (0.5 * ranges.max_angle)
    away = (uniform[6] >= ranges.at_target).to(uniform.dtype)
    half = half * away
    quaternion = torch.cat([half.cos().unsqueeze(0), axis * half.sin()])
    rotors = between(uniform[7:11], ranges.rotor_speed)
    if uniform.shape[0] == NUM_UNIFORM:
        motion = torch.zeros_like(uniform[:6])
    else:
        scale = torch.tensor([ranges.max_velocity] * 3 + [ranges.max_body_rate] * 3).to(uniform)
        motion = (uniform[11:17] * 2.0 - 1.0) * scale.view(6, *([1] * (uniform.dim() - 1))) * away
    return torch.cat([position * away, motion, quaternion, rotors])
