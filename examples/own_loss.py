"""A loss of your own: ``loss=own_loss:pinball distill.loss.params.level=0.9``, run in this folder."""

import torch

from foundation.learning.losses import LossParams
from foundation.policies.output import PolicyOutput


def pinball(student: PolicyOutput, target: PolicyOutput, params: LossParams, *, level: float = 0.5) -> torch.Tensor:
    """Pinball loss of the mean actions; its minimum is the quantile ``level``. Shapes: (..., num_actions) -> (...)."""
    error = target.mean - student.mean
    return torch.maximum(level * error, (level - 1.0) * error).mean(dim=-1)
