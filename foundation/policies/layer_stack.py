"""A policy that is a chain of layers, some of which may remember: what files of other libraries are turned into."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from foundation.policies.distribution import Deterministic
from foundation.policies.layers import OBS, Layers
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork
from foundation.policies.rnn import RecurrentCore


class LayerStack(PolicyNetwork):
    """Layers in a row with the interface that students have: ``step`` and ``sequence`` with the state passed in."""

    def __init__(self, layers: Sequence[nn.Module], num_obs: int, num_actions: int, distribution: Deterministic):
        """Freeze the layers.

        Args:
            layers: Stateless modules and recurrent cores.
            num_obs: Number of inputs of the first.
            num_actions: Number of actions that ``distribution`` makes of the last one's outputs.
            distribution: Turns the raw output into mean and standard deviation.
        """
        super().__init__()
        self.layers_in_order, self.distribution = nn.ModuleList(layers), distribution
        self.num_obs, self.num_actions = num_obs, num_actions
        self._sizes = [layer.state_size for layer in layers if isinstance(layer, RecurrentCore)]
        self.state_size = sum(self._sizes)
        dense = [index for index, layer in enumerate(layers) if isinstance(layer, nn.Linear)]
        self._head = dense[-1] if dense else -1
        self.requires_grad_(False).eval()

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the state at an episode's start. Shape: (num_envs, state_size), None without memory."""
        cores = [layer for layer in self.layers_in_order if isinstance(layer, RecurrentCore)]
        return torch.cat([core.initial_state(num_envs, device) for core in cores], dim=-1) if cores else None

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        x = obs
        before = iter(() if state is None else state.split(self._sizes, dim=-1))
        after: list[torch.Tensor] = []
        features = None
        for index, layer in enumerate(self.layers_in_order):
            if index == self._head:
                features = x
            if isinstance(layer, RecurrentCore):
                own = next(before)
                x, own = layer.sequence(x, own, resets) if sequence else layer.step(x, own)
                after.append(own)
            else:
                x = layer(x)
        mean, std = self.distribution(x)
        if after:
            state = after[0] if len(after) == 1 else torch.cat(after, dim=-1)
        return PolicyOutput(mean=mean, std=std, features=features), state

    def list_layers(self, layers: Layers) -> None:
        """Append the layers, in order."""
        x = OBS
        for index, layer in enumerate(self.layers_in_order):
            if index == self._head:
                layers.outputs["features"] = x
            x = layers.module(layer, x, f"layers.{index}")
        layers.set_moments(self.distribution.list_layers(layers, x))


class FastTanh(nn.Module):
    """The rational approximation of tanh that rl-tools calls FAST_TANH."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Squash. Shape: any."""
        x = x.clamp(-3.0, 3.0)
        square = x.square()
        return x * (27.0 + square) / (27.0 + 9.0 * square)

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        return layers.activation(x, name, "fast_tanh")


class Standardize(nn.Module):
    """``(x - mean) * precision``; a precision of zero leaves the difference as it is."""

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


class Clip(nn.Module):
    """Bounds every number."""

    def __init__(self, low: float, high: float) -> None:
        """Keep the bounds."""
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Clip. Shape: any."""
        return x.clamp(self.low, self.high)

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        return layers.clamp(x, name, self.low, self.high)
