"""Fake quantisation: a student that computes with 8-bit weights while float ones learn (straight-through)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

MAX_WEIGHT = 127
"""Largest 8-bit weight: the same on both sides of 0, as the exports have it."""


def round_rows(weight: torch.Tensor) -> torch.Tensor:
    """Return a matrix whose rows are whole multiples of a 127th of their largest number. Shape: (num_out, num_in)."""
    scale = weight.abs().amax(dim=1, keepdim=True) / MAX_WEIGHT
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return (weight / scale).round() * scale


class RoundedWeights:
    """Float weight matrices of a module that itself holds the rounded ones.

    Whoever evaluates or saves the module sees what an export of 8 bits computes with. A gradient at the rounded
    weights moves the float ones: see :meth:`follow`.
    """

    def __init__(self, module: nn.Module) -> None:
        """Take the module's matrices and round them in it.

        Args:
            module: Its parameters of two dimensions are rounded; biases and normalisers are not.
        """
        self._matrices = {name: weight for name, weight in module.named_parameters() if weight.ndim == 2}
        self.weights = {name: weight.detach().clone() for name, weight in self._matrices.items()}
        """The float matrices by the parameters' names."""
        self.round()

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Let an optimiser step the float matrices instead of the rounded ones."""
        optimizer.register_step_pre_hook(lambda *_: self._restore())
        optimizer.register_step_post_hook(lambda *_: self._take())

    @torch.no_grad()
    def round(self) -> None:
        """Write the rounded matrices into the module."""
        for name, weight in self._matrices.items():
            weight.copy_(round_rows(self.weights[name]))

    @torch.no_grad()
    def _restore(self) -> None:
        for name, weight in self._matrices.items():
            weight.copy_(self.weights[name])

    @torch.no_grad()
    def _take(self) -> None:
        for name, weight in self._matrices.items():
            self.weights[name].copy_(weight)
        self.round()

    @torch.no_grad()
    def average(self, other: RoundedWeights, decay: float) -> None:
        """Move the float matrices towards another module's by ``1 - decay``, and round them again."""
        for name, weight in self.weights.items():
            weight.lerp_(other.weights[name], 1.0 - decay)
        self.round()

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Take float matrices that were saved, and round them in the module."""
        for name, weight in self.weights.items():
            weight.copy_(weights[name])
        self.round()
