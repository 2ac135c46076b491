"""Quantities of the built-in simulator that a measurement of robustness can vary, each by its own parameter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.sim.quadrotor import VELOCITY
from foundation.tasks.quadrotor.sim.vehicle_params import VehicleParams

QUANTITIES: dict[str, tuple[str, float, tuple[float, ...]]] = {
    "mass": ("%", 0.0, (-30.0, -20.0, -10.0, 10.0, 20.0, 30.0, 40.0)),
    "inertia": ("%", 0.0, (-50.0, -25.0, 25.0, 50.0, 100.0)),
    "gravity": ("%", 0.0, (-40.0, -20.0, 10.0, 20.0, 30.0)),
    "push": ("m/s", 0.0, (0.25, 0.5, 1.0, 1.5)),
    "control_rate": ("x nominal", 1.0, (0.5, 2.0)),
}
"""Name -> (unit, nominal value, values to measure at). Percentages are changes of the vehicle's own value."""

PUSH_INTERVAL = 1.0
"""Time between two pushes of an episode, and before the first [s]."""
_INTEGRALS = ("alive", "position", "distance", "orientation")
"""Terms of the reward that add up over time; the others count changes of the action, and an episode's end."""


def vary_vehicles(vehicles: VehicleParams, values: Mapping[str, float]) -> VehicleParams:
    """Return vehicles with another mass, inertia or gravity; nothing else about them changes.

    Args:
        vehicles: The nominal ones.
        values: Changes of ``mass``, ``inertia`` and ``gravity`` [%]; other names have no effect here.
    """
    fields = {name: getattr(vehicles, name) for name in ("mass", "inertia", "gravity")}
    changed = {name: value * _factor(name, values[name]) for name, value in fields.items() if values.get(name)}
    return replace(vehicles, **changed) if changed else vehicles


def _factor(name: str, percent: float) -> float:
    least = 0.0 if name == "gravity" else 1e-3  # without gravity a vehicle can fly, without mass it cannot
    factor = 1.0 + percent / 100.0
    if not (math.isfinite(factor) and factor >= least):
        raise UserError(f"--perturbation {name}={percent:g}: a change of more than -100 % is needed")
    return factor


def control_interval(dt: float, decimation: int, values: Mapping[str, float]) -> tuple[float, int]:
    """Return the time step [s] and the steps per action at another control rate.

    The interval between two actions is the nominal one over ``control_rate``; no time step is longer than the nominal
    one.

    Args:
        dt: The nominal time step [s].
        decimation: The nominal number of time steps per action.
        values: ``control_rate`` [x nominal]; other names have no effect here.
    """
    rate = values.get("control_rate", 1.0)
    if rate == 1.0:
        return dt, decimation
    if not (math.isfinite(rate) and rate > 0.0):
        raise UserError(f"--perturbation control_rate={rate:g}: a positive number is needed, 0.5 for half the rate")
    steps = max(1, math.ceil(decimation / rate - 1e-9))
    return dt * decimation / rate / steps, steps


def reward_scale(terms: Sequence[str], share: float) -> list[float]:
    """Return what each term of the reward is multiplied by, so that an episode's return means the same at any rate.

    Args:
        terms: Names of the terms.
        share: Interval between two actions over the nominal one.
    """
    return [share if name in _INTEGRALS else 1.0 for name in terms]


class Pushes:
    """Changes of the velocity by a fixed speed in a random direction, every ``PUSH_INTERVAL`` of an episode.

    Args:
        speed: Change of the velocity [m/s].
        step_dt: Time between two actions [s].
        num_envs: Number of environments.
        device: Where the directions are drawn.
    """

    def __init__(self, speed: float, step_dt: float, num_envs: int, device: torch.device | str):
        self.speed = speed
        self.interval = max(1, round(PUSH_INTERVAL / step_dt))
        self._shape = (3, num_envs)
        self._generator = torch.Generator(device)

    @classmethod
    def of(
        cls, values: Mapping[str, float], step_dt: float, num_envs: int, device: torch.device | str
    ) -> Pushes | None:
        """Return the pushes that ``values["push"]`` [m/s] asks for; None where it asks for none."""
        speed = values.get("push", 0.0)
        if not math.isfinite(speed):
            raise UserError(f"--perturbation push={speed}: a number is needed [m/s]")
        return cls(speed, step_dt, num_envs, device) if speed else None

    def restart(self, seed: int | None) -> None:
        """Restart the directions with a seed; None goes on with them."""
        if seed is not None:
            self._generator.manual_seed(seed)

    def __call__(self, state: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Push the vehicles whose time has come.

        Args:
            state: Packed state. Shape: (17, num_envs).
            lengths: Steps into the episodes. Shape: (num_envs,).

        Returns:
            The state from which the step goes on, a copy.
        """
        pushed = state.clone()
        pushed[VELOCITY] += self.changes(lengths)
        return pushed

    def changes(self, lengths: torch.Tensor) -> torch.Tensor:
        """Return the changes of the velocities [m/s], world frame, at a step; 0 where no push is due.

        Args:
            lengths: Steps into the episodes. Shape: (num_envs,).

        Returns:
            Shape: (3, num_envs).
        """
        direction = torch.randn(self._shape, generator=self._generator, device=lengths.device)
        direction = direction / torch.linalg.vector_norm(direction, dim=0)
        due = (lengths > 0) & (lengths % self.interval == 0)
        return self.speed * direction * due
