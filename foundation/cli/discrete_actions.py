"""Check discrete actions: teacher, student and task must have the same choices, and the loss must compare choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.resolve import DEFAULT, Choice
from foundation.core.errors import UserError
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.policies.choices import NumChoices, sizes_of
from foundation.students.base import NetworkCfg
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.ensemble import TeacherEnsemble

LOSS = "kl"
"""Loss for discrete actions where none was chosen: the best of the three that Rusu et al. (2015) compare."""
_CONTINUOUS = "mse"


def choose_discrete(
    cfg: DistillationCfg,
    choices: Mapping[str, Choice],
    teacher: TeacherPolicyWrapper | TeacherEnsemble,
    env: VecEnv,
) -> str:
    """Fill in the student's choices and a loss, where the actions are discrete and neither was given.

    Args:
        cfg: Its ``student.num_choices`` and ``loss.name`` are set.
        choices: Origin of each choice, the loss among them.
        teacher: The teacher.
        env: The environment; it declares ``action_choices`` where it takes indices.

    Returns:
        A line for the console; "" where actions are continuous.

    Raises:
        UserError: If the teacher's actions are not the task's.
    """
    found = check_choices(getattr(teacher, "num_choices", None), env, f"task '{cfg.task}'", "teacher")
    student = cfg.student
    if found is None or not isinstance(student, NetworkCfg):
        return ""
    if student.num_choices is None:
        student.num_choices = found
    if cfg.loss.name == _CONTINUOUS and "loss" in choices and choices["loss"].chosen.startswith(DEFAULT):
        cfg.loss.name = LOSS
    return f"Discrete actions: {listed(sizes_of(found))} choices, loss {cfg.loss.name}"


def check_choices(found: NumChoices, env: VecEnv, task: str, role: str) -> NumChoices:
    """Compare a policy's choices with those of a task.

    Args:
        found: The policy's choices; None where its actions are continuous.
        env: The environment. What it does not declare is not checked.
        task: What the message calls the task.
        role: What it calls the policy, such as "teacher".

    Returns:
        The choices; None where actions are continuous.

    Raises:
        UserError: Naming both sides.
    """
    declared = EnvCapabilities.of(env)
    offered = declared.action_choices
    own = sizes_of(found)
    if offered is None:
        if own and declared.action_range is not None:
            raise UserError(
                f"the {role} chooses one of {listed(own)} actions and {task} takes {env.num_actions} numbers"
            )
        return found
    if own == tuple(offered):
        return found
    takes = (
        f"one of {offered[0]} actions" if len(offered) == 1 else f"{len(offered)} choices at once ({listed(offered)})"
    )
    if not own:
        raise UserError(f"the {role}'s actions are continuous and {task} takes {takes}")
    makes = f"chooses one of {own[0]} actions" if len(own) == 1 else f"makes {len(own)} choices at once ({listed(own)})"
    raise UserError(f"the {role} {makes} and {task} takes {takes}")


def listed(sizes: Sequence[int]) -> str:
    """Write the choices of each action, as "3 x 2"."""
    return " x ".join(map(str, sizes))
