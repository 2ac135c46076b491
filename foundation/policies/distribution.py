"""From the raw output of a network to the mean and standard deviation of its actions."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from foundation.policies.layers import BetaMoment, Constant, Layers, SquashedStd

Moments = tuple[torch.Tensor, torch.Tensor | None]
NamedMoments = tuple[str, str | None]
"""Names of the values that are mean and std among a policy's typed layers."""


class Deterministic(nn.Module):
    """The raw output is the action."""

    name = "deterministic"
    outputs_per_action = 1

    def forward(self, raw: torch.Tensor) -> Moments:
        """Return mean and std. Shape: (..., num_actions) each."""
        return raw, None

    def list_layers(self, layers: Layers, raw: str) -> NamedMoments:
        """Append what makes mean and std of the raw output (see :mod:`foundation.policies.layers`)."""
        return raw, None

    def sample(self, mean: torch.Tensor, std: torch.Tensor | None, generator: torch.Generator | None) -> torch.Tensor:
        """Draw actions. Shape: (..., num_actions)."""
        return mean


class Gaussian(Deterministic):
    """The raw output is the mean; the deviation is fixed."""

    name = "gaussian"
    std: torch.Tensor

    def __init__(self, std: torch.Tensor) -> None:
        """Keep the deviation. Shape: (num_actions,)."""
        super().__init__()
        self.register_buffer("std", std)

    def forward(self, raw: torch.Tensor) -> Moments:
        """Return mean and std. Shape: (..., num_actions) each."""
        return raw, self.std.expand_as(raw)

    def list_layers(self, layers: Layers, raw: str) -> NamedMoments:
        """Append what makes mean and std of the raw output (see :mod:`foundation.policies.layers`)."""
        std = Constant(name="std", inputs=(), shape=tuple(self.std.shape), value=self.std)
        return raw, layers.add(std)

    def sample(self, mean: torch.Tensor, std: torch.Tensor | None, generator: torch.Generator | None) -> torch.Tensor:
        """Draw actions. Shape: (..., num_actions)."""
        return _sample_gaussian(mean, std, generator)


class Heteroscedastic(Deterministic):
    """The raw output is the means and then the deviations (or their logarithms)."""

    name = "heteroscedastic"
    outputs_per_action = 2

    def __init__(self, log: bool | None, std_range: tuple[float, float]) -> None:
        """Configure the deviation.

        Args:
            log: Whether the network gives the deviation's logarithm. None: unknown, so that there is none.
            std_range: Bounds of the deviation.
        """
        super().__init__()
        self.log, self.std_range = log, std_range

    def forward(self, raw: torch.Tensor) -> Moments:
        """Return mean and std. Shape: (..., 2 * num_actions) to (..., num_actions) each."""
        mean, spread = raw.chunk(2, dim=-1)
        if self.log is None:
            return mean, None
        return mean, (spread.exp() if self.log else spread).clamp(*self.std_range)

    def list_layers(self, layers: Layers, raw: str) -> NamedMoments:
        """Append what makes mean and std of the raw output (see :mod:`foundation.policies.layers`)."""
        mean, spread = _halves(layers, raw)
        if self.log is None:
            return mean, None
        spread = layers.activation(spread, "std.exp", "exp") if self.log else spread
        return mean, layers.clamp(spread, "std", *self.std_range)

    def sample(self, mean: torch.Tensor, std: torch.Tensor | None, generator: torch.Generator | None) -> torch.Tensor:
        """Draw actions. Shape: (..., num_actions)."""
        return _sample_gaussian(mean, std, generator)


