"""Action distributions: the mean and standard deviation of actions from the raw output of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from foundation.policies.choices import best_choices, draw_choices
from foundation.policies.layers import BetaMoment, Constant, Layers, SquashedStd
from foundation.policies.output import PolicyOutput

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

    def family(self, raw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what a bounded distribution has beside its moments, by the fields of :class:`PolicyOutput`."""
        return {}

    def list_layers(self, layers: Layers, raw: str) -> NamedMoments:
        """Append what makes mean and std of the raw output (see :mod:`foundation.policies.layers`)."""
        return raw, None

    def sample(self, mean: torch.Tensor, std: torch.Tensor | None, generator: torch.Generator | None) -> torch.Tensor:
        """Draw actions. Shape: (..., num_actions)."""
        return mean


class Gaussian(Deterministic):
    """The raw output is the mean; the standard deviation is fixed."""

    name = "gaussian"
    std: torch.Tensor

    def __init__(self, std: torch.Tensor) -> None:
        """Keep the standard deviation. Shape: (num_actions,)."""
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
        return sample_gaussian(mean, std, generator)


class Heteroscedastic(Deterministic):
    """The raw output is the means and then the standard deviations (or their logarithms)."""

    name = "heteroscedastic"
    outputs_per_action = 2

    def __init__(self, log: bool | None, std_range: tuple[float, float]) -> None:
        """Configure the standard deviation.

        Args:
            log: Whether the network gives the standard deviation's logarithm. None: unknown, so that there is none.
            std_range: Bounds of the standard deviation.
        """
        super().__init__()
        self.log = log
        self.std_range = std_range

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
        return sample_gaussian(mean, std, generator)


