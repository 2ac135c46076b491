"""One vehicle from and to l2f's JSON form, checked."""

from __future__ import annotations

from typing import Any

import torch

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.sim.vehicle_params import VehicleParams

_REQUIRED = (
    "mass",
    "gravity",
    "rotor_positions",
    "rotor_thrust_directions",
    "rotor_torque_directions",
    "rotor_thrust_coefficients",
    "rotor_torque_constants",
    "rotor_time_constants_rising",
    "rotor_time_constants_falling",
)


_PRINTED = 1e-6
"""Last decimal of what l2f prints [kg m^2]."""


def _numbers(value: object, shape: tuple[int, ...], key: str, where: str) -> torch.Tensor:
    """Read finite numbers of a given shape."""
    try:
        tensor = torch.tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise UserError(f"{where}: '{key}' must be numbers of shape {list(shape)}") from None
    if tuple(tensor.shape) != shape:
        raise UserError(f"{where}: '{key}' has shape {list(tensor.shape)}, expected {list(shape)}")
    if not torch.isfinite(tensor).all():
        raise UserError(f"{where}: '{key}' is not finite")
    single = tensor.float()  # what is flown with
    if not torch.isfinite(single).all() or (tensor.any() and not single.any()):
        raise UserError(f"{where}: '{key}' is beyond the range of single precision")
    return tensor


def from_dict(data: object, where: str) -> VehicleParams:
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
    missing = [key for key in _REQUIRED if key not in dynamics]
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
        return _numbers(dynamics[key], shape, f"dynamics.{key}", where).unsqueeze(-1)

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
        action_min=_numbers(limit["min"], (), "dynamics.action_limit.min", where).unsqueeze(-1),
        action_max=_numbers(limit["max"], (), "dynamics.action_limit.max", where).unsqueeze(-1),
        **_disturbances(data.get("disturbances"), where),
    )
    _check(params, where)
    return params


def _inertia(dynamics: dict[str, Any], where: str) -> torch.Tensor:
    """Read J, or take it from J_inv where J was printed with too few decimals (l2f prints six)."""
    stated = _numbers(dynamics["J"], (3, 3), "dynamics.J", where) if "J" in dynamics else None
    if "J_inv" not in dynamics:
        assert stated is not None
        return stated
    inverse = _numbers(dynamics["J_inv"], (3, 3), "dynamics.J_inv", where)
    if torch.linalg.det(inverse) <= 0:
        raise UserError(f"{where}: 'dynamics.J_inv' is not positive definite")
    inertia = torch.linalg.inv(inverse)
    if stated is not None and not torch.allclose(stated, inertia, rtol=1e-2, atol=_PRINTED):
        raise UserError(f"{where}: 'dynamics.J' and 'dynamics.J_inv' contradict each other: leave one of them out")
    return inertia


def _disturbances(data: object, where: str) -> dict[str, torch.Tensor]:
    """Read ``disturbances.random_force`` and ``random_torque``; absent ones are zero."""
    if not isinstance(data, dict | None):
        raise UserError(f"{where}: 'disturbances' must have 'random_force' and 'random_torque'")
    out = {}
    for kind in ("force", "torque"):
        section = (data or {}).get(f"random_{kind}", {})
        if not isinstance(section, dict):
            raise UserError(f"{where}: 'disturbances.random_{kind}' must have 'mean' and 'std'")
        for key in ("mean", "std"):
            name = f"disturbances.random_{kind}.{key}"
            value = _numbers(section.get(key, 0.0), (), name, where)
            if key == "std" and value < 0:
                raise UserError(f"{where}: '{name}' is negative")
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
    if (params.action_min < 0).any() or (params.action_max > 1).any():
        raise UserError(
            f"{where}: 'dynamics.action_limit' is not within 0 and 1, the range of rotor speeds that "
            "'dynamics.rotor_thrust_coefficients' must be for"
        )
    if (params.max_thrust <= 0).any():
        raise UserError(f"{where}: 'dynamics.rotor_thrust_coefficients' give no thrust at full speed")
    if (params.arm_length <= 0).any():
        raise UserError(f"{where}: 'dynamics.rotor_positions' are all at the centre of mass")


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
