"""Error of a prediction of another observation group, as the heads of RMA (Kumar et al. 2021) and DreamWaQ learn."""

from __future__ import annotations

import torch

from foundation.learning.losses.spec import LossParams, loss, require
from foundation.policies.output import PolicyOutput


@loss(student=("features",), teacher=("estimate",))
def predict(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Mean squared error of an estimate, in units of each column's own spread. Shapes: (..., size) -> (...)."""
    own = require(student.estimate, "a student's estimate")
    return (own - require(target.estimate, "the observation group to predict")).square().mean(dim=-1)
