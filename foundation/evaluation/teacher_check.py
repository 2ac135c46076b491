"""Is the teacher worth learning from? Asked once, before it teaches, beside zero and random actions."""

from __future__ import annotations

import math

from foundation.config.distillation_cfg import TeacherCfg
from foundation.core.errors import UserError
from foundation.rollout.evaluate import EvaluationResult
from foundation.teachers.manifest import is_one_file

ONE_SIDED_95 = 1.645
"""Standard errors above which a difference is no accident, at 95 %."""


def check_teacher(results: dict[str, EvaluationResult], cfg: TeacherCfg) -> list[str]:
    """Stop a run whose teacher is no better than chance.

    "Better than random" means that the difference of the mean returns exceeds 1.645 of its standard error (Welch's
    test on one side, at 95 %): of teachers that play no better than random actions, one in twenty passes. With fewer
    than two episodes of each there is no standard error, and the greater mean is the better one.

    Args:
        results: Episodes of ``teacher``, ``zero`` and ``random``.
        cfg: ``min_return`` and ``check``.

    Returns:
        Lines to warn with.

    Raises:
        UserError: If the teacher is below ``min_return``, or no better than random actions while ``check`` is on.
    """
    teacher, zero, random = results["teacher"], results["zero"], results["random"]
    score = teacher.mean_return
    if cfg.min_return is not None and score < cfg.min_return:
        raise UserError(
            f"The teacher's mean return is {score:.2f}, below --teacher_min_return {cfg.min_return:g}: {_causes(cfg)}"
        )
    if not is_above(teacher, random):
        figures = f"{_figure(teacher)}, is not above that of random actions, {_figure(random)} (95 %)"
        finding = f"The teacher's mean return, {figures}"
        if not cfg.check:
            return [f"{finding}: {_causes(cfg)}"]
        if score == zero.mean_return == random.mean_return:
            finding += ", and zero actions return the same; if no action can change the return, turn this check off"
        raise UserError(
            f"{finding}: {_causes(cfg)} distill.teacher.check=false goes on all the same; --num_eval_episodes "
            f"(now {len(teacher.returns)}) makes the figures sharper."
        )
    if score < zero.mean_return:
        figures = f"{score:.2f}, is below that of zero actions, {_figure(zero)}"
        return [f"The teacher's mean return, {figures}: {_causes(cfg)}"]
    return []


def is_above(one: EvaluationResult, other: EvaluationResult) -> bool:
    """Say whether one mean return is above another by more than chance would have it."""
    difference = one.mean_return - other.mean_return
    if min(len(one.returns), len(other.returns)) < 2:
        return difference > 0.0
    squares = [float(result.returns.double().var()) / len(result.returns) for result in (one, other)]
    return difference > ONE_SIDED_95 * math.sqrt(sum(squares))


def _figure(result: EvaluationResult) -> str:
    interval = result.return_interval
    return f"{result.mean_return:.2f}" + (f" ± {interval:.2f}" if math.isfinite(interval) else "")


def _causes(cfg: TeacherCfg) -> str:
    groups = f" (now {', '.join(cfg.obs_groups)})" if cfg.obs_groups else ""
    path = f" '{cfg.checkpoint}'" if isinstance(cfg.checkpoint, str) and is_one_file(cfg.checkpoint) else ""
    return (
        f"check its observation groups distill.teacher.obs_groups{groups} and their order, its normaliser, its "
        "activation (distill.teacher.activation) and the scale and clipping of its actions; "
        f"teacher_info.py{path} prints what was understood of it."
    )
