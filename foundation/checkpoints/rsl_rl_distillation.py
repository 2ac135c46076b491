"""The student of an RSL-RL distillation: ``student.*`` in ``model_state_dict`` (2.x, 3.x) or ``student_state_dict``."""

from __future__ import annotations

from typing import Any

from foundation.checkpoints.reading.loading import Entries, LoadedPolicy, Source, logger
from foundation.checkpoints.reading.rsl_rl_parts import Parts, assemble, merge
from foundation.checkpoints.rsl_rl_models import model_parts
from foundation.core.errors import UserError

KEYS = {
    "model_state_dict",
    "student_state_dict",
    "teacher_state_dict",
    "obs_norm_state_dict",
    "privileged_obs_norm_state_dict",
}
"""Entries of a checkpoint that this format reads."""


def recognise(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint is in this format."""
    return "student_state_dict" in checkpoint or _in_model(checkpoint)


def _in_model(checkpoint: dict[str, Any]) -> bool:
    model = checkpoint.get("model_state_dict")
    return isinstance(model, dict) and any(str(key).startswith("student.") for key in model)


def load(checkpoint: dict[str, Any], source: Source) -> LoadedPolicy:
    """Read the student; its teacher is not looked at, which is said."""
    model = checkpoint.get("model_state_dict")
    if "teacher_state_dict" in checkpoint or (model and any(str(key).startswith("teacher.") for key in model)):
        logger.info("'%s' holds a student and its teacher: the student is read.", source.path)
    if "student_state_dict" in checkpoint:
        if model and not _in_model(checkpoint):
            raise UserError(
                f"'{source.path}' holds two policies: the student in 'student_state_dict' and another one in "
                "'model_state_dict'. Leave the one that is to be read."
            )
        parts, version = model_parts(checkpoint["student_state_dict"], source, "student_state_dict")
        if _in_model(checkpoint):
            parts = merge(parts, _older_parts(checkpoint, source)[0], source, "student_state_dict")
        return assemble(source, f"RSL-RL {version} distillation", "student", parts)
    parts, version = _older_parts(checkpoint, source)
    return assemble(source, f"RSL-RL {version} distillation", "student", parts)


def _older_parts(checkpoint: dict[str, Any], source: Source) -> tuple[Parts, str]:
    """Return the student that lies in ``model_state_dict``, and the library's version."""
    entries = Entries(checkpoint["model_state_dict"], f"'{source.path}' (model_state_dict)")
    for teacher_part in ("teacher.", "memory_t.", "teacher_obs_normalizer."):
        entries.take(teacher_part)
    separate = "obs_norm_state_dict" in checkpoint
    norm = Entries(checkpoint.get("obs_norm_state_dict", {}), f"'{source.path}' (obs_norm_state_dict)").take("")
    inside = entries.take("student_obs_normalizer.")
    parts = Parts(
        body=entries.take("student."),
        rnn=entries.take("memory_s.rnn."),
        normalizer=norm or inside,
        std=entries.take_one("std"),
        log_std=entries.take_one("log_std"),
    )
    entries.finish(source.overrides.strict)
    if separate:
        return parts, "2.x"
    return parts, "3.x" if inside else "2.x or 3.x"
