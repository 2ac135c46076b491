"""Distance of hidden layers; the learner has mapped the student's to the teacher's sizes by linear adapters."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from foundation.learning.losses.spec import LossParams, loss, require
from foundation.policies.output import PolicyOutput


@loss(
    student=("features",),
    teacher=("features",),
    continuous=("feature_distance",),
    discrete=("feature_distance",),
)
def feature(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Mean squared error of hidden features, or 1 - cosine, by ``feature_distance``; the mean over several layers."""
    own = require(student.features, "features")
    wanted = require(target.features, "features")
    sizes = list(params.layer_sizes) or [wanted.shape[-1]]
    layers = zip(own.split(sizes, dim=-1), wanted.split(sizes, dim=-1), strict=True)
    if params.feature_distance == "cosine":
        distances = [1.0 - F.cosine_similarity(one, other, dim=-1) for one, other in layers]
    else:
        distances = [(one - other).square().mean(dim=-1) for one, other in layers]
    return distances[0] if len(distances) == 1 else torch.stack(distances).mean(dim=0)
