"""What a distillation run takes from the task's agent configs: observation groups, the experiment's name."""

from __future__ import annotations

from typing import Any

from foundation.config.distillation_cfg import DistillationCfg
from foundation.errors import UserError

_DISTILLATION_ENTRY_POINT = "rsl_rl_distillation_cfg_entry_point"


def name_experiment(cfg: DistillationCfg, agent_cfg: Any) -> None:
    """Fill in the experiment's name: the agent config's, or else the task's."""
    if cfg.experiment_name is None:
        cfg.experiment_name = str(read(agent_cfg, "experiment_name") or (cfg.task or "").rpartition(":")[2])


def choose_groups(cfg: DistillationCfg, agent_cfg: Any, teacher: Any, obs: Any) -> None:
    """Fill in the observation groups that were not given.

    The student's are those of the agent's config. The teacher's are too, or else those it was trained on, or else what
    the actor reads: the first of them whose size is what the teacher wants.

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
        candidates = [list(found) for found in (groups.get("teacher"), teacher.obs_groups, actor) if found]
        fitting = [found for found in candidates if _size(found, cfg.teacher.obs_slice, obs) == teacher.num_obs]
        cfg.teacher.obs_groups = (fitting or candidates)[0]
    if cfg.student.obs_groups is None:
        cfg.student.obs_groups = list(groups.get("student") or actor)


def _size(groups: list[str], columns: list[int] | None, obs: Any) -> int | None:
    """Return how many columns some groups have together; None where one of them is not there."""
    if any(group not in obs.keys() for group in groups):  # noqa: SIM118  # a TensorDict wants keys()
        return None
    total = sum(obs[group].shape[-1] for group in groups)
    return total if columns is None else min(columns[1], total) - columns[0]


def distillation_groups(task: str) -> dict[str, Any]:
    """Return ``obs_groups`` of the task's own distillation config, where it has one."""
    from foundation.tasks import load_entry_point, resolve_task

    try:
        spec = resolve_task(task)
    except UserError:
        return {}
    if _DISTILLATION_ENTRY_POINT not in spec.kwargs:
        return {}
    groups = read(load_entry_point(spec, _DISTILLATION_ENTRY_POINT), "obs_groups")
    return {k: v for k, v in groups.items() if k in ("teacher", "student")} if isinstance(groups, dict) else {}


def read(cfg: Any, name: str) -> Any:
    """Read a field of a config object or mapping; None where it is absent."""
    return cfg.get(name) if isinstance(cfg, dict) else getattr(cfg, name, None)
