"""Attention transfer: the student's action is to depend on the same observations as the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from foundation.learning.losses.spec import LossParams, loss, require
from foundation.policies.output import PolicyOutput


@loss(student=("saliency",), teacher=("saliency",))
def attention(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Squared distance of the saliency maps, each of length 1 (Zagoruyko and Komodakis 2017, gradient-based).

    A map has, for each observation that both read, the norm of the action's derivative with respect to it, times the
    observation's standard deviation. The distance is 0 where both depend on the same observations in the same
    proportions, and 2 where they have none in common.
    """
    own = require(student.saliency, "a student's saliency")
    wanted = require(target.saliency, "a teacher's saliency")
    return (F.normalize(own, dim=-1) - F.normalize(wanted, dim=-1)).square().sum(dim=-1)
