"""Vehicles and their parameters: the Crazyflie, files in l2f's JSON form, and RAPTOR's sampled family."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from foundation.errors import UserError


@dataclass
class VehicleParams:
    """Parameters of many vehicles, components first, vehicles last."""

    mass: torch.Tensor
    """[kg]. Shape: (num_vehicles,)."""
    inertia: torch.Tensor
    """Body frame [kg m^2]. Shape: (3, 3, num_vehicles)."""
    rotor_positions: torch.Tensor
    """Body frame [m]. Shape: (num_rotors, 3, num_vehicles)."""
    thrust_directions: torch.Tensor
    """Unit vectors, body frame. Shape: (num_rotors, 3, num_vehicles)."""
    torque_directions: torch.Tensor
    """Unit vectors, body frame. Shape: (num_rotors, 3, num_vehicles)."""
    thrust_coefficients: torch.Tensor
    """c0, c1, c2 of c0 + c1 u + c2 u^2 [N]. Shape: (3, num_rotors, num_vehicles)."""
    torque_constants: torch.Tensor
    """Reaction torque over thrust [m]. Shape: (num_rotors, num_vehicles)."""
    time_constant_rising: torch.Tensor
    """[s]. Shape: (num_rotors, num_vehicles)."""
    time_constant_falling: torch.Tensor
    """[s]. Shape: (num_rotors, num_vehicles)."""
    gravity: torch.Tensor
    """World frame [m/s^2]. Shape: (3, num_vehicles)."""
    action_min: torch.Tensor
    """Rotor speed at command -1. Shape: (num_vehicles,)."""
    action_max: torch.Tensor
    """Rotor speed at command 1. Shape: (num_vehicles,)."""
    force_mean: torch.Tensor
    """Mean of each component of a force that is drawn per episode, world frame [N]. Shape: (num_vehicles,)."""
    force_std: torch.Tensor
    """Its standard deviation [N]. Shape: (num_vehicles,)."""
    torque_mean: torch.Tensor
    """Mean of each component of a torque that is drawn per episode, body frame [N m]. Shape: (num_vehicles,)."""
    torque_std: torch.Tensor
    """Its standard deviation [N m]. Shape: (num_vehicles,)."""

    @property
    def num_vehicles(self) -> int:
        """Number of vehicles."""
        return self.mass.shape[-1]

    @property
    def num_rotors(self) -> int:
        """Rotors of each vehicle."""
        return self.torque_constants.shape[0]

    @property
    def arm_length(self) -> torch.Tensor:
        """Mean distance of the rotors from the centre of mass [m]. Shape: (num_vehicles,)."""
        return torch.linalg.vector_norm(self.rotor_positions, dim=1).mean(0)

    @property
    def max_thrust(self) -> torch.Tensor:
        """Thrust of all rotors at full speed [N]. Shape: (num_vehicles,)."""
        return self.thrust_coefficients.sum((0, 1))

    @property
    def hover_speed(self) -> torch.Tensor:
        """Rotor speed at which equal thrust of all rotors carries the weight. Shape: (num_vehicles,)."""
        c0, c1, c2 = self.thrust_coefficients.sum(1)
        weight = self.mass * torch.linalg.vector_norm(self.gravity, dim=0)
        root = (c1.square() + 4 * c2 * (weight - c0)).clamp(min=0).sqrt()
        return torch.where(c2 > 0, (root - c1) / (2 * c2.clamp(min=1e-12)), (weight - c0) / c1.clamp(min=1e-12))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> VehicleParams:
        """Copy to a device and type."""
        return VehicleParams(**{f.name: getattr(self, f.name).to(device=device, dtype=dtype) for f in fields(self)})

    def select(self, index: torch.Tensor) -> VehicleParams:
        """Take vehicles by number. Shape of ``index``: (num_selected,)."""
        return VehicleParams(**{f.name: getattr(self, f.name)[..., index].contiguous() for f in fields(self)})

    @staticmethod
    def stack(vehicles: list[VehicleParams]) -> VehicleParams:
        """Join vehicles with the same number of rotors."""
        return VehicleParams(
            **{f.name: torch.cat([getattr(v, f.name) for v in vehicles], -1) for f in fields(VehicleParams)}
        )


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


def _numbers(value: Any, shape: tuple[int, ...], key: str, where: str) -> torch.Tensor:
    """Read finite numbers of a given shape."""
    try:
        tensor = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{where}: 'dynamics.{key}' must be numbers of shape {list(shape)}") from None
    if tuple(tensor.shape) != shape:
        raise UserError(f"{where}: 'dynamics.{key}' has shape {list(tensor.shape)}, expected {list(shape)}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{where}: 'dynamics.{key}' is not finite")
    return tensor


def from_dict(data: Any, where: str) -> VehicleParams:
    """Read one vehicle from l2f's JSON form. Only ``dynamics`` and ``disturbances`` describe the vehicle.

    Args:
        data: The parsed JSON.
        where: Names the source in errors.

    Returns:
        One vehicle, in float64.
    """
    if not isinstance(data, dict) or not isinstance(data.get("dynamics"), dict):
        raise UserError(f"{where}: no 'dynamics' section; a vehicle file has the form of l2f's parameters_to_json")
    dynamics: dict[str, Any] = data["dynamics"]
    missing = [key for key in _CRAZYFLIE if key not in dynamics and key not in ("J", "action_limit")]
    if "J" not in dynamics and "J_inv" not in dynamics:
        missing.append("J")
    if missing:
        raise UserError(f"{where}: 'dynamics' lacks {', '.join(repr(m) for m in missing)}")
    rotors = dynamics["rotor_positions"]
    n = len(rotors) if isinstance(rotors, list) else 0
    if n < 1:
        raise UserError(f"{where}: 'dynamics.rotor_positions' must list the rotors")
    limit = dynamics.get("action_limit", {"min": 0.0, "max": 1.0})
    if not isinstance(limit, dict) or set(limit) != {"min", "max"}:
        raise UserError(f"{where}: 'dynamics.action_limit' must have 'min' and 'max'")

    def read(key: str, *shape: int) -> torch.Tensor:
        return _numbers(dynamics[key], shape, key, where).unsqueeze(-1)

    params = VehicleParams(
        mass=read("mass"),
        inertia=_inertia(dynamics, where).unsqueeze(-1),
        rotor_positions=read("rotor_positions", n, 3),
        thrust_directions=read("rotor_thrust_directions", n, 3),
        torque_directions=read("rotor_torque_directions", n, 3),
        thrust_coefficients=read("rotor_thrust_coefficients", n, 3).transpose(0, 1).contiguous(),
        torque_constants=read("rotor_torque_constants", n),
        time_constant_rising=read("rotor_time_constants_rising", n),
        time_constant_falling=read("rotor_time_constants_falling", n),
        gravity=read("gravity", 3),
        action_min=_numbers(limit["min"], (), "action_limit.min", where).unsqueeze(-1),
        action_max=_numbers(limit["max"], (), "action_limit.max", where).unsqueeze(-1),
        **_disturbances(data.get("disturbances"), where),
    )
    _check(params, where)
    return params


def _inertia(dynamics: dict[str, Any], where: str) -> torch.Tensor:
    """Read J, or take it from J_inv where J was printed with too few decimals (l2f prints six)."""
    inertia = _numbers(dynamics["J"], (3, 3), "J", where) if "J" in dynamics else None
    if "J_inv" not in dynamics:
        assert inertia is not None
        return inertia
    inverse = _numbers(dynamics["J_inv"], (3, 3), "J_inv", where)
    if torch.linalg.det(inverse) <= 0:
        raise UserError(f"{where}: 'dynamics.J_inv' is not positive definite")
    return torch.linalg.inv(inverse)


def _disturbances(data: Any, where: str) -> dict[str, torch.Tensor]:
    """Read ``disturbances.random_force`` and ``random_torque``; absent ones are zero."""
    out = {}
    for kind in ("force", "torque"):
        section = data.get(f"random_{kind}", {}) if isinstance(data, dict) else {}
        if not isinstance(section, dict):
            raise UserError(f"{where}: 'disturbances.random_{kind}' must have 'mean' and 'std'")
        for key in ("mean", "std"):
            name = f"random_{kind}.{key}"
            value = _numbers(section.get(key, 0.0), (), name, where)
            if key == "std" and value < 0:
                raise UserError(f"{where}: 'disturbances.{name}' is negative")
            out[f"{kind}_{key}"] = value.unsqueeze(-1)
    return out


def _check(params: VehicleParams, where: str) -> None:
    """Refuse what no vehicle can be."""
    for key, value in {
        "mass": params.mass,
        "rotor_time_constants_rising": params.time_constant_rising,
        "rotor_time_constants_falling": params.time_constant_falling,
    }.items():
        if (value <= 0).any():
            raise UserError(f"{where}: 'dynamics.{key}' must be positive, it is {value.min().item():g}")
    inertia = params.inertia[..., 0]
    if not torch.allclose(inertia, inertia.T, rtol=1e-3, atol=0) or (torch.linalg.eigvalsh(inertia) <= 0).any():
        raise UserError(f"{where}: 'dynamics.J' is not symmetric and positive definite")
    for key in ("thrust_directions", "torque_directions"):
        length = torch.linalg.vector_norm(getattr(params, key), dim=1)
        if ((length - 1).abs() > 1e-2).any():
            raise UserError(f"{where}: 'dynamics.rotor_{key}' must be unit vectors")
    if (params.action_max <= params.action_min).any():
        raise UserError(f"{where}: 'dynamics.action_limit' has max <= min")
    if (params.max_thrust <= 0).any():
        raise UserError(f"{where}: 'dynamics.rotor_thrust_coefficients' give no thrust at full speed")
    if (params.arm_length <= 0).any():
        raise UserError(f"{where}: 'dynamics.rotor_positions' are all at the centre of mass")


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
            vehicles.append(_sampled(str(entry)))
            continue
        for file in vehicle_files(entry):
            try:
                data = json.loads(file.read_text())
            except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
                raise UserError(f"{file}: not a readable JSON file ({error})") from None
            vehicles.append(from_dict(data, str(file)))
    if not vehicles:
        raise UserError("vehicles: the list is empty")
    if len({v.num_rotors for v in vehicles}) > 1:
        raise UserError("vehicles: all vehicles of a set must have the same number of rotors")
    return VehicleParams.stack(vehicles)


def _sampled(text: str) -> VehicleParams:
    """Parse ``sampled:<n>[:<seed>]``."""
    parts = text.split(":")[1:]
    if len(parts) > 2 or not all(p.isdigit() for p in parts) or int(parts[0]) < 1:
        raise UserError(f"vehicles: '{text}' is not sampled:<number> or sampled:<number>:<seed>")
    return sample_vehicles(int(parts[0]), int(parts[1]) if len(parts) > 1 else 0)


def to_dict(params: VehicleParams, index: int) -> dict[str, Any]:
    """Write one vehicle in l2f's JSON form, with all digits (the inverse of :func:`from_dict`)."""
    one = params.select(torch.tensor([index], device=params.mass.device)).to("cpu", torch.float64)
    inertia = one.inertia[..., 0]
    return {
        "dynamics": {
            "rotor_positions": one.rotor_positions[..., 0].tolist(),
            "rotor_thrust_directions": one.thrust_directions[..., 0].tolist(),
            "rotor_torque_directions": one.torque_directions[..., 0].tolist(),
            "rotor_thrust_coefficients": one.thrust_coefficients[..., 0].T.tolist(),
            "rotor_torque_constants": one.torque_constants[..., 0].tolist(),
            "rotor_time_constants_rising": one.time_constant_rising[..., 0].tolist(),
            "rotor_time_constants_falling": one.time_constant_falling[..., 0].tolist(),
            "mass": one.mass.item(),
            "gravity": one.gravity[..., 0].tolist(),
            "J": inertia.tolist(),
            "J_inv": torch.linalg.inv(inertia).tolist(),
            "action_limit": {"min": one.action_min.item(), "max": one.action_max.item()},
        },
        "disturbances": {
            "random_force": {"mean": one.force_mean.item(), "std": one.force_std.item()},
            "random_torque": {"mean": one.torque_mean.item(), "std": one.torque_std.item()},
        },
    }


