"""The quadrotor's mirror symmetry: left and right exchanged, for ``distill.augment``.

The mirror is the body's plane of x (forward) and z (up). It holds for vehicles whose rotors lie symmetrically to it and
are alike, with opposite turning directions across it, and whose inertia has no products with y, as the Crazyflie's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from foundation.core.errors import UserError, suggest
from foundation.tasks.quadrotor.mdp import DEPLOYABLE_SIZE, L2F_SIZE, POLICY_SIZE

_VECTOR = (1.0, -1.0, 1.0)
"""Signs of a position or a velocity."""
_RATES = (-1.0, 1.0, -1.0)
"""Signs of body rates: an axial vector has the opposite ones."""
_ROTATION = tuple(row * column for row in _VECTOR for column in _VECTOR)
"""Signs of the rotation matrix, row by row: it is mirrored on both sides."""
_MOTORS = (3, 2, 1, 0)
"""Each rotor's counterpart: front right and front left, back right and back left."""
_SIZES = {"policy": POLICY_SIZE, "deployable": DEPLOYABLE_SIZE, "l2f": L2F_SIZE}
_BODY = (*_VECTOR, *_ROTATION, *_VECTOR, *_RATES)
"""Signs of what all groups begin with: position, rotation, velocity, body rates."""


def left_right(obs: Mapping[str, torch.Tensor], actions: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Mirror observations and actions.

    Args:
        obs: Observation groups by name: ``policy``, ``deployable`` or ``l2f``. Shape of each: (num_samples, size).
        actions: Motor commands. Shape: (num_samples, 4).

    Returns:
        Both mirrored, of the same shapes.

    Raises:
        UserError: For a group of another task.
    """
    return {name: _mirrored(name, values) for name, values in obs.items()}, actions[..., list(_MOTORS)]


def _mirrored(name: str, values: torch.Tensor) -> torch.Tensor:
    if name not in _SIZES:
        raise UserError(f"left_right mirrors no observation group '{name}'. {suggest(name, _SIZES)}")
    signs = torch.tensor(_BODY, dtype=values.dtype, device=values.device)
    motors = values[..., len(_BODY) :].unflatten(-1, (-1, len(_MOTORS)))[..., list(_MOTORS)]
    return torch.cat([values[..., : len(_BODY)] * signs, motors.flatten(-2)], dim=-1)
