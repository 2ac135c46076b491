"""Errors of the state value; the learner brings both values to units of the teacher's own spread."""

from __future__ import annotations

import torch

from foundation.learning.losses.spec import LossParams, loss, require
from foundation.policies.output import PolicyOutput


@loss(student=("value",), teacher=("value",))
def value(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Squared error of the state value. Shapes: (..., 1) -> (...)."""
    error = require(student.value, "a student's value") - require(target.value, "a teacher's value")
    return error.square().mean(dim=-1)


@loss(student=("value",), teacher=("value",))
def value_l1(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Absolute error of the state value. Shapes: (..., 1) -> (...)."""
    error = require(student.value, "a student's value") - require(target.value, "a teacher's value")
    return error.abs().mean(dim=-1)
