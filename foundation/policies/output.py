"""The output of any policy, teacher or student, for an observation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch


class PolicyOutput(NamedTuple):
    """The outputs of a policy; what it does not have is None.

    Every field has the leading shape of the observation: ``(num_envs, ...)`` from ``step`` and
    ``(num_steps, num_envs, ...)`` from ``sequence``.
    """

    mean: torch.Tensor
    """Mean action (the deterministic action). Shape: (..., num_actions)."""
    std: torch.Tensor | None = None
    """Standard deviation of the action distribution. Shape: (..., num_actions)."""
    value: torch.Tensor | None = None
    """State value. Shape: (..., 1)."""
    logits: torch.Tensor | None = None
    """Logits or Q-values of a discrete policy. Shape: (..., num_choices)."""
    features: torch.Tensor | None = None
    """Last hidden layer, or the requested layers, concatenated. Shape: (..., num_features)."""
    pre_tanh: torch.Tensor | None = None
    """Of a Gaussian whose draws go through tanh: its means, then its stds. Shape: (..., 2 * num_actions)."""
    concentration: torch.Tensor | None = None
    """Of a Beta distribution on [-1, 1]: its alphas, then its betas. Shape: (..., 2 * num_actions)."""
    saliency: torch.Tensor | None = None
    """How strongly the action depends on each observation that teacher and student share; only where a loss reads it.
    Shape: (..., num_shared)."""
    estimate: torch.Tensor | None = None
    """Estimate of an observation group that the policy does not read, in that group's units; as a target the group
    itself. Only where a loss reads it, or the policy does. Shape: (..., size)."""


def map_output(function: Callable[..., torch.Tensor], *outputs: PolicyOutput) -> PolicyOutput:
    """Apply a function of tensors to each field that all outputs have; the others are None."""
    columns = zip(*outputs, strict=True)
    fields: list[Any] = [None if any(part is None for part in parts) else function(*parts) for parts in columns]
    return PolicyOutput(*fields)
