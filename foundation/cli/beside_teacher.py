"""The teacher that a played student is measured beside: that of its run, or one that is named."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from foundation.cli.played_policy import PlayedPolicy
from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint
from foundation.engines.base import VecEnv
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import teacher_selector
from foundation.rollout.joints import fit_joints
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.manifest import is_one_file

logger = logging.getLogger("foundation.play")

_SETTINGS = (
    "activation", "distribution", "outputs", "head", "action_range", "strict", "obs_groups", "joint_order"
)  # fmt: skip
"""What a run's config says of its teacher's checkpoint."""


def find_teacher(played: PlayedPolicy, typed: str | None) -> TeacherPolicyWrapper | None:
    """Read the teacher; None, with one line that says why, where a run's own cannot be read.

    Args:
        played: The student.
        typed: ``--teacher``; None: the one of its run.
    """
    if typed is not None:
        return TeacherPolicyWrapper(typed, played.device)
    settings = _of_run(played)
    spec = settings.get("checkpoint")
    if spec is None:
        logger.info("no teacher is known of this policy: it is measured alone (--teacher FILE names one)")
        return None
    if not isinstance(spec, str) or not is_one_file(spec) or not Path(spec).exists():
        what = f"'{spec}' is not there" if isinstance(spec, str) and is_one_file(spec) else "the run has several"
        logger.warning("the teacher is left out, as %s: --teacher FILE names one", what)
        return None
    said = {name: settings[name] for name in _SETTINGS if settings.get(name) is not None}
    teacher = TeacherPolicyWrapper(spec, played.device, **said)
    teacher.obs_slice = settings.get("obs_slice") or teacher.obs_slice
    return teacher


def _of_run(played: PlayedPolicy) -> dict[str, Any]:
    """Return what the run of a student says of its teacher; nothing for a policy of another kind."""
    if played.checkpoint is None:
        return {}
    try:
        values = load_checkpoint(played.checkpoint)
    except UserError:  # the policy could be read: its file is of another kind
        return {}
    own = values.get("distillation")
    teacher = own.get("teacher") if isinstance(own, dict) else None
    return teacher if isinstance(teacher, dict) else {}


def teacher_actor(teacher: TeacherPolicyWrapper, env: VecEnv, task: str) -> PolicyActor:
    """Return the teacher as an actor in the student's environment.

    Raises:
        UserError: If it reads or gives another number of values than the task has.
    """
    obs = env.get_observations()
    selector = teacher_selector(teacher, obs, teacher.obs_groups, teacher.obs_slice)
    selector.check(obs, "teacher", teacher.num_obs)
    if teacher.num_actions != env.num_actions:
        raise UserError(
            f"the teacher has {teacher.num_actions} actions but the task '{task}' takes {env.num_actions}: "
            "--teacher FILE names another one"
        )
    for line in fit_joints(teacher, env, task, list(selector.groups), teacher.obs_slice):
        logger.info("%s", line)
    return PolicyActor(teacher, selector)
