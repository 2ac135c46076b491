"""What a learner gets from the dataset at once."""

from __future__ import annotations

from typing import NamedTuple

import torch

from foundation.policies.output import PolicyOutput


class Minibatch(NamedTuple):
    """Rows to learn from: flat ``(batch, ...)`` or sequences ``(sequence_length, batch, ...)``."""

    obs: torch.Tensor
    """The student's observations. Shape: (..., num_obs)."""
    targets: PolicyOutput
    """The teacher's outputs at those observations."""
    weights: torch.Tensor | None = None
    """Weight of each row; None when all are 1. Shape: (...)."""
    resets: torch.Tensor | None = None
    """Sequences only: steps that begin an episode. Shape: (sequence_length, batch)."""
    state: torch.Tensor | None = None
    """Sequences only: the student's memory before the first step. Shape: (batch, state_size)."""
