"""The maths of chasing and evading as pure functions of state tensors, for every engine.

Both tasks are one: a quadrotor in an arena, and another body beside it that moves. Chasing pays for being near it,
evading for being far; everything else, and every column of the observations, is the same, so that one network can do
both. Tensors are components first, environments last; quaternions are (w, x, y, z), body to world; positions are
relative to the arena's centre. The other body is a block of six: position [m], velocity [m/s], in the world frame.
"""

from __future__ import annotations

import math

import torch

from foundation.tasks.quadrotor import mdp
from foundation.tasks.quadrotor.sim.rotation import rotation_rows, to_body
from foundation.tasks.quadrotor.sim.rows import Vector, columns, difference

TASKS = ("chase", "evade")
"""The tasks of the observation's last columns but the motors', one column each: 1 in the running task, else 0."""
DEPLOYABLE_SIZE = 30
"""Position, body frame (3); R row-major (9); velocity, body frame (3); body rates (3); previous action (4); position
and velocity less those of the other body, body frame (3 + 3); the task (2)."""
POLICY_SIZE = 34
"""``deployable``, then motor speeds as 2u - 1 (4)."""
RELATIVE_POSITION = 22
"""First column of the position less that of the other body."""
ROTATION_FIELDS: dict[str, int] = {"policy": 3, "deployable": 3}
ACTION_FIELDS: dict[str, int] = {"policy": 18, "deployable": 18}
"""Where each group has the rotation matrix, body to world, row by row: first column."""

REWARD_TERMS = ("alive", "distance", "orientation", "action_rate", "termination")
"""Names of the terms of ``mdp.reward_terms``, whose distance is that to the other body here."""
LIMITS = mdp.TERMINATION_TERMS
"""The limits of the vehicle's own motion; each task adds one on the distance."""


def task_columns(task: str, num_envs: int, device: torch.device | str) -> torch.Tensor:
    """Return the columns that say which task runs. Shape: (2, num_envs)."""
    flags = torch.zeros(len(TASKS), num_envs, device=device)
    flags[TASKS.index(task)] = 1.0
    return flags


def observations(
    position: Vector,
    velocity: Vector,
    body_rates: Vector,
    quaternion: Vector,
    previous_action: Vector,
    rotor_speeds: Vector,
    other_position: Vector,
    other_velocity: Vector,
    task: Vector,
) -> dict[str, torch.Tensor]:
    """Build the observation groups, the same for both tasks.

    Args:
        position: Relative to the arena's centre, world frame [m]. Shape: (3, num_envs).
        velocity: World frame [m/s]. Shape: (3, num_envs).
        body_rates: Body frame [rad/s]. Shape: (3, num_envs).
        quaternion: Shape: (4, num_envs).
        previous_action: In [-1, 1]. Shape: (4, num_envs).
        rotor_speeds: In [0, 1]. Shape: (4, num_envs).
        other_position: World frame [m]. Shape: (3, num_envs).
        other_velocity: World frame [m/s]. Shape: (3, num_envs).
        task: From :func:`task_columns`. Shape: (2, num_envs).

    Returns:
        ``policy`` (num_envs, 34), ``deployable`` (num_envs, 30; a view of ``policy``).
    """
    rotation = rotation_rows(quaternion)
    apart = [difference(position, other_position), difference(velocity, other_velocity)]
    own_position, own_velocity, *relative = to_body(rotation, [position, velocity, *apart])
    motors = mdp.motor_commands(rotor_speeds)
    own = [own_position, rotation, own_velocity, body_rates, previous_action]
    policy = columns([*own, *relative, task, motors])
    return {"policy": policy, "deployable": policy[:, :DEPLOYABLE_SIZE]}


def noise_columns(
    position: float,
    orientation: float,
    velocity: float,
    body_rates: float,
    relative_position: float,
    relative_velocity: float,
) -> list[float]:
    """Return the standard deviation of the noise of each column of ``deployable``; the task's columns have none."""
    own = mdp.noise_columns(position, orientation, velocity, body_rates)
    return own + [relative_position] * 3 + [relative_velocity] * 3 + [0.0] * len(TASKS)


