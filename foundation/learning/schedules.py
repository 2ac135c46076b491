"""Numbers that change over the epochs of a run."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from foundation.config.distillation_cfg import DistillationCfg, ScheduleCfg
from foundation.core.errors import UserError, suggest


def _constant(cfg: ScheduleCfg, progress: float, epoch: int) -> float:
    """``start``, throughout."""
    return cfg.start


def _linear(cfg: ScheduleCfg, progress: float, epoch: int) -> float:
    """A straight line from ``start`` to ``end``."""
    return cfg.start + (cfg.end - cfg.start) * progress


def _cosine(cfg: ScheduleCfg, progress: float, epoch: int) -> float:
    """Half a cosine from ``start`` to ``end``: flat at both ends."""
    return cfg.end + (cfg.start - cfg.end) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _exponential(cfg: ScheduleCfg, progress: float, epoch: int) -> float:
    """``start * (end / start) ** progress``: the same factor in every epoch; both must be above 0."""
    if cfg.start <= 0.0 or cfg.end <= 0.0:
        raise UserError(f"An exponential schedule needs start and end > 0, not {cfg.start} and {cfg.end}.")
    return cfg.start * (cfg.end / cfg.start) ** progress


def _points(cfg: ScheduleCfg) -> list[tuple[float, float]]:
    if not cfg.points:
        raise UserError(f"A {cfg.kind} schedule needs points, e.g. points=[[0,1.0],[50,0.1]].")
    return sorted(((float(at), float(value)) for at, value in cfg.points), key=lambda point: point[0])


def _step(cfg: ScheduleCfg, progress: float, epoch: int) -> float:
    """Of the last of ``points`` at or before this epoch."""
    points = _points(cfg)
    return next((value for at, value in reversed(points) if at <= epoch), points[0][1])


def _piecewise(cfg: ScheduleCfg, progress: float, epoch: int) -> float:
    """Straight lines from each of ``points`` to the next."""
    points = _points(cfg)
    if epoch <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if epoch < right:
            return low + (high - low) * (epoch - left) / (right - left)
    return points[-1][1]


KINDS: dict[str, Callable[[ScheduleCfg, float, int], float]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "exponential": _exponential,
    "piecewise": _piecewise,
    "step": _step,
}


def teacher_share(cfg: DistillationCfg, epoch: int) -> float:
    """Return the probability that the teacher acts in an episode of this epoch (``beta``).

    Args:
        cfg: The run's configuration.
        epoch: Counted from 0.

    Raises:
        UserError: If the schedule leaves [0, 1].
    """
    if cfg.collection.beta is None:
        mix = cfg.collection.teacher_student_mix
        return 1.0 if epoch < cfg.epoch_teacher_forcing else mix / (mix + 1.0)
    value = value_at(cfg.collection.beta, epoch, cfg.n_epochs)
    if not 0.0 <= value <= 1.0:
        raise UserError(f"distill.collection.beta is {value:g} at epoch {epoch}; a probability lies in [0, 1].")
    return value


def value_at(schedule: float | ScheduleCfg, epoch: int, num_epochs: int) -> float:
    """Return a schedule's value at an epoch.

    Args:
        schedule: A plain number, or a schedule.
        epoch: Counted from 0.
        num_epochs: Epochs of the run, the length of a schedule that names none.

    Returns:
        ``start`` at epoch 0, ``end`` from the last epoch of the schedule on.

    Raises:
        UserError: If the kind is unknown or its numbers do not fit it.
    """
    if not isinstance(schedule, ScheduleCfg):
        return float(schedule)
    if schedule.kind not in KINDS:
        raise UserError(f"Unknown schedule kind '{schedule.kind}'. {suggest(schedule.kind, KINDS)}")
    last = max(1, (schedule.epochs or num_epochs) - 1)
    return KINDS[schedule.kind](schedule, min(1.0, epoch / last), epoch)
