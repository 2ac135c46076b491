"""Negative log-likelihood of the teacher's action: its mean or best choice, or a draw of its distribution."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from foundation.learning.losses.bounded import beta_parameters, inside, squashed_parameters
from foundation.learning.losses.divergence import total
from foundation.learning.losses.spec import LossParams, loss, require
from foundation.policies.choices import parts_of
from foundation.policies.distribution import sample_output
from foundation.policies.output import PolicyOutput


@loss(
    student=("mean", "std"),
    continuous=("min_std", "labels"),
    discrete=("labels",),
    optional=("pre_tanh", "concentration"),
)
def nll(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Negative log-likelihood of the teacher's action (Rusu et al. 2015, eq. 1).

    Of the student's own distribution (Gaussian, squashed or Beta) for continuous actions, its std floored at
    ``min_std``: on the teacher's mean a learned std would go to zero. Cross-entropy with the teacher's best action for
    discrete ones. With ``labels=sampled`` a draw of the teacher's distribution, in every minibatch another one, takes
    the place of its mean, and of its best action (from softmax(Q_T / temperature)).
    """
    if target.logits is not None and student.logits is not None:
        pairs = [parts_of(output, params.choices) for output in (target.logits, student.logits)]
        return total([_cross_entropy(wanted, own, params) for wanted, own in zip(*pairs, strict=True)])
    action = target.mean
    if params.labels == "sampled":
        require(target.std, "a teacher's std")
        action = sample_output(target)
    if student.concentration is not None:
        return _beta_nll(student.concentration, action, params)
    if student.pre_tanh is not None:
        return _squashed_nll(student.pre_tanh, action, params)
    std = require(student.std, "a student's std").clamp_min(params.min_std)
    return _gaussian_nll(action, student.mean, std).sum(dim=-1)


def _cross_entropy(target: torch.Tensor, student: torch.Tensor, params: LossParams) -> torch.Tensor:
    """Return the cross-entropy with the labels of one discrete action. Shapes: (..., num_choices) twice to (...)."""
    return -(_choices(target, params) * F.log_softmax(student, dim=-1)).sum(dim=-1)


def _choices(logits: torch.Tensor, params: LossParams) -> torch.Tensor:
    """Return the labels, one-hot. Shape: (..., num_choices)."""
    if params.labels == "sampled":
        flat = (logits / params.temperature).softmax(dim=-1).flatten(0, -2)
        chosen = torch.multinomial(flat, 1).view(logits.shape[:-1])
    else:
        chosen = logits.argmax(dim=-1)
    return F.one_hot(chosen, logits.shape[-1]).to(logits.dtype)


def _gaussian_nll(action: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    standardised = (action - mean) / std
    return 0.5 * standardised.square() + std.log() + 0.5 * math.log(2.0 * math.pi)


def _squashed_nll(pre_tanh: torch.Tensor, action: torch.Tensor, params: LossParams) -> torch.Tensor:
    """Of a = tanh(u): that of u, and the logarithm of the slope da/du = 1 - a^2."""
    mean, std = squashed_parameters(pre_tanh, params.min_std)
    action = inside(action)
    return (_gaussian_nll(action.atanh(), mean, std) + (1.0 - action.square()).log()).sum(dim=-1)


def _beta_nll(concentration: torch.Tensor, action: torch.Tensor, params: LossParams) -> torch.Tensor:
    """Of a = 2 x - 1 with x of a Beta distribution, whose density is half of that of x."""
    alpha, beta = beta_parameters(concentration, params.min_std)
    share = (inside(action) + 1.0) / 2.0
    log_norm = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    density = (alpha - 1.0) * share.log() + (beta - 1.0) * (1.0 - share).log() - log_norm - math.log(2.0)
    return -density.sum(dim=-1)
