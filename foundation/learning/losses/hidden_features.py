"""Distance of hidden layers; the learner has mapped the student's to the teacher's sizes by linear adapters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from foundation.learning.losses.spec import LossParams, loss, require
from foundation.policies.output import PolicyOutput


@loss(
    student=("features",),
    teacher=("features",),
    continuous=("feature_distance", "feature_hints"),
    discrete=("feature_distance", "feature_hints"),
)
def feature(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Mean squared error of hidden features, or 1 - cosine, by ``feature_distance``; the mean over several layers.

    With ``feature_hints=residual`` each layer is compared with what the predictions of those before it leave of the
    teacher's one layer.
    """
    own = require(student.features, "features")
    wanted = require(target.features, "features")
    sizes = list(params.layer_sizes) or [wanted.shape[-1]]
    layers = list(zip(own.split(sizes, dim=-1), wanted.split(sizes, dim=-1), strict=True))
    if params.feature_hints == "residual":
        layers = _residuals(layers)
    if params.feature_distance == "cosine":
        distances = [1.0 - F.cosine_similarity(one, other, dim=-1) for one, other in layers]
    else:
        distances = [(one - other).square().mean(dim=-1) for one, other in layers]
    return distances[0] if len(distances) == 1 else torch.stack(distances).mean(dim=0)


def _residuals(layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Take from each layer's target what the predictions before it say; no gradient goes through these."""
    found = []
    known = torch.zeros_like(layers[0][1])
    for one, other in layers:
        found.append((one, other - known))
        known = known + one.detach()
    return found