class Beta(Deterministic):
    """A Beta distribution scaled to ``action_range``; its parameters are ``softplus(raw) + 1``, alphas first."""

    name = "beta"
    outputs_per_action = 2

    def __init__(self, action_range: tuple[float, float] = (-1.0, 1.0)) -> None:
        """Keep the range of the actions."""
        super().__init__()
        self.low = action_range[0]
        self.scale = action_range[1] - action_range[0]

    def forward(self, raw: torch.Tensor) -> Moments:
        """Return mean and std. Shape: (..., 2 * num_actions) to (..., num_actions) each."""
        alpha, beta = (functional.softplus(raw) + 1.0).chunk(2, dim=-1)
        total = alpha + beta
        share = alpha / total
        std = (share * (1.0 - share) / (total + 1.0)).sqrt()
        return share * self.scale + self.low, std * self.scale

    def family(self, raw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the alphas and betas, where the range is [-1, 1]."""
        if (self.low, self.scale) != (-1.0, 2.0):
            return {}
        return {"concentration": functional.softplus(raw) + 1.0}

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
    """Raw means and then log standard deviations of a Gaussian whose draws go through tanh, as SAC has it.

    The deterministic action is ``tanh(mean)``. The std that is given is that of the action to first order.
    """

    name = "squashed gaussian"
    outputs_per_action = 2

    def __init__(self, log_std_range: tuple[float, float] = (-20.0, 2.0)) -> None:
        """Keep the bounds of the logarithm of the standard deviation."""
        super().__init__()
        self.log_std_range = log_std_range

    def forward(self, raw: torch.Tensor) -> Moments:
        """Return mean and std. Shape: (..., 2 * num_actions) to (..., num_actions) each."""
        mean, log_std = raw.chunk(2, dim=-1)
        mean = mean.tanh()
        return mean, log_std.clamp(*self.log_std_range).exp() * self._slope(mean)

    def family(self, raw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return means and standard deviations before tanh."""
        mean, log_std = raw.chunk(2, dim=-1)
        return {"pre_tanh": torch.cat([mean, log_std.clamp(*self.log_std_range).exp()], dim=-1)}

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
        return sample_gaussian(raw, std / slope, generator).tanh()

    @staticmethod
    def _slope(mean: torch.Tensor) -> torch.Tensor:
        return (1.0 - mean.square()).clamp_min(1e-7)


class ShapedActions(Deterministic):
    """Another distribution whose mean is squashed and whose actions are then clipped and mapped to a range."""

    low: torch.Tensor | None
    high: torch.Tensor | None
    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(
        self,
        inner: Deterministic,
        squash: nn.Module | None = None,
        clip: tuple[torch.Tensor, torch.Tensor] | None = None,
        scale: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
    ) -> None:
        """Return what is done to the mean, in this order.

        Args:
            inner: Gives the raw mean and the standard deviation.
            squash: Applied to the mean.
            clip: Bounds, low and high. Shape of each: () or (num_actions,).
            scale: Multiplies action and standard deviation. Shape: () or (num_actions,).
            shift: Added to the action. Shape: () or (num_actions,).
        """
        super().__init__()
        self.inner = inner
        self.name = inner.name
        self.outputs_per_action = inner.outputs_per_action
        self.squash = squash
        low, high = clip if clip is not None else (None, None)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("scale", torch.ones(()) if scale is None else scale)
        self.register_buffer("shift", torch.zeros(()) if shift is None else shift)
        same_range = (scale is None or bool((scale == 1.0).all())) and (shift is None or bool((shift == 0.0).all()))
        self._untouched = squash is None and clip is None and same_range

    def family(self, raw: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return that of the inner distribution, where nothing is done to its actions."""
        return self.inner.family(raw) if self._untouched else {}

    def describe(self) -> str:
        """Return the processing of the mean as text."""
        done = [] if self.squash is None else [" ".join(str(self.squash).split())]
        if self.low is not None and self.high is not None:
            done.append(f"clipped to {_range(self.low, self.high)}")
        if bool((self.scale != 1.0).any() or (self.shift != 0.0).any()):
            done.append(f"then from ±1 to {_range(self.shift - self.scale, self.shift + self.scale)}")
        return ", ".join(done) or "none"

    def forward(self, raw: torch.Tensor) -> Moments:
        """Return mean and std. Shape: (..., num_actions) each."""
        mean, std = self.inner(raw)
        if self.squash is not None:
            mean = self.squash(mean)
        if self.low is not None:
            mean = mean.clamp(self.low, self.high)
        return mean * self.scale + self.shift, None if std is None else std * self.scale

    def list_layers(self, layers: Layers, raw: str) -> NamedMoments:
        """Append what makes mean and std of the raw output (see :mod:`foundation.policies.layers`)."""
        mean, std = self.inner.list_layers(layers, raw)
        if self.squash is not None:
            mean = layers.module(self.squash, mean, "squash")
        if self.low is not None and self.high is not None:
            mean = layers.clamp(mean, "clip", self.low, self.high)
        mean = layers.scale(mean, "range", self.scale, self.shift)
        return mean, None if std is None else layers.scale(std, "std.range", self.scale)

    def sample(self, mean: torch.Tensor, std: torch.Tensor | None, generator: torch.Generator | None) -> torch.Tensor:
        """Draw actions around the action that ``forward`` gave, within its bounds. Shape: (..., num_actions)."""
        unit = (mean - self.shift) / self.scale
        spread = None if std is None else std / self.scale
        drawn = self.inner.sample(unit, spread, generator) * self.scale + self.shift
        if self.low is None or self.high is None:
            return drawn
        return drawn.clamp(self.low * self.scale + self.shift, self.high * self.scale + self.shift)


def _range(low: torch.Tensor, high: torch.Tensor) -> str:
    bounds = sorted({(f"{a:g}", f"{b:g}") for a, b in zip(low.view(-1).tolist(), high.view(-1).tolist(), strict=True)})
    return " ".join(f"[{a}, {b}]" for a, b in bounds[:8])


class Choices(Deterministic):
    """The raw outputs are logits or Q-values of a discrete action; the action is the index of the largest, as a float.

    Q-values do not say how a policy explores, so that a draw from them is the best choice.
    """

    def __init__(self, q_values: bool, sizes: Sequence[int] = ()) -> None:
        """Store what the outputs are.

        Args:
            q_values: Whether they are Q-values; else logits of a categorical distribution.
            sizes: Choices of each of several actions, whose scores lie side by side. Empty: there is one action.
        """
        super().__init__()
        self.q_values = q_values
        self.sizes = tuple(sizes)
        self.name = "q-values" if q_values else "categorical"

    def forward(self, raw: torch.Tensor) -> Moments:
        """Return the best choices' indices. Shape: (..., num_choices) to (..., num_actions)."""
        return best_choices(raw, self.sizes), None

    def list_layers(self, layers: Layers, raw: str) -> NamedMoments:
        """Append the choice (see :mod:`foundation.policies.layers`)."""
        return layers.choice(raw, self.sizes), None

    def draw(self, logits: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Draw choices. Shape: (..., num_choices) to (..., num_actions)."""
        return self.forward(logits)[0] if self.q_values else draw_choices(logits, self.sizes, generator)


def _halves(layers: Layers, raw: str) -> tuple[str, str]:
    """Append a cut of the raw output into means and what follows them."""
    size = layers.size(raw) // 2
    return layers.columns(raw, "means", 0, (size,)), layers.columns(raw, "spreads", size, (size,))


def sample_gaussian(mean: torch.Tensor, std: torch.Tensor | None, generator: torch.Generator | None) -> torch.Tensor:
    """Draw from independent Gaussians; the mean where there is no standard deviation. Shape: (..., num_actions)."""
    if std is None:
        return mean
    noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device, generator=generator)
    return mean + std * noise


def sample_output(output: PolicyOutput, generator: torch.Generator | None = None) -> torch.Tensor:
    """Draw actions from an output's distribution, bounded or Gaussian; the mean where there is none.

    Shape: (..., num_actions).
    """
    if output.concentration is not None:
        alpha, beta = output.concentration.chunk(2, dim=-1)
        first = torch.ops.aten._standard_gamma(alpha, generator=generator)
        second = torch.ops.aten._standard_gamma(beta, generator=generator)
        total = (first + second).clamp_min(torch.finfo(first.dtype).tiny)
        return 2.0 * first / total - 1.0
    if output.pre_tanh is not None:
        mean, std = output.pre_tanh.chunk(2, dim=-1)
        return sample_gaussian(mean, std, generator).tanh()
    return sample_gaussian(output.mean, output.std, generator)
