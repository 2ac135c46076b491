"""Errors of the mean actions."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from foundation.learning.losses.spec import LossParams, loss
from foundation.policies.output import PolicyOutput


@loss()
def mse(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Mean squared error of the mean actions. Shapes: (..., num_actions) -> (...)."""
    return (student.mean - target.mean).square().mean(dim=-1)


@loss(continuous=("huber_delta",))
def huber(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Huber loss of the mean actions, linear beyond ``huber_delta``. Shapes: (..., num_actions) -> (...)."""
    return F.huber_loss(student.mean, target.mean, reduction="none", delta=params.huber_delta).mean(dim=-1)
