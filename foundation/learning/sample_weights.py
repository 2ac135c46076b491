"""Weights of the samples of a minibatch by how much the choice of an action matters there."""

from __future__ import annotations

import torch

from foundation.config.distillation_cfg import LossCfg
from foundation.core.errors import UserError
from foundation.policies.output import PolicyOutput

MAX_DEVIATIONS = 3.0
"""Bound of an action gap above the mean of its minibatch [standard deviations]."""


def sample_weights(cfg: LossCfg, targets: PolicyOutput) -> torch.Tensor | None:
    """Return each sample's weight, 1 on average; None where all count alike.

    Args:
        cfg: Which weights.
        targets: The teacher's Q-values, or logits, of the whole minibatch. Shape: (..., num_choices).
    """
    if cfg.sample_weights == "none" or targets.logits is None:
        return None
    if cfg.sample_weights == "advantage":
        return advantage_weights(targets.logits)
    return action_gap_weights(targets.logits, cfg.gap_temperature)


def action_gap_weights(q_values: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the softmax over the minibatch of the action gap, the best Q-value less the second best.

    Gaps are heavy-tailed: one of 15 standard deviations would have all the weight of a minibatch. Beyond
    :data:`MAX_DEVIATIONS` above the mean they count as that.

    Args:
        q_values: Shape: (..., num_choices).
        temperature: Of the softmax [standard deviations of the gap in the minibatch].

    Returns:
        Shape: (...), 1 on average.
    """
    best = q_values.topk(2, dim=-1).values
    gap = best[..., 0] - best[..., 1]
    deviations = (gap - gap.mean()) / gap.std(correction=0).clamp_min(1e-8)
    bounded = deviations.clamp_max(MAX_DEVIATIONS) / temperature
    return bounded.flatten().softmax(dim=0).view_as(gap) * gap.numel()


def advantage_weights(q_values: torch.Tensor) -> torch.Tensor:
    """Return the best Q-value less the worst: what the worst choice costs (Bastani et al. 2018, VIPER, section 3.1).

    Args:
        q_values: Shape: (..., num_choices).

    Returns:
        Shape: (...), 1 on average.
    """
    cost = q_values.amax(dim=-1) - q_values.amin(dim=-1)
    return cost / cost.mean().clamp_min(1e-8)


def check_sample_weights(cfg: LossCfg, teacher: PolicyOutput) -> None:
    """Refuse weights by Q-values with a teacher that has none.

    Raises:
        UserError: Saying what to unset.
    """
    if cfg.sample_weights != "none" and teacher.logits is None:
        raise UserError(
            f"distill.loss.sample_weights={cfg.sample_weights} needs a teacher with values of discrete actions, and "
            "this teacher's actions are continuous: set distill.loss.sample_weights=none."
        )
