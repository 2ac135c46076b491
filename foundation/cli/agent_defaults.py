"""Defaults from the task's agent configs: observation groups, student sizes, the run's name."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from tensordict import TensorDict

from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.overrides import Overrides
from foundation.config.validate import read
from foundation.config.values import apply_values, key_names
from foundation.core.errors import UserError
from foundation.engines.base import AgentCfg, EnvCfg
from foundation.tasks import load_entry_point, resolve_task
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.ensemble import TeacherEnsemble

logger = logging.getLogger(__name__)

_DISTILLATION_ENTRY_POINT = "rsl_rl_distillation_cfg_entry_point"


def name_experiment(cfg: DistillationCfg, agent_cfg: AgentCfg) -> None:
    """Fill in the experiment's name: the agent config's, or else the task's."""
    if cfg.experiment_name is None:
        cfg.experiment_name = str(read(agent_cfg, "experiment_name") or (cfg.task or "").rpartition(":")[2])


def choose_groups(
    cfg: DistillationCfg, agent_cfg: AgentCfg, teacher: TeacherPolicyWrapper | TeacherEnsemble, obs: TensorDict
) -> None:
    """Fill in the observation groups that were not given.

    The student's are those that ``cfg.obs`` makes for it and that it is not to predict, or else those of the agent's
    config. The teacher's are those of the agent's config too, or else those it was trained on, or else what the actor
    reads: the first of them whose size is the teacher's input size. Where they are not those of the teacher's own
    config, a warning names both: an equal size does not show that the numbers mean the same.

    Args:
        cfg: Its ``teacher.obs_groups`` and ``student.obs_groups`` are set where they are None.
        agent_cfg: The agent's config.
        teacher: The teacher.
        obs: Observations of the environment, by group.
    """
    groups = read(agent_cfg, "obs_groups")
    groups = distillation_groups(cfg.task or "") | (dict(groups) if isinstance(groups, dict) else {})
    actor = groups.get("actor") or groups.get("policy") or ["policy"]
    if cfg.teacher.obs_groups is None:
        _refuse_missing_derived(cfg, teacher)
        candidates = [list(found) for found in (groups.get("teacher"), teacher.obs_groups, actor) if found]
        fitting = [found for found in candidates if _size(found, cfg.teacher.obs_slice, obs) == teacher.num_obs]
        cfg.teacher.obs_groups = (fitting or candidates)[0]
        if fitting and teacher.obs_groups and list(teacher.obs_groups) != fitting[0]:
            _warn_of_other_groups(list(teacher.obs_groups), fitting[0], teacher.num_obs, obs)
    predicted = None if cfg.loss.prediction is None else cfg.loss.prediction.group
    if cfg.student.obs_groups is None:
        made = [name for name in cfg.obs if name != predicted]
        cfg.student.obs_groups = made or list(groups.get("student") or actor)
    unread = [name for name in cfg.obs if name not in [*cfg.student.obs_groups, *cfg.teacher.obs_groups, predicted]]
    if unread:
        raise UserError(
            f"distill.obs.{unread[0]} has no effect: distill.student.obs_groups is {cfg.student.obs_groups}; add it "
            "there, or leave distill.student.obs_groups out"
        )


def _refuse_missing_derived(cfg: DistillationCfg, teacher: TeacherPolicyWrapper | TeacherEnsemble) -> None:
    """Raise where a teacher that is a student of ours reads a group that was made for it, and is not made here."""
    made = teacher.info.derived if isinstance(teacher, TeacherPolicyWrapper) else {}
    for name, group in made.items():
        if name not in cfg.obs:
            raise UserError(
                f"the teacher reads the observation group '{name}', which was made for it ({group.line()}): make it "
                f"here too, obs.{name}.from={group.settings.sources[0]} ..., and name the student's own by "
                "distill.student.obs_groups"
            )


def groups_line(cfg: DistillationCfg, obs: TensorDict) -> str:
    """Return the line that the console shows for what the teacher reads, such as ``policy 26 + privileged 9``.

    Args:
        cfg: With the teacher's groups chosen.
        obs: Observations of the environment, by group.
    """
    groups = cfg.teacher.obs_groups or ["policy"]
    columns = cfg.teacher.obs_slice
    offered = {str(name): math.prod(obs[name].shape[1:]) for name in obs.keys()}  # noqa: SIM118  # a TensorDict's
    sizes = [f"{group} {offered.get(group, '(not there)')}" for group in groups]
    of_these = "" if columns is None else f", columns {columns[0]} to {columns[1] - 1}"
    return f"Teacher observation groups: {' + '.join(sizes)}{of_these}"


def _warn_of_other_groups(own: list[str], taken: list[str], size: int, obs: TensorDict) -> None:
    missing = [group for group in own if group not in obs.keys()]  # noqa: SIM118  # a TensorDict supports `in` for its keys() only
    names = ", ".join(missing)
    why = f"the environment has no '{names}'" if missing else "the task's config names others"
    logger.warning(
        "the teacher's own config has the observation groups %s, but %s: it is given %s, which have "
        "the same size (%d). If these are not the numbers it was trained on, set distill.teacher.obs_groups.",
        own,
        why,
        taken,
        size,
    )


