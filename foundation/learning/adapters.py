"""Linear adapters from the student's layers to the teacher's layers that they are to match."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from foundation.learning.standardise import Predictor


class LayerAdapters(nn.Module):
    """One linear adapter for each of several layers, whose outputs are concatenated.

    Args:
        sizes: Of each layer: the student's and the teacher's.
        device: Where the student is.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], device: torch.device):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(own, wanted, device=device) for own, wanted in sizes)
        self._sizes = [own for own, _ in sizes]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the predictions of the teacher's layers, concatenated. Shape: (..., sum of sizes)."""
        parts = features.split(self._sizes, dim=-1)
        return torch.cat([layer(part) for layer, part in zip(self.layers, parts, strict=True)], dim=-1)


def make_adapter(sizes: Sequence[tuple[int, int]], device: torch.device) -> nn.Linear | LayerAdapters:
    """Return the adapter of one layer, or of several.

    Args:
        sizes: Of each layer: the student's and the teacher's.
        device: Where the student is.
    """
    if len(sizes) == 1:
        return nn.Linear(*sizes[0], device=device)
    return LayerAdapters(sizes, device)


def predictors(adapter: nn.Linear | LayerAdapters) -> list[Predictor]:
    """Return the linear layers of an adapter, each with its part of the features."""
    if isinstance(adapter, nn.Linear):
        return [Predictor(adapter)]
    found = []
    start = 0
    for layer in adapter.layers:
        assert isinstance(layer, nn.Linear)
        found.append(Predictor(layer, slice(start, start + layer.out_features)))
        start += layer.out_features
    return found
