"""Distillation losses: pure functions of the student's output and the teacher's targets, one value per sample.

Masks and weights are the learner's business. A function added here under :func:`loss` can be chosen by its name; a
function of a user's own package by ``"pkg.module:function"``.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from foundation.core.errors import UserError, suggest
from foundation.core.registry import resolve_attribute
from foundation.policies.output import PolicyOutput


@dataclass
class LossParams:
    """Numbers that losses read."""

    huber_delta: float = 1.0
    min_std: float = 0.01
    temperature: float = 1.0
    student_temperature: float = 1.0


LossFunction = Callable[[PolicyOutput, PolicyOutput, LossParams], torch.Tensor]
"""Takes the student's output, the teacher's targets and :class:`LossParams`; keyword-only arguments are parameters of
its own (``distill.loss.params``). Returns one value per sample."""


@dataclass(frozen=True)
class LossSpec:
    """A loss and the outputs that it reads."""

    name: str
    function: LossFunction
    student: tuple[str, ...] = ("mean",)
    teacher: tuple[str, ...] = ("mean",)
    continuous: frozenset[str] | None = frozenset()
    """Fields of :class:`LossParams` that it reads of continuous actions. None: unknown, of a user's own loss."""
    discrete: frozenset[str] | None = frozenset()
    """The same of discrete actions."""

    @property
    def trains_actions(self) -> bool:
        """Whether it reaches the student's action head."""
        return bool({"mean", "logits"} & set(self.student))


LOSSES: dict[str, LossSpec] = {}


def loss(
    student: tuple[str, ...] = ("mean",),
    teacher: tuple[str, ...] = ("mean",),
    continuous: tuple[str, ...] = (),
    discrete: tuple[str, ...] = (),
) -> Callable[[LossFunction], LossFunction]:
    """Register a loss under its function's name.

    Args:
        student: The student's outputs that it reads.
        teacher: The teacher's outputs that it reads.
        continuous: Fields of :class:`LossParams` that it reads of continuous actions.
        discrete: The same of discrete actions.
    """

    def register(function: LossFunction) -> LossFunction:
        name = getattr(function, "__name__", "loss")
        LOSSES[name] = LossSpec(name, function, student, teacher, frozenset(continuous), frozenset(discrete))
        return function

    return register


def loss_spec(name: str) -> LossSpec:
    """Look a loss up by name or ``"pkg.module:function"``.

    Raises:
        UserError: If there is none.
    """
    if name in LOSSES:
        return LOSSES[name]
    if ":" not in name:
        raise UserError(f"Unknown loss '{name}'. {suggest(name, LOSSES)}")
    function = resolve_attribute(name, "loss", typed_as="loss=")
    known = next((spec for spec in LOSSES.values() if spec.function is function), None)
    return known or LossSpec(name, function, continuous=None, discrete=None)


def with_own_params(specs: Sequence[LossSpec], values: Mapping[str, float]) -> list[LossSpec]:
    """Set the parameters that losses have of their own: the keyword-only arguments of their functions.

    Args:
        specs: All terms.
        values: ``distill.loss.params``; each goes to every loss that has a parameter of its name.

    Raises:
        UserError: If no loss has such a parameter, or one without a default is not given.
    """
    own = {spec.name: _own_params(spec.function) for spec in specs}
    known = {name for params in own.values() for name in params}
    for name in values:
        if name not in known:
            losses = " and ".join(spec.name for spec in specs)
            raise UserError(f"distill.loss.params.{name}: loss={losses} has no such parameter. {suggest(name, known)}")
    bound = []
    for spec in specs:
        params = own[spec.name]
        missing = [name for name, has_default in params.items() if not has_default and name not in values]
        if missing:
            raise UserError(f"loss={spec.name} needs distill.loss.params.{missing[0]}=NUMBER")
        given = {name: values[name] for name in params if name in values}
        bound.append(replace(spec, function=functools.partial(spec.function, **given)) if given else spec)
    return bound


def _own_params(function: LossFunction) -> dict[str, bool]:
    """Return the names of a function's keyword-only arguments, and whether each has a default."""
    try:
        params = inspect.signature(function).parameters.values()
    except ValueError:  # a function written in C may have no signature
        return {}
    return {p.name: p.default is not p.empty for p in params if p.kind is p.KEYWORD_ONLY}


def check_main_loss(spec: LossSpec) -> None:
    """Refuse a main loss that trains no action head.

    Raises:
        UserError: Saying what to type.
    """
    if not spec.trains_actions:
        raise UserError(
            f"loss={spec.name} trains no actions, only the student's {spec.student[0]}: use it beside a loss that "
            f"does, as in loss=mse distill.loss.auxiliary={{{spec.name}: 0.5}}"
        )