# -- how the other body moves ------------------------------------------------------------------------------------------


def lissajous(phase: torch.Tensor, amplitude: torch.Tensor, pulse: torch.Tensor) -> torch.Tensor:
    """Place a body on a Lissajous curve: ``A sin(phase)`` on each axis, at the speed ``A w cos(phase)``.

    Args:
        phase: [rad]. Shape: (3, ...).
        amplitude: [m]. Shape: (3, ...).
        pulse: Angular frequency of each axis [rad/s]. Shape: (3, ...).

    Returns:
        Position and velocity. Shape: (6, ...).
    """
    return torch.cat([amplitude * phase.sin(), amplitude * pulse * phase.cos()])


def langevin(
    other: torch.Tensor, normal: torch.Tensor, speed: float, pulse: float, damping: float, dt: float
) -> torch.Tensor:
    """Advance a damped oscillator that is pushed at random: ``dv = -(w^2 x + g v) dt + s sqrt(2 g) dW``.

    Stationary, it is Gaussian, of standard deviation ``s`` in each velocity and ``s / w`` in each position.
    The scheme is semi-implicit: the velocity first, then the position by the new velocity.

    Args:
        other: Position and velocity. Shape: (6, num_envs).
        normal: Standard normal numbers. Shape: (3, num_envs).
        speed: ``s``, standard deviation of each velocity [m/s].
        pulse: ``w``, angular frequency of the spring to the centre [rad/s].
        damping: ``g`` [1/s].
        dt: Time step [s].

    Returns:
        Shape: (6, num_envs).
    """
    position = other[:3]
    velocity = other[3:]
    push = speed * math.sqrt(2.0 * damping * dt)
    velocity = velocity - dt * (pulse**2 * position + damping * velocity) + push * normal
    return torch.cat([position + dt * velocity, velocity])


def langevin_start(normal: torch.Tensor, speed: float, pulse: float) -> torch.Tensor:
    """Draw from the stationary distribution of :func:`langevin`.

    Args:
        normal: Standard normal numbers. Shape: (6, ...).
        speed: Standard deviation of each velocity [m/s].
        pulse: Angular frequency [rad/s].

    Returns:
        Position and velocity. Shape: (6, ...).
    """
    return torch.cat([normal[:3] * (speed / pulse), normal[3:] * speed])


def pursue(
    other: torch.Tensor,
    position: torch.Tensor,
    velocity: torch.Tensor,
    max_speed: torch.Tensor,
    max_acceleration: float,
    response: float,
    lead: float,
    dt: float,
) -> torch.Tensor:
    """Advance a pursuer: a point mass that turns its velocity to where the vehicle will be.

    Its desired velocity is ``max_speed`` towards the vehicle's position in ``lead`` seconds. It accelerates by the
    difference to it over ``response``, at most by ``max_acceleration``. An evader can use that bound: a fast pursuer
    turns in a wide circle.

    Args:
        other: The pursuer's position and velocity. Shape: (6, num_envs).
        position: The vehicle's [m]. Shape: (3, num_envs).
        velocity: The vehicle's [m/s]. Shape: (3, num_envs).
        max_speed: [m/s]. Shape: (num_envs,).
        max_acceleration: [m/s^2].
        response: [s].
        lead: [s].
        dt: Time step [s].

    Returns:
        Shape: (6, num_envs).
    """
    ahead = position + lead * velocity - other[:3]
    wanted = ahead * (max_speed / ahead.square().sum(0).sqrt().clamp(min=1e-6))
    acceleration = (wanted - other[3:]) / response
    size = acceleration.square().sum(0).sqrt()
    acceleration = acceleration * (max_acceleration / size.clamp(min=max_acceleration))
    after = other[3:] + dt * acceleration
    return torch.cat([other[:3] + dt * after, after])
