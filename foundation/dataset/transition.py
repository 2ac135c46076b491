"""A transition and a batch of them: the student's observation and each of the teacher's outputs that is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from foundation.policies.output import PolicyOutput


class Minibatch(NamedTuple):
    """Rows to learn from: flat ``(batch, ...)`` or sequences ``(sequence_length, batch, ...)``."""

    obs: torch.Tensor
    """The student's observations. Shape: (..., num_obs)."""
    targets: PolicyOutput
    """The teacher's outputs at those observations."""
    weights: torch.Tensor | None = None
    """Weight of each row; None when all are 1. Shape: (...)."""
    resets: torch.Tensor | None = None
    """Sequences only: steps that begin an episode. Shape: (sequence_length, batch)."""
    state: torch.Tensor | None = None
    """Sequences only: the student's memory before the first step. Shape: (batch, state_size)."""


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
TARGET_FIELDS = ("mean", "std", "value", "logits", "features")


def lay_out_columns(num_obs: int, targets: dict[str, int]) -> dict[str, slice]:
    """Return the columns of each field of a row.

    Args:
        num_obs: Columns of the student's observation, which comes first.
        targets: Size of each stored target.
    """
    columns = {"obs": slice(0, num_obs)}
    start = num_obs
    for name in TARGET_FIELDS:
        if targets.get(name):
            columns[name] = slice(start, start + targets[name])
            start += targets[name]
    return columns


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that ``dataset.dtype`` gives a storage type."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def name_targets(columns: Mapping[str, slice], parts: Sequence[torch.Tensor]) -> PolicyOutput:
    """Name the parts of a row that come after the observation."""
    if len(parts) == 1:
        return PolicyOutput(parts[0])
    return PolicyOutput(**dict(zip(list(columns)[1:], parts, strict=True)))
