"""One scale for the terms of a loss: values, features and Q-values in units of the teacher's own spread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from foundation.core.distributed import ALONE, Ranks
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.moments import moments_of, target_sums
from foundation.policies.output import PolicyOutput

STANDARDISED = ("value", "features", "logits", "estimate")
"""Outputs whose unit is arbitrary: returns and Q-values are in the task's own unit, features in none, and the columns
of an observation group that is estimated in one each."""
MIN_SHARE = 0.1
"""A dimension that hardly varies is divided by this share of the root mean square spread of all dimensions."""


class Predictor(NamedTuple):
    """A layer that predicts a field, or a part of it."""

    layer: nn.Linear
    part: slice = slice(None)
    """Columns of the field."""


class Standardiser:
    """Standardise the teacher's values, features and Q-values by their mean and spread in the dataset.

    The Q-values of all choices are divided by one number, so that what they differ by keeps its proportion: their
    squared error is that in the task's unit, divided by the square of that number.

    A layer that predicts one of them does so in standardised units while it learns, and in the teacher's own units at
    all other times (:meth:`standardised`): the optimiser sees numbers of order 1, whoever reads the student sees a
    return. Where the moments are fitted anew, the layer's predictions stay what they were, as in PopArt (van Hasselt
    et al. 2016, "Learning values across many orders of magnitude").

    Args:
        fields: Which of :data:`STANDARDISED` the losses read.
    """

    def __init__(self, fields: Iterable[str]):
        read = set(fields)
        self.fields = tuple(name for name in STANDARDISED if name in read)
        self.mean: dict[str, torch.Tensor] = {}
        """Mean of each field, in the teacher's units. Shape of each: (size,)."""
        self.scale: dict[str, torch.Tensor] = {}
        """What each field is divided by, in the teacher's units. Shape of each: (size,)."""

    @property
    def fitted(self) -> bool:
        """Whether there was any data yet."""
        return all(name in self.mean for name in self.fields)

    @torch.no_grad()
    def fit(self, dataset: DistillationDataset, ranks: Ranks = ALONE) -> None:
        """Take the moments of the targets in a dataset, those of weight 0 left out.

        Args:
            dataset: Holds the targets.
            ranks: The processes whose datasets are as one.
        """
        for name in self.fields:
            mean, std = moments_of(ranks.gather(target_sums(dataset, name)))
            mean = mean.to(dataset.compute_device)
            std = std.to(dataset.compute_device)
            overall = std.square().mean().sqrt()
            scale = _scale_of(name, mean, std, overall)
            if name in self.mean:
                # In place: a compiled function keeps using the tensors that it was compiled with.
                self.mean[name].copy_(mean)
                self.scale[name].copy_(scale)
            else:
                self.mean[name] = mean.float()
                self.scale[name] = scale.float()

    def __call__(self, output: PolicyOutput, fields: Iterable[str] | None = None) -> PolicyOutput:
        """Return an output some of whose fields (None: all) are standardised; what is not there stays None."""
        changed = {}
        for name in self.fields if fields is None else fields:
            value = getattr(output, name)
            if value is not None and name in self.mean:
                changed[name] = (value - self.mean[name]) / self.scale[name]
        return output._replace(**changed) if changed else output

    @contextmanager
    def standardised(self, layers: dict[str, list[Predictor]]) -> Iterator[None]:
        """Let layers predict standardised numbers within this context, and the teacher's units after it.

        Args:
            layers: The layers that predict each field.
        """
        pairs = [(name, predictor) for name, several in layers.items() for predictor in several]
        for name, predictor in pairs:
            self._to_standardised(name, predictor)
        try:
            yield
        finally:
            for name, predictor in pairs:
                self.to_own_units(name, predictor)

    @torch.no_grad()
    def _to_standardised(self, name: str, predictor: Predictor) -> None:
        layer, part = predictor
        layer.weight.div_(self.scale[name][part].unsqueeze(1))
        layer.bias.sub_(self.mean[name][part]).div_(self.scale[name][part])

    @torch.no_grad()
    def to_own_units(self, name: str, predictor: Predictor) -> None:
        """Let a layer that predicts standardised numbers predict the teacher's."""
        layer, part = predictor
        layer.weight.mul_(self.scale[name][part].unsqueeze(1))
        layer.bias.mul_(self.scale[name][part]).add_(self.mean[name][part])

    def state_dict(self) -> dict[str, Any]:
        """Return the moments, for an exact resume; empty without any."""
        if not self.mean:
            return {}
        return {"target_moments": {name: [self.mean[name].clone(), self.scale[name].clone()] for name in self.mean}}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore what :meth:`state_dict` returned; a run of a version without moments begins with none."""
        for name, (mean, scale) in state.get("target_moments", {}).items():
            self.mean[name] = mean.to(device)
            self.scale[name] = scale.to(device)


def _scale_of(name: str, mean: torch.Tensor, std: torch.Tensor, overall: torch.Tensor) -> torch.Tensor:
    """Return what a field is divided by; the unit of what never varies is kept. Shape: (size,)."""
    if name == "estimate":  # each column has a unit of its own
        least = 1e-6 * mean.abs().clamp_min(1e-6)
        return torch.where(std > least, std, torch.ones_like(std))
    scale = overall.expand_as(std) if name == "logits" else torch.maximum(std, MIN_SHARE * overall)
    least = 1e-6 * mean.abs().amax().clamp_min(1e-6)
    return torch.where(overall > least, scale, torch.ones_like(scale))
