"""Settings that the chosen losses, student and mode do not read: a run says so instead of ignoring them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from foundation.config.distillation_cfg import DistillationCfg
from foundation.learning.losses import LossSpec


def without_effect(
    cfg: DistillationCfg, losses: Sequence[LossSpec], *, discrete: bool, sequences: bool, memory: bool
) -> list[str]:
    """Return the settings that differ from their defaults and change nothing, each with the reason.

    Args:
        cfg: The run's configuration.
        losses: All terms.
        discrete: Whether the teacher chooses among discrete actions.
        sequences: Whether the student learns from sequences.
        memory: Whether the student has memory.
    """
    return [
        *_of_losses(cfg, losses, discrete),
        *_of_student(cfg, losses),
        *_of_optimizer(cfg),
        *_of_dataset(cfg, sequences, memory),
    ]


def _changed(cfg: DistillationCfg, path: str) -> bool:
    """Return whether a setting differs from its default."""
    return _value(cfg, path) != _value(DistillationCfg(), path)


def _value(cfg: object, path: str) -> Any:
    for name in path.split("."):
        cfg = getattr(cfg, name)
    return cfg


def _unused(cfg: DistillationCfg, paths: Iterable[str], reason: str) -> list[str]:
    return [f"distill.{path}={_shown(_value(cfg, path))} ({reason})" for path in paths if _changed(cfg, path)]


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _of_losses(cfg: DistillationCfg, losses: Sequence[LossSpec], discrete: bool) -> list[str]:
    read: set[str] = set()
    for spec in losses:
        own = spec.discrete if discrete else spec.continuous
        if own is None:  # of a user's own loss nothing is known: it may read everything
            return _zero_weights(cfg)
        read |= own
    kind = "discrete" if discrete else "continuous"
    names = " and ".join(spec.name for spec in losses)
    verb = "reads" if len(losses) == 1 else "read"
    found = []
    for name in ("temperature", "student_temperature", "huber_delta", "min_std"):
        if name not in read:
            found += _unused(cfg, [f"loss.{name}"], f"{names} {verb} none with {kind} actions")
    return found + _zero_weights(cfg)


def _zero_weights(cfg: DistillationCfg) -> list[str]:
    weights = cfg.loss.auxiliary.items()
    return [f"distill.loss.auxiliary.{name}=0 (the term adds nothing)" for name, weight in weights if weight == 0]


def _of_student(cfg: DistillationCfg, losses: Sequence[LossSpec]) -> list[str]:
    found = []
    if cfg.student.stochastic:
        read = any("std" in spec.student for spec in losses)
        if not read:
            found.append("distill.student.stochastic=true (no loss trains the deviation; kl and nll do)")
    else:
        for name in ("init_std", "state_dependent_std"):
            default = type(cfg.student).__dataclass_fields__.get(name)
            if default is not None and getattr(cfg.student, name) != default.default:
                found.append(f"distill.student.{name}={getattr(cfg.student, name)} (it needs student.stochastic=true)")
    if cfg.student.value_head and not any("value" in spec.student for spec in losses):
        found.append("distill.student.value_head=true (no loss trains it: add distill.loss.auxiliary={value: 0.5})")
    return found


def _of_optimizer(cfg: DistillationCfg) -> list[str]:
    if cfg.optimizer.updates_per_epoch is None:
        return []
    return _unused(cfg, ["optimizer.update_ratio"], "optimizer.updates_per_epoch is set")


def _of_dataset(cfg: DistillationCfg, sequences: bool, memory: bool) -> list[str]:
    found = []
    if not (sequences and memory):
        reason = "the student has no memory" if not memory else "sequence_length is 1"
        found += _unused(cfg, ["dataset.burn_in", "dataset.sequence_start"], reason)
    if cfg.dataset.load is None:
        found += _unused(cfg, ["dataset.load_files"], "there is no --dataset")
    if cfg.offline:
        paths = ["dataset.size", "dataset.eviction", "dataset.chunk_steps", "dataset.disk_gb"]
        return found + _unused(cfg, paths, "--offline collects nothing")
    found += _unused(cfg, ["dataset.held_out"], "it is for --offline")
    if cfg.on_policy:
        found += _unused(cfg, ["dataset.eviction", "dataset.disk_gb"], "--on_policy empties the dataset every epoch")
    return found
