"""Mean and standard deviation of a stored target, over the transitions of one dataset or of several."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foundation.dataset.dataset import DistillationDataset

Sums = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Number of transitions, mean, and sum of the squared deviations from it, float64. Shape: (), (size,), (size,)."""


def target_sums(dataset: DistillationDataset, name: str) -> Sums:
    """Return what :func:`moments_of` makes a target's moments of, over all transitions of positive weight.

    Args:
        dataset: Holds the transitions.
        name: The target.
    """
    column = dataset.column(name)
    count = torch.zeros((), dtype=torch.float64, device=dataset.device)
    mean = torch.zeros(column.shape[-1], dtype=torch.float64, device=dataset.device)
    squares = torch.zeros_like(mean)
    for chunk in range(dataset.num_chunks):
        values = column[chunk].flatten(0, 1).double()
        if dataset.weights is not None:
            values = values[dataset.weights[chunk].flatten() > 0]
        if len(values) == 0:
            continue
        var, own = torch.var_mean(values, dim=0, correction=0)
        count = _merge((count, mean, squares), (len(values), own, var * len(values)))
    return count, mean, squares


def moments_of(parts: Sequence[Sums]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation over the transitions of several datasets. Shape of each: (size,)."""
    count, mean, squares = (tensor.clone() for tensor in parts[0])
    for part in parts[1:]:
        if part[0] > 0:
            count = _merge((count, mean, squares), part)
    return mean, (squares / count.clamp_min(1.0)).sqrt()


def _merge(sums: Sums, part: tuple[torch.Tensor | int, torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Add a part's sums to others, mean and squares in place (Chan et al. 1979); return the number of both."""
    count, mean, squares = sums
    number, own, own_squares = part
    total = count + number
    delta = own - mean
    squares += own_squares + delta.square() * count * number / total
    mean += delta * number / total
    return total
