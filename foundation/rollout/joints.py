"""Let a teacher act in an environment whose joints are in another order than those that it was trained with."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from foundation.config.joint_columns import JointBlock, JointColumns
from foundation.core.errors import UserError
from foundation.engines.base import VecEnv
from foundation.engines.joint_terms import joint_columns
from foundation.policies.info import PolicyInfo
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.ensemble import TeacherEnsemble
from foundation.teachers.joint_order import TYPED, JointOrder, action_permutation, check_order, moved, permutation

logger = logging.getLogger("foundation.joints")


def fit_joints(
    teacher: TeacherPolicyWrapper | TeacherEnsemble,
    env: VecEnv,
    task: str,
    groups: Sequence[str],
    obs_slice: Sequence[int] | None = None,
) -> list[str]:
    """Permute what a policy reads and gives, where the order of its joints is known and is not the environment's.

    Args:
        teacher: The policy, or several teachers, each with an order of its own; changed in place.
        env: The environment that it acts in.
        task: The task, which may name columns.
        groups: Observation groups that it reads, in order.
        obs_slice: ``[a, b]``: columns of them that it reads. None: all.

    Returns:
        A line for each teacher whose joints are moved.

    Raises:
        UserError: If its joints are not the environment's, or the columns have no names.
    """
    teacher.joints = None
    infos = teacher.infos if isinstance(teacher, TeacherEnsemble) else [teacher.info]
    names = teacher.names if isinstance(teacher, TeacherEnsemble) else [""]
    if not any(info.joint_order for info in infos):
        return []
    columns = joint_columns(env, task, env.get_observations())
    if columns is None:
        return _without_names(infos)
    found = [_permutations(info, teacher, columns, groups, obs_slice) for info in infos]
    lines = [line for line in map(_line, infos, names, [columns] * len(infos)) if line]
    if lines:
        single = isinstance(teacher, TeacherPolicyWrapper)
        obs, actions = (torch.tensor(index, device=teacher.device) for index in zip(*found, strict=True))
        teacher.joints = JointOrder(obs[0], actions[0]) if single else JointOrder(obs, actions)
    return list(dict.fromkeys(lines))


def _without_names(infos: Sequence[PolicyInfo]) -> list[str]:
    """Refuse an order that was typed, and warn of one that a file states, where the environment's is not known."""
    typed = any(info.joint_order and info.joint_order_from == TYPED for info in infos)
    why = "this environment does not name its joints (its class may declare joint_names)"
    if typed:
        raise UserError(f"{TYPED}: {why}, so that columns and actions cannot be permuted; leave it out")
    logger.warning("the teacher's file states the order of its joints, and %s: they are taken to be the same", why)
    return []


def _permutations(
    info: PolicyInfo,
    teacher: TeacherPolicyWrapper | TeacherEnsemble,
    columns: JointColumns,
    groups: Sequence[str],
    obs_slice: Sequence[int] | None,
) -> tuple[list[int], list[int]]:
    """Return one teacher's columns and actions; as they are where no order is stated."""
    order = info.joint_order
    if not order:
        return list(range(teacher.num_obs)), list(range(teacher.num_actions))
    stated = info.joint_order_from or ""
    check_order(order, columns.actions, columns.names, stated, typed=stated == TYPED)
    if info.num_choices is not None:
        raise UserError(
            f"{stated}: the actions of this policy are choices, which have no order of joints: leave it out"
        )
    actions = action_permutation(order, columns.actions, stated)
    if actions == list(range(len(actions))) and any(name not in columns.groups for name in groups):
        return list(range(teacher.num_obs)), actions
    blocks: list[JointBlock] = []
    for name in groups:
        if name not in columns.groups:
            raise UserError(
                f"the teacher's joints ({stated}) are in another order than here, and the columns of its observation "
                f"group '{name}' have no names to permute them by: let the environment declare observation_terms"
            )
        blocks += columns.groups[name]
    obs = permutation(order, blocks, obs_slice, stated)
    if len(obs) != teacher.num_obs:
        raise UserError(
            f"{stated}: the columns of {', '.join(groups)} are {len(obs)}, and the teacher reads {teacher.num_obs}"
        )
    return obs, actions


def _line(info: PolicyInfo, name: str, columns: JointColumns) -> str:
    """Return one line on which joints move; "" where none does."""
    order = info.joint_order or []
    places = moved(order, columns.actions) if order else []
    if not places:
        return ""
    who = f"teacher '{name}'" if name else "the policy"
    number = len([joint for joint in columns.actions if joint])
    return (
        f"Joint order: {len(places)} of {number} joints of {who} are moved to this environment's places, in "
        f"observations and actions: {', '.join(places)}"
    )