def check_choices(names: Sequence[str], student: PolicyOutput, teacher: PolicyOutput) -> None:
    """Refuse a student and losses that do not fit the discrete actions of a teacher, or the other way round.

    Raises:
        UserError: Saying what to set.
    """
    if teacher.logits is None and student.logits is None:
        return
    if teacher.logits is None:
        raise UserError("The student chooses among discrete actions and the teacher does not: unset num_choices.")
    count = teacher.logits.shape[-1]
    if student.logits is None or student.logits.shape[-1] != count:
        found = "continuous actions" if student.logits is None else f"{student.logits.shape[-1]} choices"
        raise UserError(
            f"The teacher chooses among {count} discrete actions and the student has {found}: "
            f"set distill.student.num_choices={count}."
        )
    wrong = [name for name in names if name in ("mse", "huber")]
    if wrong:
        raise UserError(
            f"Loss '{wrong[0]}' compares continuous actions, and these are discrete: use loss=kl, nll, q_mse or "
            "soft_cross_entropy."
        )


def _one_hot_argmax(logits: torch.Tensor) -> torch.Tensor:
    return F.one_hot(logits.argmax(dim=-1), logits.shape[-1]).to(logits.dtype)


def _got(value: torch.Tensor | None, what: str) -> torch.Tensor:
    if value is None:
        raise UserError(f"The loss reads {what}, which this policy does not have.")
    return value


@loss()
def mse(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Mean squared error of the mean actions. Shapes: (..., num_actions) -> (...)."""
    return (student.mean - target.mean).square().mean(dim=-1)


@loss(continuous=("huber_delta",))
def huber(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Huber loss of the mean actions, linear beyond ``huber_delta``. Shapes: (..., num_actions) -> (...)."""
    return F.huber_loss(student.mean, target.mean, reduction="none", delta=params.huber_delta).mean(dim=-1)


@loss(student=("mean", "std"), continuous=("min_std",))
def nll(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Negative log-likelihood of the teacher's action (Rusu et al. 2015, eq. 1).

    Gaussian for continuous actions, the student's std floored at ``min_std``: on the teacher's mean a learned std
    would go to zero. Cross-entropy with the teacher's best action for discrete ones.
    """
    if target.logits is not None and student.logits is not None:
        return -(_one_hot_argmax(target.logits) * F.log_softmax(student.logits, dim=-1)).sum(dim=-1)
    std = _got(student.std, "a student's std").clamp_min(params.min_std)
    standardised = (target.mean - student.mean) / std
    return (0.5 * standardised.square() + std.log() + 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)


@loss(student=("logits",), teacher=("logits",))
def q_mse(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Mean squared error of the Q-values (Rusu et al. 2015, eq. 2). Shapes: (..., num_choices) -> (...)."""
    return (_got(student.logits, "Q-values") - _got(target.logits, "Q-values")).square().mean(dim=-1)


@loss(
    student=("mean", "std"),
    teacher=("mean", "std"),
    continuous=("min_std",),
    discrete=("temperature", "student_temperature"),
)
def kl(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """KL(teacher || student), analytic in the distributions (Rusu et al. 2015, eq. 3).

    Closed form for diagonal Gaussians; softmax(Q_T / temperature) against the student's softmax for discrete actions.
    """
    if target.logits is not None and student.logits is not None:
        log_p = F.log_softmax(target.logits / params.temperature, dim=-1)
        return (log_p.exp() * (log_p - _student_log_softmax(student, params))).sum(dim=-1)
    std_t = _got(target.std, "a teacher's std").clamp_min(params.min_std)
    std_s = _got(student.std, "a student's std").clamp_min(params.min_std)
    ratio = (std_t / std_s).square()
    distance = ((target.mean - student.mean) / std_s).square()
    return (0.5 * (ratio + distance - 1.0) - 0.5 * ratio.log()).sum(dim=-1)


@loss(student=("logits",), teacher=("logits",), discrete=("temperature", "student_temperature"))
def soft_cross_entropy(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Cross-entropy -sum p_T log p_S: the discrete KL up to the teacher's entropy."""
    p = F.softmax(_got(target.logits, "logits") / params.temperature, dim=-1)
    return -(p * _student_log_softmax(student, params)).sum(dim=-1)


def _student_log_softmax(student: PolicyOutput, params: LossParams) -> torch.Tensor:
    return F.log_softmax(_got(student.logits, "logits") / params.student_temperature, dim=-1)


@loss(student=("value",), teacher=("value",))
def value(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Squared error of the state value. Shapes: (..., 1) -> (...)."""
    return (_got(student.value, "a student's value") - _got(target.value, "a teacher's value")).square().mean(dim=-1)


@loss(student=("value",), teacher=("value",))
def value_l1(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Absolute error of the state value. Shapes: (..., 1) -> (...)."""
    return (_got(student.value, "a student's value") - _got(target.value, "a teacher's value")).abs().mean(dim=-1)


@loss(student=("features",), teacher=("features",))
def feature(student: PolicyOutput, target: PolicyOutput, params: LossParams) -> torch.Tensor:
    """Squared error of hidden features, the student's already through the learner's linear adapter."""
    return (_got(student.features, "features") - _got(target.features, "features")).square().mean(dim=-1)
