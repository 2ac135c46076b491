"""What a viewer draws of a quadrotor task: shapes of the vehicle and its target, and where they are."""

from __future__ import annotations

import torch

from foundation.tasks.quadrotor.sim.vehicle_params import VehicleParams

Part = tuple[str, tuple[float, ...], tuple[float, float, float], str]
"""Kind, size [m], position in the body's frame [m], colour (see ``foundation.engines.base.Viewable``)."""

LEAST_SHARE = 0.1
"""Arm length that is drawn at least, of the limit of the position: a small vehicle would not be seen."""
_FRONT, _REAR, _ARM, _TARGET = "#e8811d", "#2d5aa0", "#39414f", "#d64045"


def vehicle_bodies(vehicles: VehicleParams, limits: torch.Tensor) -> dict[str, list[Part]]:
    """Return the shapes of the first environment's vehicle, enlarged where it is small, and of its target.

    Args:
        vehicles: One per environment.
        limits: Limits of the state, that of the position first [m]. Shape: (9, num_envs).
    """
    extent = float(limits[0, 0])
    arm = float(vehicles.arm_length[0])
    scale = max(1.0, LEAST_SHARE * extent / arm)
    parts: list[Part] = []
    for x, y, z in (scale * vehicles.rotor_positions[:, :, 0]).tolist():
        parts.append(("line", (x, y, z, 0.12 * scale * arm), (0.0, 0.0, 0.0), _ARM))
        parts.append(("cylinder", (0.45 * scale * arm, 0.08 * scale * arm), (x, y, z), _FRONT if x > 0.0 else _REAR))
    return {"vehicle": parts, "target": [("sphere", (0.025 * extent,), (0.0, 0.0, 0.0), _TARGET)]}


def vehicle_poses(
    position: torch.Tensor, quaternion: torch.Tensor, others: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Return where vehicles and targets are, each (num_envs, 7).

    Args:
        position: World frame [m]. Shape: (3, num_envs).
        quaternion: w, x, y, z, body to world. Shape: (4, num_envs).
        others: Where the targets are [m]; None: in the origin. Shape: (num_envs, 3).
    """
    place = torch.zeros_like(position.T) if others is None else others
    upright = torch.zeros_like(quaternion.T)
    upright[:, 0] = 1.0
    return {"vehicle": torch.cat([position, quaternion]).T, "target": torch.cat([place, upright], 1)}