def _size(groups: list[str], columns: list[int] | None, obs: TensorDict) -> int | None:
    """Return how many columns some groups have together; None where one of them is not there."""
    if any(group not in obs.keys() for group in groups):  # noqa: SIM118  # a TensorDict supports `in` for its keys() only
        return None
    total = sum(math.prod(obs[group].shape[1:]) for group in groups)
    return total if columns is None else min(columns[1], total) - columns[0]


READ_KEYS = ("clip_actions", "experiment_name", "obs_groups")
"""Keys of the agent's config that a distillation run reads."""


def warn_without_effect(overrides: Overrides, cfg: DistillationCfg, env_cfg: EnvCfg) -> None:
    """Name what was typed for env and agent and has no effect: distillation has a learner and seeds of its own.

    Args:
        overrides: What was typed.
        cfg: The run's config, whose keys may be typed bare.
        env_cfg: The environment's config, whose keys may be typed bare too.
    """
    seeds = [item for item in overrides.scoped.get("env", []) if item.path == "seed" and item.value != cfg.seed]
    if seeds:
        logger.warning("%s: the episodes of a run are drawn from --seed (now %d)", seeds[-1].token, cfg.seed)
    elsewhere = {*key_names(cfg), *key_names(env_cfg)}
    items = [*overrides.scoped.get("agent", []), *overrides.bare]
    idle = [
        item.token
        for item in items
        if item.path.partition(".")[0] not in READ_KEYS
        and not (item in overrides.bare and item.path.partition(".")[0] in elsewhere)
    ]
    if idle:
        logger.warning(
            "%s: no effect on distillation, which reads %s of the agent's config and has its own learner: see "
            "distill.learning_rate, distill.optimizer and --n_epochs",
            ", ".join(idle),
            ", ".join(f"agent.{key}" for key in READ_KEYS),
        )


def size_student(cfg: DistillationCfg, overrides: Overrides) -> bool:
    """Give the default student the layers of the task's own distillation config, where it has one.

    A student that was chosen (``student=gru``) keeps its own sizes, and a size that was set anywhere stays.

    Args:
        cfg: Its ``student`` is changed.
        overrides: What was typed.

    Returns:
        Whether the student has those sizes now.
    """
    typed = {item.path for item in [*overrides.scoped.get("distill", []), *overrides.bare]}
    if cfg.student.name != "mlp" or "student" in overrides.groups or "student.name" in typed:
        return False
    sizes = _student_sizes(_distillation_cfg(cfg.task or ""))
    default = type(cfg.student)()
    free = [name for name in sizes if getattr(cfg.student, name) == getattr(default, name)]
    taken = {name: sizes[name] for name in free if f"student.{name}" not in typed}
    differs = any(getattr(default, name) != value for name, value in taken.items())
    if differs:
        apply_values(cfg.student, taken, f"{_DISTILLATION_ENTRY_POINT}: student")
        values = ", ".join(f"{name}={value}" for name, value in taken.items())
        logger.info("the student is that of the task's distillation config: %s", values)
    return differs


def _student_sizes(agent_cfg: AgentCfg | None) -> dict[str, Any]:
    """Read layers and activation of a feed-forward student, of RSL-RL's new layout or of its old one."""
    source = read(agent_cfg, "student")
    hidden_dims = read(source, "hidden_dims")
    if not isinstance(hidden_dims, Sequence):  # before rsl-rl-lib 4
        source = read(agent_cfg, "policy")
        hidden_dims = read(source, "student_hidden_dims")
    activation = read(source, "activation")
    if not isinstance(hidden_dims, Sequence):
        return {}
    if isinstance(read(source, "rnn_type"), str):
        logger.info("the student of the task's distillation config has memory: choose one by student=lstm or =gru")
        return {}
    sizes: dict[str, Any] = {"hidden_dims": list(hidden_dims)}
    return sizes | ({"activation": activation} if isinstance(activation, str) else {})


def distillation_groups(task: str) -> dict[str, Any]:
    """Return the groups of ``teacher`` and ``student`` in the task's own distillation config, where it has one."""
    groups = read(_distillation_cfg(task), "obs_groups")
    if not isinstance(groups, dict):
        return {}
    student = groups.get("student") or groups.get("policy")  # the name before rsl-rl-lib 4
    return {name: found for name, found in (("teacher", groups.get("teacher")), ("student", student)) if found}


def _distillation_cfg(task: str) -> AgentCfg | None:
    """Load the task's own config for RSL-RL's distillation; None where it has none."""
    try:
        spec = resolve_task(task)
    except UserError:
        return None
    return load_entry_point(spec, _DISTILLATION_ENTRY_POINT) if _DISTILLATION_ENTRY_POINT in spec.kwargs else None
