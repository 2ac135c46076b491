"""Settings of a fine-tuning run that change nothing beside the others: a run warns instead of ignoring them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from foundation.config.distillation_cfg import ScheduleCfg
from foundation.config.finetune_cfg import FinetuneCfg, is_zero, key_of_finetune


def without_effect(cfg: FinetuneCfg) -> list[str]:
    """Return the settings that differ from their defaults and change nothing, each with the reason."""
    default = FinetuneCfg(student=type(cfg.student)())
    found: dict[str, list[str]] = {}
    for reason, path in _idle(cfg):
        for leaf in _leaves(cfg, path):
            if _value(cfg, leaf) != _value(default, leaf):
                found.setdefault(reason, []).append(f"{key_of_finetune(leaf)}={_shown(_value(cfg, leaf))}")
    return [f"{', '.join(settings)} ({reason})" for reason, settings in found.items()]


def _idle(cfg: FinetuneCfg) -> Iterator[tuple[str, str]]:
    """Yield reasons, and the settings, or parts of the config, that are not read because of them."""
    for is_so, reason, paths in (*_of_teachers(cfg), *_of_parts(cfg), *_of_critic(cfg)):
        if is_so:
            for path in paths:
                yield reason, path


_Rule = tuple[bool, str, tuple[str, ...]]
"""Whether a reason holds, the reason, and the settings that are then not read."""


def _of_teachers(cfg: FinetuneCfg) -> list[_Rule]:
    named = bool(cfg.teacher_checkpoints())
    wanted = cfg.wants_teacher()
    read_otherwise = cfg.critic.init == "teacher" or cfg.checkpoint is None  # for its critic or its deviation
    return [
        (is_zero(cfg.kl_coef), "--kl_coef is 0", ("kl_decay", "kl_direction", "kl", "teacher.std")),
        (is_zero(cfg.alpha) and not cfg.replay_datasets(), "--alpha is 0", ("loss",)),
        (not wanted, "--alpha and --kl_coef are 0", ("teacher.weights", "teacher.tasks")),
        (
            not wanted and not read_otherwise,
            "--alpha and --kl_coef are 0, so that the policy is not held near it",
            ("teacher.checkpoint",),
        ),
        (
            not named,
            "there is no --teacher_checkpoint",
            ("teacher.obs_groups", "teacher.obs_slice", "teacher.activation"),
        ),
    ]


def _of_parts(cfg: FinetuneCfg) -> list[_Rule]:
    replay = tuple(f"replay.{name}" for name in ("coef", "batch_size", "sequence_length", "memory_gb"))
    return [
        (not cfg.replay_datasets(), "there is no finetune.replay.dataset", replay),
        (cfg.ewc.coef == 0.0, "finetune.ewc.coef is 0", ("ewc.samples",)),
        (cfg.rehearsal.task is None, "there is no finetune.rehearsal.task", ("rehearsal.share",)),
        (cfg.adapters.rank is None, "there is no finetune.adapters.rank", ("adapters.scale",)),
        (cfg.part_by_task() is None, "no part of the policy is by task", ("task_columns",)),
        (cfg.checkpoint is not None, "the policy is that of --checkpoint", ("student",)),
    ]


def _of_critic(cfg: FinetuneCfg) -> list[_Rule]:
    of_teacher = cfg.critic.init == "teacher"
    own = ("obs_groups", "hidden_dims", "activation", "memory", "hidden_size", "obs_normalization")
    no_memory = not of_teacher and cfg.critic.memory == "none"
    no_warmup = cfg.critic.warmup_iterations == 0
    return [
        (of_teacher, "the critic is the teacher's", tuple(f"critic.{name}" for name in own)),
        (no_memory, "finetune.critic.memory is none", ("critic.hidden_size",)),
        (no_warmup, "--critic_warmup_iterations is 0", ("critic.warmup_learning_rate",)),
    ]


def _leaves(cfg: object, path: str) -> list[str]:
    """List the settings of a part of the config, or the one setting that a path is."""
    part = _value(cfg, path)
    if not is_dataclass(part) or isinstance(part, ScheduleCfg):
        return [path]
    return [leaf for entry in fields(part) for leaf in _leaves(cfg, f"{path}.{entry.name}")]


def _value(cfg: object, path: str) -> Any:
    for name in path.split("."):
        cfg = getattr(cfg, name)
    return cfg


def _shown(value: object) -> str:
    if isinstance(value, ScheduleCfg):
        return f"{{kind: {value.kind}, ...}}"
    return f"{value:g}" if isinstance(value, float) else str(value)
