"""Fixed elementwise layers of other libraries' policies: normalisers, clipping, scaling."""

from __future__ import annotations

import torch
from torch import nn

from foundation.policies.layers import Layers


class Factor(nn.Module):
    """Multiplies by a constant."""

    def __init__(self, factor: float) -> None:
        """Keep the constant."""
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply. Shape: any."""
        return x * self.factor

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        return layers.scale(x, name, self.factor)

    def extra_repr(self) -> str:
        """Show the factor in ``repr``."""
        return f"{self.factor:g}"


class Clip(nn.Module):
    """Clips every element to ``[low, high]``."""

    def __init__(self, low: float, high: float) -> None:
        """Keep the bounds."""
        super().__init__()
        self.low = low
        self.high = high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Clip. Shape: any."""
        return x.clamp(self.low, self.high)

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        return layers.clamp(x, name, self.low, self.high)


class FastTanh(nn.Module):
    """The rational approximation of tanh that rl-tools calls FAST_TANH: ``x (27 + x^2) / (27 + 9 x^2)`` within ±3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Squash. Shape: any."""
        x = x.clamp(-3.0, 3.0)
        square = x.square()
        return x * (27.0 + square) / (27.0 + 9.0 * square)

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        return layers.activation(x, name, "fast_tanh")


class Standardize(nn.Module):
    """``(x - mean) * precision``, as rl-tools standardises; where the precision is zero it is taken as 1."""

    mean: torch.Tensor
    precision: torch.Tensor

    def __init__(self, mean: torch.Tensor, precision: torch.Tensor) -> None:
        """Keep the statistics. Shape of both: (num_obs,)."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("precision", torch.where(precision == 0, torch.ones_like(precision), precision))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Standardise. Shape: (..., num_obs)."""
        return (x - self.mean) * self.precision

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        return layers.normalize(x, name, self.mean, self.precision)


class ClampedScaler(nn.Module):
    """``clamp((clamp(x, ±before) - mean) / std, ±after)``."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, mean: torch.Tensor, std: torch.Tensor, after: float | None = None, before: float | None = None
    ) -> None:
        """Keep the moments.

        Args:
            mean: Shape: (num_obs,).
            std: The divisor, with the library's epsilon added. Shape: (num_obs,).
            after: Bound of the result. None: unbounded.
            before: Bound of the observations. None: unbounded.
        """
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.after = after
        self.before = before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise observations. Shape: (..., num_obs)."""
        if self.before is not None:
            x = x.clamp(-self.before, self.before)
        x = (x - self.mean) / self.std
        return x if self.after is None else x.clamp(-self.after, self.after)

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        if self.before is not None:
            x = layers.clamp(x, f"{name}.before", -self.before, self.before)
        x = layers.normalize(x, name, self.mean, self.std.reciprocal())
        return x if self.after is None else layers.clamp(x, f"{name}.after", -self.after, self.after)


class ValueScaler(nn.Module):
    """Scales a critic's output back to returns: ``std * clamp(activation(x), ±bound) + mean``."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self, mean: torch.Tensor, std: torch.Tensor, bound: float, activation: nn.Module | None = None
    ) -> None:
        """Keep the moments. Shape of both: (1,)."""
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.bound = bound
        self.activation = activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scale back. Shape: (..., 1)."""
        if self.activation is not None:
            x = self.activation(x)
        return self.std * x.clamp(-self.bound, self.bound) + self.mean

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        if self.activation is not None:
            x = layers.module(self.activation, x, f"{name}.activation")
        x = layers.clamp(x, f"{name}.clamp", -self.bound, self.bound)
        return layers.scale(x, name, self.std, self.mean)