def sample_vehicles(num: int, seed: int = 0) -> VehicleParams:
    """Sample RAPTOR's family of quadrotors (Eschmann et al. 2025), from the Crazyflie's shape.

    Thrust-to-weight 1.5..5, torque-to-inertia 40..1200 rad/s^2, mass 0.02..5 kg uniform in size (its cube root), size
    deviating from the mass by 10 %, time constants 0.03..0.10 s up and 0.03..0.30 s down (down never faster than up),
    torque constant 0.005..0.05 m, disturbance force up to 0.3 of the weight margin.

    Args:
        num: Number of vehicles.
        seed: The same seed gives the same vehicles.

    Returns:
        The vehicles, in float64.
    """
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
    # Largest roll torque, as rl-tools counts it: the two rotors of one side at full thrust.
    reach = thrust.sum(0) * positions[:, 1].abs()
    inertia = base.inertia * (reach.sum(0) / 2 / uniform(40.0, 1200.0) / base.inertia[0, 0])
    rising = uniform(0.03, 0.10)
    falling = torch.maximum(uniform(0.03, 0.30), rising)
    # A force's components are Gaussian; three of its standard deviations reach the bound.
    force = uniform(0.0, 0.3) * (thrust_to_weight - 1) * mass * gravity
    return replace(
        base,
        mass=mass,
        inertia=inertia,
        rotor_positions=positions,
        thrust_coefficients=thrust,
        torque_constants=uniform(0.005, 0.05).expand(4, -1).contiguous(),
        time_constant_rising=rising.expand(4, -1).contiguous(),
        time_constant_falling=falling.expand(4, -1).contiguous(),
        force_std=force / (3 * math.sqrt(3)),
    )
