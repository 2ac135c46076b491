"""Divergences between the distributions of teacher and student, analytic wherever they have a closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from foundation.core.errors import UserError
from foundation.learning.losses.bounded import beta_parameters, squashed_parameters
from foundation.learning.losses.spec import LossParams, loss, require
from foundation.policies.choices import parts_of
from foundation.policies.output import PolicyOutput

Moments = tuple[torch.Tensor, torch.Tensor]
"""Means and standard deviations, or alphas and betas. Shape of each: (..., num_actions)."""
_Divergence = Callable[[Moments, Moments], torch.Tensor]
REACH = 6.0
"""Expectations are sums over equidistant nodes up to so many standard deviations from the mean, which for analytic
integrands converges exponentially with their number (Trefethen and Weideman 2014)."""
NUM_NODES = 97
"""Eight a standard deviation: exact to 1e-6 where neither is five times as wide as the other, to 1e-4 at ten times."""


@loss(
    student=("mean", "std"),
    teacher=("mean", "std"),
    continuous=("min_std", "direction", "smoothing"),
    discrete=("temperature", "student_temperature", "direction"),
    optional=("pre_tanh", "concentration"),
)
def kl(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """KL(teacher || student), analytic in the distributions (Rusu et al. 2015, eq. 3).

    Closed form for diagonal Gaussians, before tanh where both are squashed (a bijection changes no divergence), and
    for Beta distributions; softmax(Q_T / temperature) against the student's softmax for discrete actions, the sum over
    several of them. With ``direction=reverse`` KL(student || teacher). With ``jensen_shannon`` the mean divergence from
    their even mixture, the sum over the actions: exact for discrete actions, by quadrature for Gaussians, and an error
    for Beta distributions.
    """
    if target.logits is not None and student.logits is not None:
        tempered = parts_of(target.logits / params.temperature, params.choices)
        pairs = zip(tempered, student_log_softmaxes(student, params), strict=True)
        return total([_discrete(F.log_softmax(part, dim=-1), log_q, params.direction) for part, log_q in pairs])
    if student.concentration is not None:
        wanted = _same_family(target.concentration, "Beta")
        parts = [beta_parameters(output, params.min_std) for output in (wanted, student.concentration)]
        return _directed(parts[0], parts[1], params, beta_kl)
    if student.pre_tanh is not None:
        wanted = _same_family(target.pre_tanh, "squashed Gaussian")
        parts = [squashed_parameters(output, params.min_std) for output in (wanted, student.pre_tanh)]
        return _directed(parts[0], parts[1], params, gaussian_kl)
    std_t = require(target.std, "a teacher's std").clamp_min(params.min_std)
    std_s = require(student.std, "a student's std").clamp_min(params.min_std)
    return _directed((target.mean, std_t), (student.mean, std_s), params, gaussian_kl)


@loss(student=("logits",), teacher=("logits",), discrete=("temperature", "student_temperature"))
def soft_cross_entropy(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Cross-entropy -sum p_T log p_S: the discrete KL up to the teacher's entropy."""
    tempered = parts_of(require(target.logits, "logits") / params.temperature, params.choices)
    pairs = zip(tempered, student_log_softmaxes(student, params), strict=True)
    return total([-(F.softmax(part, dim=-1) * log_q).sum(dim=-1) for part, log_q in pairs])


def student_log_softmaxes(student: PolicyOutput, params: LossParams) -> list[torch.Tensor]:
    """Return the logarithms of the student's probabilities, of each discrete action. Shape of each: (..., size)."""
    tempered = require(student.logits, "logits") / params.student_temperature
    return [F.log_softmax(part, dim=-1) for part in parts_of(tempered, params.choices)]


