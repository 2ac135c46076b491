"""Parameters of bounded distributions, none narrower than ``min_std``, and labels within their range."""

from __future__ import annotations

import torch

LIMIT = 0.999
"""Labels are clipped to [-LIMIT, LIMIT]: a bounded density is zero or infinite at 1, and a label may be beyond."""


def inside(action: torch.Tensor) -> torch.Tensor:
    """Return labels within the open interval (-1, 1)."""
    return action.clamp(-LIMIT, LIMIT)


def squashed_parameters(pre_tanh: torch.Tensor, min_std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means, and standard deviations of at least ``min_std``, before tanh. Shape: (..., num_actions) each."""
    mean, std = pre_tanh.chunk(2, dim=-1)
    return mean, std.clamp_min(min_std)


def beta_parameters(concentration: torch.Tensor, min_std: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return alphas and betas of distributions of the same means whose standard deviation is at least ``min_std``.

    On [-1, 1] the standard deviation is ``2 sqrt(m (1 - m) / (alpha + beta + 1))`` with ``m = alpha / (alpha + beta)``:
    where it is below ``min_std``, both are lowered by the same factor, which leaves the mean as it is.

    Args:
        concentration: Alphas, then betas. Shape: (..., 2 * num_actions).
        min_std: Smallest standard deviation [action units].

    Returns:
        Shape of each: (..., num_actions).
    """
    alpha, beta = concentration.chunk(2, dim=-1)
    total = alpha + beta
    share = alpha / total
    most = (4.0 * share * (1.0 - share) / min_std**2 - 1.0).clamp_min(1.0)
    factor = (most / total).clamp_max(1.0)
    return alpha * factor, beta * factor
