"""Attention transfer: the student's action is to depend on the same observations as the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from foundation.learning.losses.spec import LossParams, got, loss
from foundation.policies.output import PolicyOutput


@loss(student=("saliency",), teacher=("saliency",))
def attention(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Squared distance of the saliency maps, each of length 1 (Zagoruyko and Komodakis 2017, gradient-based).

    A map has, for each observation that both see, the norm of the action's derivative by it, in units of the
    observation's own deviation. 0 where the action depends on the same observations in the same proportions, 2 where
    it depends on others altogether.
    """
    own, wanted = got(student.saliency, "a student's saliency"), got(target.saliency, "a teacher's saliency")
    return (F.normalize(own, dim=-1) - F.normalize(wanted, dim=-1)).square().sum(dim=-1)
