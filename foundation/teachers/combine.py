"""Several teachers for the same environment: one target from all their outputs."""

from __future__ import annotations

import torch

from foundation.core.errors import UserError
from foundation.policies.output import PolicyOutput

COMBINATIONS = ("mean", "uncertainty", "value", "gate")


def combine(output: PolicyOutput, how: str, temperature: float = 1.0, gate: torch.Tensor | None = None) -> PolicyOutput:
    """Combine the outputs of K teachers for the same observations.

    The weights w_k sum to one: equal for ``mean``; in proportion to 1 / std_k^2, action by action, for
    ``uncertainty`` (a teacher counts where it is sure); softmax(value_k / temperature) for ``value`` (the teacher that
    expects most from this state counts, which a low temperature makes the maximum over teachers); what a learned gate
    says for ``gate`` (see :mod:`foundation.teachers.gate`).

    The action is ``sum w_k mean_k``. The standard deviation, where teachers have one, is that of the mixture of their
    Gaussians, so that it grows where they disagree.

    Args:
        output: Fields of shape (num_teachers, rows, size).
        how: ``mean``, ``uncertainty``, ``value`` or ``gate``.
        temperature: Of ``value`` [units of return].
        gate: Weights for ``gate``. Shape: (rows, num_teachers).

    Returns:
        Fields of shape (rows, size).
    """
    refuse_discrete(output, how)
    mean = output.mean
    std = output.std
    value = output.value
    if how == "uncertainty":
        assert std is not None
        precision = std.square().reciprocal()
        weights = precision / precision.sum(0)
    elif how == "value":
        assert value is not None
        weights = torch.softmax(value / temperature, dim=0)
    elif how == "gate":
        assert gate is not None
        weights = gate.transpose(0, 1).unsqueeze(-1)
    else:
        weights = torch.full_like(mean[..., :1], 1.0 / mean.shape[0])
    target = (weights * mean).sum(0)
    if std is not None:
        spread = (weights * (std.square() + (mean - target).square())).sum(0)
        std = spread.sqrt()
    share = weights.mean(-1, keepdim=True)
    return PolicyOutput(
        mean=target,
        std=std,
        value=None if value is None else (share * value).sum(0),
        features=None if output.features is None else (share * output.features).sum(0),
    )


def refuse_discrete(output: PolicyOutput, how: str) -> None:
    """Raise ``UserError`` for teachers whose outputs are not continuous actions."""
    if output.logits is not None:
        raise UserError(f"distill.teacher.combine={how} is for continuous actions: these teachers give logits.")
