"""A part of the policy for the new task alone: heads, adapters or progressive columns, by the task in the observation.

Which task runs is a fact of the environment: the columns of its observations that say so are read from it, and the one
that is 1 there names the part.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from foundation.config.finetune_cfg import FinetuneCfg
from foundation.core.errors import UserError
from foundation.engines.base import VecEnv
from foundation.engines.observation_terms import observation_terms
from foundation.policies.memory import MemoryLayer
from foundation.policies.obs_groups import ObsSelector
from foundation.students.base import Student, hidden_layers
from foundation.students.by_task import ByTaskStudent, grow, has_weights

FIELD = "task"
"""Name, in a task's description of its observations, of the columns that say which task runs."""


def task_columns(env: VecEnv, task: str, selector: ObsSelector, named: list[int] | None) -> list[int]:
    """Return ``[a, b]``, the columns of what a selector selects that say which task runs.

    Args:
        env: The environment.
        task: Its task.
        selector: Of the policy's observations.
        named: ``finetune.task_columns``. None: the field ``task`` of the observation groups.

    Raises:
        UserError: If there are none.
    """
    obs = env.get_observations()
    size = selector(obs).shape[-1]
    if named is not None:
        if named[1] > size:
            raise UserError(f"finetune.task_columns is {named}, and the policy reads {size} columns")
        return named
    terms = observation_terms(env, task, obs)
    start = 0 if selector.obs_slice is None else -selector.obs_slice[0]
    for group in selector.groups:
        column = start
        for own in terms.get(group, ()):
            if own.name == FIELD and column >= 0 and column + own.size <= size:
                return [column, column + own.size]
            column += own.size
        start += obs[group].shape[-1]
    raise UserError(
        f"no column of the policy's observations ({', '.join(selector.groups)}) says which task runs: name those that "
        "do by finetune.task_columns=[a,b], or take what is for one network (finetune.adapters.rank, kl_coef, replay)"
    )


def running_column(env: VecEnv, task: str, selector: ObsSelector, named: list[int] | None) -> int:
    """Return the column of what a selector selects that is 1 while the environment's task runs.

    Args:
        env: The environment.
        task: Its task.
        selector: Of the policy's observations.
        named: ``finetune.task_columns``.

    Raises:
        UserError: If there is none, or another one in some environments.
    """
    first, last = task_columns(env, task, selector, named)
    flags = selector(env.get_observations())[:, first:last]
    on = flags > 0.5
    index = int(on[0].float().argmax())
    only = torch.zeros_like(on)
    only[:, index] = True
    if not bool((on == only).all()):
        raise UserError(
            f"columns {first} to {last - 1} of the policy's observations are to say which task runs, 1 in its own and "
            f"0 else, the same in all environments; in the first they are {[round(v, 3) for v in flags[0].tolist()]}: "
            "set finetune.task_columns"
        )
    return first + index


def give_part(student: Student, column: Callable[[], int], cfg: FinetuneCfg) -> Student:
    """Return the student with a part of the new task's own, if that is asked; all that was there is frozen.

    A part that the task has already, in a policy of an earlier run, is trained further.

    Args:
        student: The policy to start from.
        column: Returns the column of its observations that is 1 while the new task runs.
        cfg: The run's configuration.

    Raises:
        UserError: If the policy cannot have such a part.
    """
    key = cfg.part_by_task()
    if key is None:
        return student
    lateral = cfg.progressive.init is not None
    shared = _shared_layers(student, cfg, key)
    where = column()
    if not isinstance(student, ByTaskStudent) or where not in student.columns:
        student = grow(student, where, shared, lateral)
        if cfg.progressive.init == "fresh":
            _forget(student)
    elif where != student.columns[-1]:
        raise UserError(
            f"the policy has a part for this task already, and others after it: {key} trains the newest one alone"
        )
    student.freeze_earlier()
    return student


def _shared_layers(student: Student, cfg: FinetuneCfg, key: str) -> int:
    """Return how many hidden layers the parts are to share.

    Raises:
        UserError: If the student has not so many, or has parts that share others.
    """
    lateral = cfg.progressive.init is not None
    hidden = hidden_layers(student)
    weighted = [index for index, layer in enumerate(hidden) if has_weights(layer)]
    if cfg.heads.layers is None:
        shared = weighted[0] if weighted else len(hidden)
    elif cfg.heads.layers > len(weighted):
        raise UserError(
            f"finetune.heads.layers is {cfg.heads.layers}, and the policy has {len(weighted)} hidden layers"
        )
    else:
        shared = [*weighted, len(hidden)][len(weighted) - cfg.heads.layers]
    if isinstance(student, ByTaskStudent):
        theirs = len(student.front)
        if (theirs, student.is_lateral) != (shared, lateral):
            kind = "progressive columns" if student.is_lateral else f"parts that share {theirs} layers"
            raise UserError(f"the policy has {kind} already, which {key} is not: give the key that it was made with")
        return shared
    if lateral and not all(isinstance(layer, nn.Linear) for layer in hidden[shared:] if _acts(layer)):
        raise UserError(
            f"finetune.progressive connects dense layers, and student={student.cfg.name} has others: use "
            "finetune.heads.layers=1, or finetune.adapters.rank=8 with finetune.adapters.by_task=true"
        )
    return shared


def _acts(layer: nn.Module) -> bool:
    return has_weights(layer) or isinstance(layer, MemoryLayer)


def _forget(student: ByTaskStudent) -> None:
    """Give the newest part random weights, its connections from the others too."""
    for module in student.own_modules():
        for layer in module.modules():
            if isinstance(layer, nn.Linear) and layer is not student.log_std:
                layer.reset_parameters()
