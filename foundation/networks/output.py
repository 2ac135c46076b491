"""What any policy, teacher or student, says about an observation."""

from __future__ import annotations

from typing import NamedTuple

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
    """Last hidden layer. Shape: (..., num_features)."""
