"""How raw outputs become actions in other libraries: squashed, clipped, mapped to a range, or one of many choices."""

from __future__ import annotations

import torch
from torch import nn

from foundation.policies.distribution import Deterministic, Moments, NamedMoments
from foundation.policies.layers import Layers


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
        """Say what is done to the mean, in this order.

        Args:
            inner: Gives the raw mean and the deviation.
            squash: Applied to the mean.
            clip: Bounds, low and high. Shape of each: () or (num_actions,).
            scale: Multiplies action and deviation. Shape: () or (num_actions,).
            shift: Added to the action. Shape: () or (num_actions,).
        """
        super().__init__()
        self.inner, self.name, self.outputs_per_action = inner, inner.name, inner.outputs_per_action
        self.squash = squash
        low, high = clip if clip is not None else (None, None)
        self.register_buffer("low", low)
        self.register_buffer("high", high)
        self.register_buffer("scale", torch.ones(()) if scale is None else scale)
        self.register_buffer("shift", torch.zeros(()) if shift is None else shift)

    def describe(self) -> str:
        """Say what is done to the mean, for people."""
        said = [] if self.squash is None else [" ".join(str(self.squash).split())]
        if self.low is not None and self.high is not None:
            said.append(f"clipped to {_range(self.low, self.high)}")
        if bool((self.scale != 1.0).any() or (self.shift != 0.0).any()):
            said.append(f"then from ±1 to {_range(self.shift - self.scale, self.shift + self.scale)}")
        return ", ".join(said) or "none"

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
        unit, spread = (mean - self.shift) / self.scale, None if std is None else std / self.scale
        drawn = self.inner.sample(unit, spread, generator) * self.scale + self.shift
        if self.low is None or self.high is None:
            return drawn
        return drawn.clamp(self.low * self.scale + self.shift, self.high * self.scale + self.shift)


def _range(low: torch.Tensor, high: torch.Tensor) -> str:
    bounds = sorted({(f"{a:g}", f"{b:g}") for a, b in zip(low.view(-1).tolist(), high.view(-1).tolist(), strict=True)})
    return " ".join(f"[{a}, {b}]" for a, b in bounds[:8])


class Factor(nn.Module):
    """Multiplies by a number."""

    def __init__(self, factor: float) -> None:
        """Keep the number."""
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Multiply. Shape: any."""
        return x * self.factor

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        return layers.scale(x, name, self.factor)

    def extra_repr(self) -> str:
        """Say the number."""
        return f"{self.factor:g}"


class Choices(Deterministic):
    """The raw outputs are logits or Q-values of a discrete action; the action is the index of the largest, as a float.

    Q-values do not say how a policy explores, so that a draw from them is the best choice.
    """

    def __init__(self, q_values: bool) -> None:
        """Say what the outputs are: Q-values, or logits of a categorical distribution."""
        super().__init__()
        self.q_values = q_values
        self.name = "q-values" if q_values else "categorical"

    def forward(self, raw: torch.Tensor) -> Moments:
        """Return the best choice's index. Shape: (..., num_choices) to (..., 1)."""
        return raw.argmax(dim=-1, keepdim=True).to(raw.dtype), None

    def list_layers(self, layers: Layers, raw: str) -> NamedMoments:
        """Append the choice (see :mod:`foundation.policies.layers`)."""
        return layers.choice(raw), None

    def draw(self, logits: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
        """Draw a choice. Shape: (..., num_choices) to (..., 1)."""
        if self.q_values:
            return self.forward(logits)[0]
        flat = logits.reshape(-1, logits.shape[-1]).softmax(dim=-1)
        drawn = torch.multinomial(flat, 1, generator=generator)
        return drawn.reshape(*logits.shape[:-1], 1).to(logits.dtype)
