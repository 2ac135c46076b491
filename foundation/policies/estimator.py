"""An estimate of what a policy does not see, made on the way and read by what follows."""

from __future__ import annotations

import torch
from torch import nn

from foundation.policies.layers import Layers
from foundation.policies.mlp import build_mlp

HIDDEN = 64
"""Units of the hidden layer of an estimator, or of a head that is for training alone."""


class Estimator(nn.Module):
    """Puts an estimate of other observations behind what it reads, for the layers that follow.

    The estimate is in units of each observation's own spread, so that those layers read numbers of order 1;
    :meth:`in_own_units` gives it in the observations' units.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    fitted: torch.Tensor

    def __init__(self, num_in: int, size: int, activation: str) -> None:
        """Create the layers.

        Args:
            num_in: Numbers that it reads.
            size: Numbers that are estimated.
            activation: Of its hidden layer, by RSL-RL's names.
        """
        super().__init__()
        self.size = size
        self.layers = build_mlp(num_in, [HIDDEN], size, activation)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: (..., num_in) to (..., num_in + size)."""
        return torch.cat([x, self.layers(x)], dim=-1)

    def in_own_units(self, output: torch.Tensor) -> torch.Tensor:
        """Return the estimate of what :meth:`forward` has given, in the observations' units. Shape: (..., size)."""
        return output[..., -self.size :] * self.scale + self.mean

    @torch.no_grad()
    def set_moments(self, mean: torch.Tensor, scale: torch.Tensor) -> None:
        """Take mean and spread of the observations, once: later layers rely on the units. Shape of both: (size,)."""
        if not self.fitted:
            self.mean.copy_(mean)
            self.scale.copy_(scale)
            self.fitted.fill_(True)

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        estimate = layers.module(self.layers, x, f"{name}.layers")
        layers.outputs["estimate"] = layers.scale(estimate, f"{name}.estimate", self.scale, self.mean)
        return layers.concatenate((x, estimate), name)
