"""A transition and a batch of them: the student's observation and each of the teacher's outputs that is stored."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from foundation.core.errors import UserError
from foundation.policies.output import PolicyOutput

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Types that ``dataset.dtype`` stores observations and targets in."""
COLUMN_DTYPES = DTYPES | {
    "uint8": torch.uint8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
"""Types that a column of its own can have."""
IMAGE = "image_"
"""Begins the name of a column that holds an image group of the student's observation."""
TARGET_FIELDS = ("mean", "std", "value", "logits", "features", "pre_tanh", "concentration", "saliency", "estimate")
"""The teacher's outputs, in the order in which they are stored."""


@dataclass(frozen=True)
class Column:
    """A part of a transition that is stored as it is: an image, an index, a number of a type of its own."""

    shape: tuple[int, ...]
    """Shape of one transition's part, e.g. (3, 64, 64)."""
    dtype: str
    """A key of :data:`COLUMN_DTYPES`."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The type of its tensor."""
        return COLUMN_DTYPES[self.dtype]

    @property
    def num_bytes(self) -> int:
        """Size of one transition's part [bytes]."""
        return math.prod(self.shape) * self.torch_dtype.itemsize


class Batch(NamedTuple):
    """Transitions to learn from: flat ``(batch, ...)`` or sequences ``(sequence_length, batch, ...)``."""

    obs: torch.Tensor
    """The student's observations, float32 unless they are a column of another type. Shape: (..., num_obs)."""
    targets: PolicyOutput
    """The teacher's outputs at those observations."""
    weights: torch.Tensor | None = None
    """Weight of each transition; None when all are 1. Shape: (...)."""
    resets: torch.Tensor | None = None
    """Sequences only: steps that begin an episode. Shape: (sequence_length, batch)."""
    state: torch.Tensor | None = None
    """Sequences only: the student's memory before the first step. Shape: (batch, state_size)."""
    extra: Mapping[str, torch.Tensor] | None = None
    """Further columns by name, as they are stored. Shape of each: (..., *column shape)."""


def lay_out_columns(num_obs: int, targets: Mapping[str, int]) -> dict[str, slice]:
    """Return where the floating-point parts of a transition lie in one vector.

    Args:
        num_obs: Size of the student's observation, which comes first; 0 where it is a column of its own.
        targets: Size of each stored target.
    """
    sizes = {"obs": num_obs} | {name: targets.get(name, 0) for name in TARGET_FIELDS}
    columns: dict[str, slice] = {}
    start = 0
    for name, size in sizes.items():
        if size:
            columns[name] = slice(start, start + size)
            start += size
    return columns


def image_column(group: str) -> str:
    """Return the name of the column that holds an image group."""
    return IMAGE + re.sub(r"\W", "_", group)


def stored_column(image: torch.Tensor, group: str) -> Column:
    """Return how an image group is stored: as it is, float64 as float32.

    Args:
        image: Shape: (num_envs, channels, height, width).
        group: Its name, for the error.

    Raises:
        UserError: If images of its type cannot be stored.
    """
    dtype = torch.float32 if image.dtype == torch.float64 else image.dtype
    names = {kind: name for name, kind in COLUMN_DTYPES.items()}
    if dtype not in names:
        raise UserError(
            f"the image group '{group}' is {image.dtype}, which cannot be stored: give uint8, float16 or float32."
        )
    return Column(tuple(image.shape[1:]), names[dtype])


def with_images(batch: Batch, images: Sequence[str]) -> Batch:
    """Put image columns, flattened, behind the flat part of the observation, as float32.

    Args:
        batch: Its ``obs`` is the flat part.
        images: Names of the columns, in order.
    """
    if not images:
        return batch
    assert batch.extra is not None
    lead = batch.obs.ndim - 1
    parts = [batch.extra[name].flatten(lead).float() for name in images]
    rest = {name: part for name, part in batch.extra.items() if name not in images}
    return batch._replace(obs=torch.cat([batch.obs, *parts], dim=-1), extra=rest or None)


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name that ``dataset.dtype`` gives a storage type."""
    return next(name for name, known in DTYPES.items() if known == dtype)


def make_batch(
    parts: dict[str, torch.Tensor],
    weights: torch.Tensor | None = None,
    resets: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> Batch:
    """Name the parts of some transitions.

    Args:
        parts: Each column by its name, the observation and the teacher's mean among them.
        weights: See :class:`Batch`.
        resets: See :class:`Batch`.
        state: See :class:`Batch`.
    """
    targets = PolicyOutput(**{name: parts[name] for name in TARGET_FIELDS if name in parts})
    extra = {name: part for name, part in parts.items() if name != "obs" and name not in TARGET_FIELDS}
    obs = parts["obs"] if "obs" in parts else targets.mean[..., :0].float()  # images alone, which follow
    return Batch(obs, targets, weights, resets, state, extra or None)