def total(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sum over independent actions. Shape of each, and of the sum: (...)."""
    return parts[0] if len(parts) == 1 else torch.stack(list(parts)).sum(dim=0)


def _discrete(log_p: torch.Tensor, log_q: torch.Tensor, direction: str) -> torch.Tensor:
    if direction == "forward":
        return (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    if direction == "reverse":
        return (log_q.exp() * (log_q - log_p)).sum(dim=-1)
    log_mixture = torch.logaddexp(log_p, log_q) - math.log(2.0)
    terms = log_p.exp() * (log_p - log_mixture) + log_q.exp() * (log_q - log_mixture)
    return 0.5 * terms.sum(dim=-1)


def _directed(teacher: Moments, student: Moments, params: LossParams, divergence: _Divergence) -> torch.Tensor:
    if params.direction == "forward":
        return divergence(teacher, student)
    if params.direction == "reverse":
        return divergence(student, teacher)
    if divergence is not gaussian_kl:
        raise UserError(
            "distill.loss.direction=jensen_shannon has no form for Beta distributions: use forward or reverse."
        )
    return gaussian_js(teacher, student, params.smoothing).sum(dim=-1)


def _same_family(target: torch.Tensor | None, family: str) -> torch.Tensor:
    if target is None:
        raise UserError(
            f"Loss 'kl' compares distributions of one family, and this student's is a {family} on [-1, 1] while the "
            "teacher's is not: use loss=nll, mse or huber, or distill.student.distribution=gaussian."
        )
    return target


def gaussian_kl(p: Moments, q: Moments) -> torch.Tensor:
    """Return KL(p || q) of diagonal Gaussians. Shape: (...)."""
    ratio = (p[1] / q[1]).square()
    distance = ((p[0] - q[0]) / q[1]).square()
    return (0.5 * (ratio + distance - 1.0) - 0.5 * ratio.log()).sum(dim=-1)


def beta_kl(p: Moments, q: Moments) -> torch.Tensor:
    """Return KL(p || q) of independent Beta distributions. Shape: (...)."""
    log_norms = [torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b) for a, b in (p, q)]
    first = (p[0] - q[0]) * torch.digamma(p[0])
    second = (p[1] - q[1]) * torch.digamma(p[1])
    total = (q[0] - p[0] + q[1] - p[1]) * torch.digamma(p[0] + p[1])
    return (log_norms[1] - log_norms[0] + first + second + total).sum(dim=-1)


def gaussian_js(p: Moments, q: Moments, smoothing: float = 0.0) -> torch.Tensor:
    """Return the Jensen-Shannon divergence of Gaussians, of each action by itself [nats], within [0, ln 2].

    A mixture of Gaussians has no closed form: 0.5 E_p[ln p/m] + 0.5 E_q[ln q/m] with m = (p + q) / 2 is integrated
    numerically. Of whole Gaussians of many actions that hardly overlap, the divergence is ln 2 wherever one mean is
    moved; action by action each mean has a gradient of its own. Where both do not overlap in one action either, that
    vanishes too, unless both are convolved with the same noise (Arjovsky and Bottou 2017, section 3).

    Args:
        p: Means and standard deviations. Shape of each: (..., num_actions).
        q: Means and standard deviations. Shape of each: (..., num_actions).
        smoothing: Standard deviation of the noise; 0: none.

    Returns:
        Shape: (..., num_actions).
    """
    if smoothing > 0.0:
        p, q = ((mean, (std.square() + smoothing**2).sqrt()) for mean, std in (p, q))
    nodes = torch.linspace(-REACH, REACH, NUM_NODES, device=p[0].device, dtype=p[0].dtype)
    weights = (-0.5 * nodes.square()).softmax(dim=0)
    terms = []
    for (mean, std), (other_mean, other_std) in ((p, q), (q, p)):
        from_other = (mean - other_mean).unsqueeze(-1) + std.unsqueeze(-1) * nodes
        of_other = -0.5 * (from_other / other_std.unsqueeze(-1)).square()
        log_ratio = of_other + 0.5 * nodes.square() + (std / other_std).log().unsqueeze(-1)
        terms.append(math.log(2.0) - F.softplus(log_ratio) @ weights)  # ln p/m = ln 2 - ln(1 + q/p)
    return 0.5 * (terms[0] + terms[1])
