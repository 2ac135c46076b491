"""Settings that the chosen losses, student and mode do not read: a run warns instead of ignoring them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from foundation.config.distillation_cfg import DistillationCfg, ScheduleCfg, TermCfg
from foundation.learning.losses import LossSpec
from foundation.learning.schedules import teacher_share

_READ_BY_KIND = {"constant": {"start"}, "piecewise": {"points"}, "step": {"points"}}
"""Fields that a kind of schedule reads; the others read :data:`_RAMP`."""
_RAMP = {"start", "end", "epochs"}
_OF_COLLECTING = (
    "engine",
    "num_envs",
    "num_episodes",
    "epoch_teacher_forcing",
    "num_eval_episodes",
    "final_eval_episodes",
    "on_policy",
    "teacher_deterministic",
    "teacher",
    "collection",
)
"""Settings, and parts of the config, that a run without a simulator does not read."""

_READ_BY_LOSSES = (
    "temperature",
    "student_temperature",
    "huber_delta",
    "min_std",
    "direction",
    "smoothing",
    "labels",
    "feature_distance",
    "feature_hints",
)
"""Settings of ``distill.loss`` that only some losses read (see ``LossSpec``)."""


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
        *_of_terms(cfg, losses, discrete),
        *_of_student(cfg, losses),
        *_of_images(cfg),
        *_of_schedules(cfg),
        *_of_optimizer(cfg),
        *([] if cfg.offline else [*_of_teacher(cfg), *_of_collection(cfg)]),
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
    found = [f"distill.{path}={_shown(_value(cfg, path))}" for path in paths if _changed(cfg, path)]
    return [f"{', '.join(found)} ({reason})"] if found else []


def _leaves(cfg: object, path: str) -> list[str]:
    """List the settings of a part of the config, or the one setting that a path is."""
    part = _value(cfg, path)
    if not is_dataclass(part) or isinstance(part, ScheduleCfg):
        return [path]
    return [leaf for entry in fields(part) for leaf in _leaves(cfg, f"{path}.{entry.name}")]


def _shown(value: object) -> str:
    if isinstance(value, ScheduleCfg):
        return f"{{kind: {value.kind}, ...}}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _of_losses(cfg: DistillationCfg, losses: Sequence[LossSpec], discrete: bool) -> list[str]:
    found = []
    if cfg.loss.sample_weights != "action_gap":
        found += _unused(cfg, ["loss.gap_temperature"], "it needs loss.sample_weights=action_gap")
    own = [term.direction for term in cfg.loss.auxiliary.values() if isinstance(term, TermCfg)]
    reads_smoothing = any("smoothing" in (spec.continuous or ()) for spec in losses) and not discrete
    if reads_smoothing and "jensen_shannon" not in (cfg.loss.direction, *own):
        found += _unused(cfg, ["loss.smoothing"], "kl reads it with direction=jensen_shannon alone")
    return found + _of_read(cfg, losses, discrete)


def _of_read(cfg: DistillationCfg, losses: Sequence[LossSpec], discrete: bool) -> list[str]:
    """Name settings that some losses read and none of the chosen ones."""
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
    for name in _READ_BY_LOSSES:
        if name not in read:
            found += _unused(cfg, [f"loss.{name}"], f"{names} {verb} none with {kind} actions")
    return found + _zero_weights(cfg)


def _of_terms(cfg: DistillationCfg, losses: Sequence[LossSpec], discrete: bool) -> list[str]:
    """Name settings of a single term that it does not read."""
    kind = "discrete" if discrete else "continuous"
    reads = {spec.name: spec.discrete if discrete else spec.continuous for spec in losses}
    found = []
    for name, term in cfg.loss.auxiliary.items():
        read = reads.get(name)
        if not isinstance(term, TermCfg) or read is None:  # of a user's own loss nothing is known
            continue
        for setting in ("temperature", "student_temperature", "direction"):
            value = getattr(term, setting)
            if value is not None and setting not in read:
                key = f"distill.loss.auxiliary.{name}.{setting}={_shown(value)}"
                found.append(f"{key} ({name} reads none with {kind} actions)")
    return found


def _schedules(cfg: DistillationCfg) -> Iterator[tuple[str, ScheduleCfg]]:
    """Yield every schedule that is set, with its key."""
    paths = ("collection.beta", "optimizer.lr_schedule", "loss.weight", "loss.temperature", "loss.smoothing")
    values = {path: _value(cfg, path) for path in paths}
    for name, term in cfg.loss.auxiliary.items():
        if isinstance(term, TermCfg):
            values |= {f"loss.auxiliary.{name}.{part}": getattr(term, part) for part in ("weight", "temperature")}
    for path, value in values.items():
        if isinstance(value, ScheduleCfg):
            yield path, value


def _zero_weights(cfg: DistillationCfg) -> list[str]:
    found = []
    for name, term in cfg.loss.auxiliary.items():
        key, weight = (f"{name}.weight", term.weight) if isinstance(term, TermCfg) else (name, term)
        if weight == 0:
            found.append(f"distill.loss.auxiliary.{key}=0 (the term adds nothing)")
    return found


def _of_student(cfg: DistillationCfg, losses: Sequence[LossSpec]) -> list[str]:
    found = []
    if cfg.student.stochastic:
        read = any("std" in spec.student for spec in losses)
        if not read:
            found.append("distill.student.stochastic=true (no loss trains the standard deviation; kl and nll do)")
    else:
        for name in ("init_std", "state_dependent_std"):
            default = type(cfg.student).__dataclass_fields__.get(name)
            if default is not None and getattr(cfg.student, name) != default.default:
                found.append(f"distill.student.{name}={getattr(cfg.student, name)} (it needs student.stochastic=true)")
    if cfg.student.value_head and not any("value" in spec.student for spec in losses):
        found.append("distill.student.value_head=true (no loss trains it: add distill.loss.auxiliary={value: 0.5})")
    return found


def _of_images(cfg: DistillationCfg) -> list[str]:
    """Name settings of a student that sees, and of its images, that it has no use for."""
    found: list[str] = []
    if getattr(cfg.student, "memory", None) == "none":
        for name in ("hidden_size", "num_layers"):
            value = getattr(cfg.student, name)
            if value != type(cfg.student).__dataclass_fields__[name].default:
                found.append(f"distill.student.{name}={value} (student.memory is none)")
    if getattr(cfg.student, "share_encoder", False) and len(getattr(cfg.student, "images", ())) == 1:
        found.append("distill.student.share_encoder=true (the student reads one image group)")
    if cfg.augment_images.groups is not None and not cfg.augment_images.is_on:
        found.append("distill.augment_images.groups (no change of the images is asked for)")
    return found


def _of_schedules(cfg: DistillationCfg) -> list[str]:
    found = []
    for path, schedule in _schedules(cfg):
        read = _READ_BY_KIND.get(schedule.kind, _RAMP)
        reason = f"a {schedule.kind} schedule reads {', '.join(sorted(read))}"
        unread = [entry.name for entry in fields(schedule) if entry.name not in {"kind", *read}]
        names = [name for name in unread if getattr(schedule, name) != getattr(ScheduleCfg(), name)]
        found += [f"distill.{path}.{name}={_shown(getattr(schedule, name))} ({reason})" for name in names]
    return found


def _of_optimizer(cfg: DistillationCfg) -> list[str]:
    found = []
    if cfg.optimizer.updates_per_epoch is not None:
        found += _unused(cfg, ["optimizer.update_ratio"], "optimizer.updates_per_epoch is set")
    if cfg.early_stopping.patience is None:
        found += _unused(cfg, ["early_stopping.min_delta"], "early_stopping.patience is not set")
    if cfg.logger == "tensorboard":
        found += _unused(cfg, ["log_project_name"], "it is for wandb and neptune")
    return found


def _of_teacher(cfg: DistillationCfg) -> list[str]:
    found = []
    for combine, path in (("value", "teacher.combine_temperature"), ("gate", "teacher.gate")):
        if cfg.teacher.combine != combine:
            found += _unused(cfg, _leaves(cfg, path), f"it is for teacher.combine={combine}")
    if cfg.teacher.watch is None:
        found += _unused(cfg, ["teacher.relabel"], "it is for --watch_teacher")
    return found


def _of_collection(cfg: DistillationCfg) -> list[str]:
    """Name what depends on who acts, in a run in which that one never does."""
    shares = [teacher_share(cfg, epoch) for epoch in range(cfg.n_epochs)]
    found = []
    if all(share in (0.0, 1.0) for share in shares):
        found += _unused(cfg, ["collection.beta_per"], "in every epoch the teacher or the student acts alone")
    if not any(shares[1:]):
        found += _unused(cfg, ["collection.dart_alpha"], "the teacher acts in no epoch after the first")
    if all(share == 1.0 for share in shares):
        paths = ["collection.student_deterministic", "collection.teacher_student_mix"]
        found += _unused(cfg, paths, "the student never acts")
    return found


def _of_dataset(cfg: DistillationCfg, sequences: bool, memory: bool) -> list[str]:
    found = []
    if not (sequences and memory):
        reason = "the student has no memory" if not memory else "sequence_length is 1"
        found += _unused(cfg, ["dataset.burn_in", "dataset.sequence_start"], reason)
    if cfg.dataset.load is None:
        found += _unused(cfg, ["dataset.load_files"], "there is no --dataset")
    if cfg.offline:
        paths = ["dataset.size", "dataset.eviction", "dataset.chunk_steps", "dataset.newest_epochs", "dataset.disk_gb"]
        paths += [leaf for path in _OF_COLLECTING for leaf in _leaves(cfg, path)]
        return found + _unused(cfg, paths, "--offline collects nothing")
    found += _unused(cfg, ["dataset.held_out"], "it is for --offline")
    if cfg.on_policy:
        paths = ["dataset.eviction", "dataset.newest_epochs", "dataset.disk_gb"]
        return found + _unused(cfg, paths, "--on_policy empties the dataset every epoch")
    if cfg.dataset.eviction != "oldest":
        reason = f"dataset.eviction={cfg.dataset.eviction} keeps no order of age"
        found += _unused(cfg, ["dataset.newest_epochs"], reason)
    return found