class Beta(Deterministic):
    """A Beta distribution scaled to ``action_range``; its parameters are ``softplus(raw) + 1``, alphas first."""

    name = "beta"
    outputs_per_action = 2

    def __init__(self, action_range: tuple[float, float] = (-1.0, 1.0)) -> None:
        """Keep the range of the actions."""
        super().__init__()
        self.low, self.scale = action_range[0], action_range[1] - action_range[0]

    def forward(self, raw: torch.Tensor) -> Moments:
        """Return mean and std. Shape: (..., 2 * num_actions) to (..., num_actions) each."""
        alpha, beta = (functional.softplus(raw) + 1.0).chunk(2, dim=-1)
        total = alpha + beta
        share = alpha / total
        std = (share * (1.0 - share) / (total + 1.0)).sqrt()
        return share * self.scale + self.low, std * self.scale

    def list_layers(self, layers: Layers, raw: str) -> NamedMoments:
        """Append what makes mean and std of the raw output (see :mod:`foundation.policies.layers`)."""
        shape = (layers.size(raw) // 2,)
        mean = BetaMoment(name="mean", inputs=(raw,), shape=shape, moment="mean", low=self.low, width=self.scale)
        std = BetaMoment(name="std", inputs=(raw,), shape=shape, moment="std", low=self.low, width=self.scale)
        return layers.add(mean), layers.add(std)

    def sample(self, mean: torch.Tensor, std: torch.Tensor | None, generator: torch.Generator | None) -> torch.Tensor:
        """Draw actions by two gamma draws, from the parameters that mean and std determine."""
        assert std is not None
        share = (mean - self.low) / self.scale
        total = share * (1.0 - share) / (std / self.scale).square() - 1.0
        first = torch.ops.aten._standard_gamma((share * total).clamp_min(1.0), generator=generator)
        second = torch.ops.aten._standard_gamma(((1.0 - share) * total).clamp_min(1.0), generator=generator)
        return first / (first + second) * self.scale + self.low


class SquashedGaussian(Deterministic):
    """Raw means and then log deviations of a Gaussian whose draws go through tanh, as SAC has it.

    The deterministic action is ``tanh(mean)``. The deviation that is given is that of the action to first order.
    """

    name = "squashed gaussian"
    outputs_per_action = 2

    def __init__(self, log_std_range: tuple[float, float] = (-20.0, 2.0)) -> None:
        """Keep the bounds of the logarithm of the deviation."""
        super().__init__()
        self.log_std_range = log_std_range

    def forward(self, raw: torch.Tensor) -> Moments:
        """Return mean and std. Shape: (..., 2 * num_actions) to (..., num_actions) each."""
        mean, log_std = raw.chunk(2, dim=-1)
        mean = mean.tanh()
        return mean, log_std.clamp(*self.log_std_range).exp() * self._slope(mean)

    def list_layers(self, layers: Layers, raw: str) -> NamedMoments:
        """Append what makes mean and std of the raw output (see :mod:`foundation.policies.layers`)."""
        mean, log_std = _halves(layers, raw)
        mean = layers.activation(mean, "mean", "tanh")
        before = layers.activation(layers.clamp(log_std, "log_std", *self.log_std_range), "std.exp", "exp")
        return mean, layers.add(SquashedStd(name="std", inputs=(before, mean), shape=layers.shape(mean)))

    def sample(self, mean: torch.Tensor, std: torch.Tensor | None, generator: torch.Generator | None) -> torch.Tensor:
        """Draw actions: a Gaussian draw before the squashing. Shape: (..., num_actions)."""
        assert std is not None
        slope = self._slope(mean)
        raw = mean.clamp(-1.0 + 1e-7, 1.0 - 1e-7).atanh()
        return _sample_gaussian(raw, std / slope, generator).tanh()

    @staticmethod
    def _slope(mean: torch.Tensor) -> torch.Tensor:
        return (1.0 - mean.square()).clamp_min(1e-7)


def _halves(layers: Layers, raw: str) -> tuple[str, str]:
    """Append a cut of the raw output into means and what follows them."""
    size = layers.size(raw) // 2
    return layers.columns(raw, "means", 0, (size,)), layers.columns(raw, "spreads", size, (size,))


def _sample_gaussian(mean: torch.Tensor, std: torch.Tensor | None, generator: torch.Generator | None) -> torch.Tensor:
    if std is None:
        return mean
    noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
    return mean + std * noise
