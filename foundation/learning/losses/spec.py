"""A loss as the learner knows it: its function, and the outputs and parameters that it reads."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from foundation.config.distillation_cfg import Direction, FeatureDistance, FeatureHints, Labels
from foundation.core.errors import UserError, suggest
from foundation.core.registry import resolve_attribute
from foundation.policies.output import PolicyOutput


@dataclass
class LossParams:
    """Parameters that losses read; :class:`~foundation.config.distillation_cfg.LossCfg` documents each."""

    huber_delta: float = 1.0
    min_std: float = 0.01
    temperature: float = 1.0
    student_temperature: float = 1.0
    direction: Direction = "forward"
    smoothing: float = 0.0
    labels: Labels = "mean"
    feature_distance: FeatureDistance = "l2"
    feature_hints: FeatureHints = "each"
    layer_sizes: tuple[int, ...] = ()
    """Sizes of the teacher's layers that are concatenated in ``features``; empty: it is one layer."""
    choices: tuple[int, ...] = ()
    """Choices of each discrete action, whose scores lie side by side in ``logits``. Empty: there is at most one."""


LossFunction = Callable[[PolicyOutput, PolicyOutput, LossParams], torch.Tensor]
"""Takes the student's output, the teacher's targets and :class:`LossParams`; keyword-only arguments are parameters of
its own (``distill.loss.params``). Returns one value per sample."""


@dataclass(frozen=True)
class LossSpec:
    """A loss and the outputs that it reads."""

    name: str
    function: LossFunction
    student: tuple[str, ...] = ("mean",)
    """The student's outputs that it reads."""
    teacher: tuple[str, ...] = ("mean",)
    """The teacher's outputs that it reads."""
    continuous: frozenset[str] | None = frozenset()
    """Fields of :class:`LossParams` that it reads where actions are continuous. None: unknown, as of a user's own
    loss. A run warns of settings that no loss reads."""
    discrete: frozenset[str] | None = frozenset()
    """The same where actions are discrete."""
    optional: tuple[str, ...] = ()
    """Further outputs of the teacher that it reads from teachers that have them."""
    regresses_q: bool = False
    """Whether it takes the logits of teacher and student as Q-values, in units of the teacher's spread."""

    @property
    def reads_choices(self) -> bool:
        """Whether it reads the layer whose outputs are the actions, or the scores of the choices."""
        return not {"value", "features"} >= set(self.student)

    @property
    def trains_actions(self) -> bool:
        """Whether it compares actions, so that it can be the only loss."""
        return bool({"mean", "logits"} & set(self.student))

    @property
    def targets(self) -> tuple[str, ...]:
        """The teacher's outputs that the dataset stores for it."""
        return self.teacher + self.optional


LOSSES: dict[str, LossSpec] = {}


def loss(
    student: tuple[str, ...] = ("mean",),
    teacher: tuple[str, ...] = ("mean",),
    continuous: tuple[str, ...] = (),
    discrete: tuple[str, ...] = (),
    optional: tuple[str, ...] = (),
    regresses_q: bool = False,
) -> Callable[[LossFunction], LossFunction]:
    """Register a loss under its function's name.

    Args:
        student: The student's outputs that it reads.
        teacher: The teacher's outputs that it reads.
        continuous: Fields of :class:`LossParams` that it reads where actions are continuous.
        discrete: The same where actions are discrete.
        optional: Further outputs of the teacher that it reads from teachers that have them.
        regresses_q: Whether it takes the logits as Q-values, in units of the teacher's spread.
    """

    def register(function: LossFunction) -> LossFunction:
        name = getattr(function, "__name__", "loss")
        reads = frozenset(continuous), frozenset(discrete)
        LOSSES[name] = LossSpec(name, function, student, teacher, *reads, optional, regresses_q)
        return function

    return register


def loss_spec(name: str) -> LossSpec:
    """Return a loss by its name or ``"pkg.module:function"``.

    Raises:
        UserError: If there is no such loss.
    """
    if name in LOSSES:
        return LOSSES[name]
    if ":" not in name:
        raise UserError(f"Unknown loss '{name}'. {suggest(name, LOSSES)}")
    function = resolve_attribute(name, "loss", typed_as="loss=")
    # A function under @loss() has said what it reads, in whichever package it is; one without reads the means.
    known = next((spec for spec in LOSSES.values() if spec.function is function), None)
    return known or LossSpec(name, function, continuous=None, discrete=None)


def with_labels(spec: LossSpec, labels: Labels) -> LossSpec:
    """Return the loss for ``distill.loss.labels``: to sample labels, it reads the teacher's distribution too.

    That is the standard deviation of continuous actions, and the logits at a temperature of discrete ones.
    """
    if labels == "mean" or spec.continuous is None or "labels" not in spec.continuous:
        return spec
    discrete = None if spec.discrete is None else spec.discrete | {"temperature"}
    return replace(spec, teacher=(*spec.teacher, "std"), discrete=discrete)


def with_own_params(specs: Sequence[LossSpec], values: Mapping[str, float]) -> list[LossSpec]:
    """Bind the parameters that only one loss has: the keyword-only arguments of its function.

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
    """Raise if the main loss does not train the actions.

    Raises:
        UserError: Saying what to type.
    """
    if not spec.trains_actions:
        raise UserError(
            f"loss={spec.name} trains no actions, only the student's {spec.student[0]}: use it beside a loss that "
            f"does, as in loss=mse distill.loss.auxiliary={{{spec.name}: 0.5}}"
        )


_CONTINUOUS = ("mse", "huber")
_OF_CHOICES = "kl, nll, q_mse or soft_cross_entropy"


def check_choices(specs: Sequence[LossSpec], student: PolicyOutput, teacher: PolicyOutput) -> None:
    """Raise unless teacher, student and losses are all of continuous actions, or all of the same discrete ones.

    Args:
        specs: All terms.
        student: An output of the student.
        teacher: An output of the teacher.

    Raises:
        UserError: Saying what to set.
    """
    if teacher.logits is None and student.logits is None:
        wrong = [spec.name for spec in specs if "logits" in spec.teacher]
        if wrong:
            raise UserError(
                f"Loss '{wrong[0]}' compares the values of discrete actions, and these are continuous: use loss=mse, "
                "huber, nll or kl."
            )
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
    wrong = [spec.name for spec in specs if spec.name in _CONTINUOUS]
    if wrong:
        raise UserError(
            f"Loss '{wrong[0]}' compares continuous actions, and these are discrete: use loss={_OF_CHOICES}."
        )


def require(output: torch.Tensor | None, what: str) -> torch.Tensor:
    """Return an output that a loss reads.

    Args:
        output: The output. None: the policy does not have it.
        what: Its name in the message, such as "a teacher's std".

    Raises:
        UserError: If the policy does not have it.
    """
    if output is None:
        raise UserError(f"The loss reads {what}, which this policy does not have.")
    return output
