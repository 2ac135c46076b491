"""Force and torque of the rotors over one physics step, for engines that integrate the rigid body themselves."""

from __future__ import annotations

from typing import NamedTuple

import torch

from foundation.tasks.quadrotor.sim.vehicles import VehicleParams


class Wrench(NamedTuple):
    """Force and torque in the body frame, at the centre of mass."""

    force: torch.Tensor
    """[N]. Shape: (3, num_envs)."""
    torque: torch.Tensor
    """[N m]. Shape: (3, num_envs)."""


class RotorWrench:
    """First-order rotors with different rise and fall times, and the exact mean of their thrust over a step.

    A physics engine holds the wrench for its whole step, while the thrust ``c0 + c1 u + c2 u^2`` changes within it. The
    rotor's answer to a constant command is an exponential, so the mean of ``u`` and of ``u^2`` has a closed form; the
    impulse over the step is then exact.
    """

    def __init__(self, params: VehicleParams, dt: float):
        """Fold the parameters of ``params`` (one vehicle per environment) for a physics step ``dt`` [s]."""
        self._rising = _decay(dt / params.time_constant_rising)
        self._falling = _decay(dt / params.time_constant_falling)
        self._coefficients = params.thrust_coefficients
        self._minimum = params.action_min
        self._span = params.action_max - params.action_min
        self._directions = params.thrust_directions
        lever = torch.linalg.cross(params.rotor_positions, params.thrust_directions, dim=1)
        self._torques = lever + params.torque_constants.unsqueeze(1) * params.torque_directions
        """Torque per thrust. Shape: (num_rotors, 3, num_envs)."""

    def step(self, speeds: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, Wrench]:
        """Advance the rotors by one physics step.

        Args:
            speeds: In [0, 1], at the start of the step. Shape: (num_rotors, num_envs).
            actions: Motor commands in [-1, 1], held over the step. Shape: (num_rotors, num_envs).

        Returns:
            Speeds at the end of the step, and the mean wrench over it.
        """
        target = self._minimum + 0.5 * (actions + 1.0) * self._span
        error = speeds - target
        end, mean, mean_square = torch.where(error <= 0, self._rising, self._falling)
        u = target + error * mean
        u_square = target.square() + 2.0 * target * error * mean + error.square() * mean_square
        c0, c1, c2 = self._coefficients
        thrust = (c0 + c1 * u + c2 * u_square).unsqueeze(1)
        wrench = Wrench((thrust * self._directions).sum(0), (thrust * self._torques).sum(0))
        return (target + error * end).clamp(0.0, 1.0), wrench


def _decay(h: torch.Tensor) -> torch.Tensor:
    """Return e^-t at the end of the step, its mean and the mean of its square over ``t`` in [0, h].

    Args:
        h: Time step over time constant. Shape: (num_rotors, num_envs).

    Returns:
        Shape: (3, num_rotors, num_envs).
    """
    return torch.stack([(-h).exp(), -torch.expm1(-h) / h, -torch.expm1(-2.0 * h) / (2.0 * h)])
