"""Vehicles: the Crazyflie, files in l2f's JSON form, and RAPTOR's sampled family."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from foundation.core.errors import UserError
from foundation.core.files import load_json
from foundation.tasks.quadrotor.sim.vehicle_json import from_dict, to_dict
from foundation.tasks.quadrotor.sim.vehicle_params import VehicleParams

__all__ = ["VehicleParams", "crazyflie", "from_dict", "load_vehicles", "sample_vehicles", "to_dict", "vehicle_files"]

_CRAZYFLIE: dict[str, Any] = {
    "mass": 0.0306,
    "gravity": [0.0, 0.0, -9.81],
    "J": [[9.416556729130406e-06, 0, 0], [0, 9.644051701582312e-06, 0], [0, 0, 1.745951732253285e-05]],
    "rotor_positions": [[0.028, -0.028, 0], [-0.028, -0.028, 0], [-0.028, 0.028, 0], [0.028, 0.028, 0]],
    "rotor_thrust_directions": [[0, 0, 1]] * 4,
    "rotor_torque_directions": [[0, 0, -1], [0, 0, 1], [0, 0, -1], [0, 0, 1]],
    "rotor_thrust_coefficients": [[0.00352526, 0.01437313, 0.09223048]] * 4,
    "rotor_torque_constants": [4.665e-3] * 4,
    "rotor_time_constants_rising": [0.0554545] * 4,
    "rotor_time_constants_falling": [0.2493939] * 4,
    "action_limit": {"min": 0.0, "max": 1.0},
}


def crazyflie(num: int = 1) -> VehicleParams:
    """Return the Crazyflie 2, ``num`` times, in float64."""
    return from_dict({"dynamics": _CRAZYFLIE}, "crazyflie").select(torch.zeros(num, dtype=torch.long))


def vehicle_files(path: str | Path) -> list[Path]:
    """List the vehicle files of a path: itself, or the ``*.json`` of a folder in order of name."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"vehicles: no such file or folder: {path}")
    files = sorted(path.glob("*.json"))
    if not files:
        raise UserError(f"vehicles: no *.json in {path}")
    return files


_MAX_JSON = 1 << 20
"""Largest file of a vehicle [B]."""


def load_vehicles(paths: str | Path | list[str] | list[Path]) -> VehicleParams:
    """Load vehicles in l2f's JSON form.

    Args:
        paths: A file, a folder of ``*.json``, ``sampled:<n>`` or ``sampled:<n>:<seed>``, or a list of such.

    Returns:
        The vehicles in order, in float64.
    """
    vehicles = []
    for entry in paths if isinstance(paths, list) else [paths]:
        if str(entry).startswith("sampled:"):
            vehicles.append(sample_vehicles(*sampled_number(str(entry))))
            continue
        vehicles += [from_dict(load_json(file, _MAX_JSON), str(file)) for file in vehicle_files(entry)]
    if not vehicles:
        raise UserError("vehicles: the list is empty")
    if len({v.num_rotors for v in vehicles}) > 1:
        raise UserError("vehicles: all vehicles of a set must have the same number of rotors")
    return VehicleParams.stack(vehicles)


def vehicle_names(paths: str | list[str] | None) -> list[str]:
    """Name the vehicles of ``env.vehicles`` in their order: files by their stems, sampled ones by their numbers."""
    names: list[str] = []
    for entry in [paths] if isinstance(paths, str) else paths or []:
        if entry.startswith("sampled:"):
            names += [f"sampled_{index}" for index in range(sampled_number(entry)[0])]
        else:
            names += [file.stem for file in vehicle_files(entry)]
    return names


def sampled_number(text: str) -> tuple[int, int]:
    """Parse ``sampled:<n>[:<seed>]``: return the number of vehicles and the seed."""
    parts = text.split(":")[1:]
    if len(parts) > 2 or not all(p.isdecimal() for p in parts) or int(parts[0]) < 1:
        raise UserError(f"vehicles: '{text}' is not sampled:<number> or sampled:<number>:<seed>")
    return int(parts[0]), int(parts[1]) if len(parts) > 1 else 0


def sample_vehicles(num: int, seed: int = 0) -> VehicleParams:
    """Sample RAPTOR's family of quadrotors (Eschmann et al. 2025), from the Crazyflie's shape.

    Thrust-to-weight 1.5..5, torque-to-inertia 40..1200 rad/s^2, mass 0.02..5 kg uniform in size (its cube root), size
    deviating from the mass by 10 %, time constants 0.03..0.10 s up and 0.03..0.30 s down, torque constant 0.005..0.05
    m.
    The disturbance force is counted as rl-tools counts it: three standard deviations of a component are u times
    (thrust-to-weight less one) times thrust-to-weight times mass, u up to 0.3 (mass, not weight: there is no g in it).

    Args:
        num: Number of vehicles.
        seed: The same seed gives the same vehicles.

    Returns:
        The vehicles, in float64.
    """
    if not abs(seed) < 2**63:
        raise UserError(f"vehicles: the seed {seed} is too large, it must fit 64 bits")
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> torch.Tensor:
        return low + (high - low) * torch.rand(num, generator=generator, dtype=torch.float64)

    base = crazyflie(num)
    mass = uniform(0.02 ** (1 / 3), 5.0 ** (1 / 3)) ** 3
    deviation = 1 + 0.1 * torch.randn(num, generator=generator, dtype=torch.float64).clamp(-3, 3)
    size = (mass / base.mass) ** (1 / 3) * deviation
    positions = base.rotor_positions * size
    thrust_to_weight = uniform(1.5, 5.0)
    gravity = torch.linalg.vector_norm(base.gravity, dim=0)
    thrust = base.thrust_coefficients * (thrust_to_weight * mass * gravity / base.max_thrust)
    # Largest roll torque, as rl-tools counts it: sqrt(2) times one rotor's thrust times its distance from the axis.
    reach = (thrust.sum(0) * positions[:, 1].abs()).mean(0) * math.sqrt(2)
    inertia = base.inertia * (reach / uniform(40.0, 1200.0) / base.inertia[0, 0])
    rising = uniform(0.03, 0.10)
    falling = uniform(0.03, 0.30)
    force = uniform(0.0, 0.3) * (thrust_to_weight - 1) * thrust_to_weight * mass / 3
    return replace(
        base,
        mass=mass,
        inertia=inertia,
        rotor_positions=positions,
        thrust_coefficients=thrust,
        torque_constants=uniform(0.005, 0.05).expand(4, -1).contiguous(),
        time_constant_rising=rising.expand(4, -1).contiguous(),
        time_constant_falling=falling.expand(4, -1).contiguous(),
        force_std=force,
    )
