"""Check of the teacher before it teaches: is it better than zero and random actions?"""

from __future__ import annotations

import math
from collections.abc import Sequence

from foundation.config.distillation_cfg import TeacherCfg
from foundation.core.errors import UserError
from foundation.core.program import command_name
from foundation.rollout.evaluate import EvaluationResult
from foundation.teachers.manifest import is_one_file

ONE_SIDED_95 = 1.645
"""Standard errors above which a difference is no accident, at 95 %."""


SMALL_EFFECT = 0.8
"""Standard deviations of the episodes' returns below which a teacher is barely better than no policy: a large effect is
above it (Cohen 1988)."""
SMALL_SHARE = 0.1
"""Share of the way from no policy to the task's solved return below which a teacher has learned next to nothing."""
SMALL_PART = 0.01
"""Part of a return below which a gain is next to nothing where returns are the same in every episode."""
ROUNDING = 1e-5
"""Spread, as a part of the return, that float32's sums over an episode may have."""


def check_teacher(
    results: dict[str, EvaluationResult],
    cfg: TeacherCfg,
    solved_return: float | None = None,
    joints: Sequence[str] = (),
) -> list[str]:
    """Stop a run whose teacher is no better than no policy, and warn of one that is barely better.

    "Better" means that the difference of the mean returns exceeds 1.645 of its standard error (Welch's test on one
    side, at 95 %): of teachers that play no better than random actions, one in twenty passes. With fewer than two
    episodes of each there is no standard error, and the greater mean is the better one. A difference that is no
    accident may still be tiny: it is compared with the way to ``solved_return``, or, where the task declares none,
    with the spread of the episodes.

    Args:
        results: Episodes of ``teacher``, ``zero`` and ``random``.
        cfg: ``min_return`` and ``check``.
        solved_return: The mean return at which the task counts as solved, where it declares one.
        joints: Joints of the actions, where they have names: the teacher's may be in another order.

    Returns:
        Lines to warn with.

    Raises:
        UserError: If the teacher is below ``min_return``, or, while ``check`` is on, no better than random actions or
            worse than zero actions.
    """
    teacher = results["teacher"]
    zero = results["zero"]
    random = results["random"]
    causes = _causes(cfg, joints)
    score = teacher.mean_return
    if cfg.min_return is not None and score < cfg.min_return:
        raise UserError(
            f"The teacher's mean return is {score:.2f}, below --teacher_min_return {cfg.min_return:g}: {causes}"
        )
    finding = ""
    if not is_above(teacher, random):
        figures = f"{_figure(teacher)}, is not above that of random actions, {_figure(random)} (95 %)"
        finding = f"The teacher's mean return, {figures}"
        if cfg.check and score == zero.mean_return == random.mean_return:
            finding += ", and zero actions return the same; if no action can change the return, turn this check off"
    elif is_above(zero, teacher):
        figures = f"{_figure(teacher)}, is below that of zero actions, {_figure(zero)} (95 %)"
        finding = f"The teacher's mean return, {figures}"
    if finding and cfg.check:
        raise UserError(
            f"{finding}: {causes} distill.teacher.check=false goes on all the same; --num_eval_episodes "
            f"(now {len(teacher.returns)}) makes the figures sharper."
        )
    if finding:
        return [f"{finding}: {causes}"]
    warnings = _barely_better(results, solved_return)
    if teacher.success is not None and not bool(teacher.success.any()):
        warnings.append(
            f"The teacher's success is 0 % in {len(teacher.returns)} episodes: a student learns no more than it knows."
        )
    return [f"{' '.join(warnings)} If that is not what you expect, {causes}"] if warnings else []


def _barely_better(results: dict[str, EvaluationResult], solved_return: float | None) -> list[str]:
    """Return a sentence if the teacher is above no policy by less than matters."""
    teacher = results["teacher"]
    name, floor = max(
        (("zero actions", results["zero"]), ("random actions", results["random"])), key=lambda pair: pair[1].mean_return
    )
    gain = teacher.mean_return - floor.mean_return
    beside = f"The teacher's mean return, {_figure(teacher)}, is barely above that of {name}, {_figure(floor)}"
    way = 0.0 if solved_return is None else solved_return - floor.mean_return
    if way > 0.0:  # else doing nothing solves the task, and the way says nothing
        if gain >= SMALL_SHARE * way:
            return []
        return [f"{beside}: {100.0 * gain / way:.1f} % of the way to the task's solved return {solved_return:.2f}."]
    if min(len(teacher.returns), len(floor.returns)) < 2:
        return []
    spread = math.sqrt(0.5 * sum(float(result.returns.double().var()) for result in (teacher, floor)))
    size = max(abs(teacher.mean_return), abs(floor.mean_return))
    if spread <= ROUNDING * size:
        small = 0.0 < gain < SMALL_PART * size
        return [f"{beside}: {100.0 * gain / size:.2g} % of it, the same in every episode."] if small else []
    if gain >= SMALL_EFFECT * spread:
        return []
    return [f"{beside}: {gain / spread:.1f} of the standard deviation of an episode's return."]


def is_above(one: EvaluationResult, other: EvaluationResult) -> bool:
    """Return whether one mean return is above another by more than chance would have it."""
    difference = one.mean_return - other.mean_return
    if min(len(one.returns), len(other.returns)) < 2:
        return difference > 0.0
    squares = [float(result.returns.double().var()) / len(result.returns) for result in (one, other)]
    return difference > ONE_SIDED_95 * math.sqrt(sum(squares))


def _figure(result: EvaluationResult) -> str:
    interval = result.return_interval
    return _number(result.mean_return) + (f" ± {_number(interval)}" if math.isfinite(interval) else "")


def _number(value: float) -> str:
    """Write two decimals, or two digits of a number that they do not show."""
    return f"{value:.2g}" if 0.0 < abs(value) < 0.1 else f"{value:.2f}"


def _causes(cfg: TeacherCfg, joints: Sequence[str]) -> str:
    groups = f" (now {', '.join(cfg.obs_groups)})" if cfg.obs_groups else ""
    path = f" '{cfg.checkpoint}'" if isinstance(cfg.checkpoint, str) and is_one_file(cfg.checkpoint) else ""
    named = [name for name in joints if name]
    order = ""
    if named and cfg.joint_order is None:
        order = f"the order of its joints (distill.teacher.joint_order=[...]; here it is {', '.join(named)}), "
    return (
        f"check its observation groups distill.teacher.obs_groups{groups} and their order, {order}its normaliser, its "
        "activation (distill.teacher.activation) and the scale and clipping of its actions; "
        f"{command_name('teacher_info.py')}{path} prints what was understood of it."
    )
