"""Regression on a discrete teacher's Q-values, and on the advantages among them.

The learner brings both to units of the teacher's own spread, one for all choices.
"""

from __future__ import annotations

import torch

from foundation.learning.losses.spec import LossParams, loss, require
from foundation.policies.choices import parts_of
from foundation.policies.output import PolicyOutput


@loss(student=("logits",), teacher=("logits",), regresses_q=True)
def q_mse(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Mean squared error of the Q-values (Rusu et al. 2015, eq. 2). Shapes: (..., num_choices) -> (...)."""
    return (require(student.logits, "Q-values") - require(target.logits, "Q-values")).square().mean(dim=-1)


@loss(student=("logits",), teacher=("logits",), regresses_q=True)
def advantage_mse(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Mean squared error of the Q-values less their mean over the choices: what the choices differ by.

    The split of Wang et al. (2016, "Dueling network architectures", eq. 9). Shapes: (..., num_choices) -> (...).
    """
    error = require(student.logits, "Q-values") - require(target.logits, "Q-values")
    parts = [part - part.mean(dim=-1, keepdim=True) for part in parts_of(error, params.choices)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).square().mean(dim=-1)
