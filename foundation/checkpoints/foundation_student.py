"""Students of this project, so that a student can be the teacher of the next one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from foundation.checkpoints.reading.assembler import CHECKPOINT, finish
from foundation.checkpoints.reading.loading import Entries, LoadedPolicy, Source
from foundation.config.derived_cfg import read_derived
from foundation.config.typing_fit import read_fields
from foundation.core.errors import UserError
from foundation.core.text import quoted
from foundation.students import student_from_description
from foundation.students.cnn import CNNStudent

KEYS: set[str] | None = None
"""None: files of this project may have any entries."""


@dataclass
class _Reads:
    """What a student reads and gives, beside its network."""

    obs_groups: list[str] | None
    obs_slice: list[int] | None
    clip_actions: float | None


def recognise(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint is in this format."""
    return isinstance(checkpoint.get("student"), dict) and "model_state_dict" in checkpoint


def load(checkpoint: dict[str, Any], source: Source) -> LoadedPolicy:
    """Read the student."""
    weights = checkpoint["model_state_dict"]
    Entries(weights, f"'{source.path}' (model_state_dict)")
    try:
        student = student_from_description(checkpoint["student"], weights)
    except UserError as error:
        raise UserError(f"'{source.path}': {error}") from error
    student.requires_grad_(False).eval()
    saved = checkpoint.get("obs_groups")
    if isinstance(saved, dict):
        saved = saved.get("student")
    stated = {key: checkpoint.get(key) for key in ("obs_slice", "clip_actions")}
    stated = read_fields(_Reads, {"obs_groups": saved, **stated}, f"'{source.path}'")
    columns = stated["obs_slice"]
    if columns is not None and not (len(columns) == 2 and 0 <= columns[0] < columns[1]):
        raise UserError(f"'{source.path}' is corrupt: 'obs_slice' is {quoted(columns)}, it must be [a, b], a < b.")
    bound = stated["clip_actions"]
    if bound is not None and torch.finfo(torch.float32).max < abs(bound) < math.inf:
        raise UserError(f"'{source.path}' is corrupt: 'clip_actions' is {bound:g}, more than float32 can hold.")
    groups = stated["obs_groups"]
    cfg = student.cfg
    images = student.image_shapes if isinstance(student, CNNStudent) else {}
    if groups is not None and images and list(images) != groups[-len(images) :]:
        raise UserError(f"'{source.path}' is corrupt: its images {quoted(list(images))} are not its last groups.")
    kind = cfg.distribution if cfg.stochastic else "deterministic"
    derived = read_derived(checkpoint.get("derived_groups"), f"'{source.path}'")
    loaded = finish(
        source,
        "foundation student",
        student,
        (str(getattr(cfg, "activation", "its own")), CHECKPOINT),
        hidden_dims=student.hidden_dims,
        obs_groups=groups,
        obs_slice=columns,
        clip_actions=stated["clip_actions"],
        image_groups=list(images),
        image_shapes=images or None,
        num_choices=cfg.num_choices,
        obs_normalization=bool(student.normalizer.count > 0),
        recurrence=cfg.name if student.state_size else "none",
        action_shape="tanh" if cfg.distribution != "gaussian" else None,
        distribution_name="choices" if cfg.num_choices else kind,
        has_std=cfg.stochastic,
        has_value=cfg.value_head,
    )
    return replace(loaded, info=replace(loaded.info, derived=derived))
