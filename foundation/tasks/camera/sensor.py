"""Outputs of a simulator's camera sensor, such as Isaac Lab's ``TiledCamera``, as measurements in one form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

DEPTH = "distance_to_image_plane"
"""Name of the output that is the depth."""
COLOUR = "rgb"
"""Name of the output that is the colour."""


def measured(outputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the depth [m] and the colour, from 0 to 1, that a sensor gives, channels first.

    Args:
        outputs: By kind, (num_envs, height, width, channels); depth is infinite where there is nothing, colour bytes.

    Returns:
        Shapes (num_envs, height, width), empty without a depth, and (num_envs, 3, height, width), None without colour.
    """
    tensors = {kind: getattr(value, "torch", value) for kind, value in outputs.items()}
    colour = None
    if COLOUR in tensors:
        colour = tensors[COLOUR][..., :3].permute(0, 3, 1, 2).float() / 255.0
    depth = tensors[DEPTH][..., 0].float() if DEPTH in tensors else torch.empty(0)
    return depth, colour
