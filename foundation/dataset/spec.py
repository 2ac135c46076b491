"""Shapes, types and size of a buffer, known before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from foundation.core.errors import UserError
from foundation.dataset.transition import DTYPES, IMAGE, TARGET_FIELDS, Column, lay_out_columns

RESERVED = ("rows", "resets", "teacher_index", "episode", "weights", "base_weights", "states", "active")
"""Names that a column cannot have, as the buffer and its files use them."""


@dataclass(frozen=True)
class BufferSpec:
    """A buffer of transitions: chunks of ``chunk_steps`` consecutive env steps of every environment.

    Observation and targets of type ``dtype`` are columns of one matrix, so that a batch is one gather: half as many
    accesses to memory as with a tensor for each. Parts of another type or shape (``typed``) have a tensor each.
    """

    num_obs: int
    """Size of the student's observation but for its images; 0 where ``typed`` has a column ``obs``."""
    num_envs: int
    """Number of environments, whose steps lie side by side in a chunk."""
    capacity: int
    """Maximum number of transitions; rounded down to whole chunks, at least one."""
    targets: Mapping[str, int]
    """Size of each stored target, e.g. ``{"mean": 4, "std": 4}``."""
    chunk_steps: int = 32
    """Env steps of a chunk."""
    sequence_length: int = 1
    """Steps of a training sequence; divides ``chunk_steps``."""
    state_size: int = 0
    """Size of the student's memory to store at the start of each training sequence; 0 stores none."""
    num_teachers: int = 1
    """With more than one, each transition keeps its teacher's index (int32)."""
    track_episodes: bool = False
    """Store the number of each transition's episode (int32; see ``episode_log``)."""
    weighted: bool = False
    """Store a weight for each transition, 1 unless it is set."""
    dtype: str = "float32"
    """Type of the matrix: float32, float16 or bfloat16. Batches are float32 always."""
    eviction: str = "oldest"
    """Which chunk a full buffer overwrites: the ``oldest``, or a random one (``reservoir``)."""
    typed: Mapping[str, Column] = field(default_factory=dict)
    """Columns stored as they are, by name: ``obs``, a target, an image group (:func:`image_column`), which follows the
    flat part of the observation, or what else is to be kept."""

    def __post_init__(self) -> None:
        """Check what does not depend on data.

        Raises:
            UserError: Naming the field and the value.
        """
        if self.chunk_steps % self.sequence_length:
            raise UserError(
                f"dataset.chunk_steps={self.chunk_steps} must be a multiple of sequence_length={self.sequence_length}."
            )
        twice = set(self.typed) & set(self.columns)
        taken = set(self.typed) & set(RESERVED)
        if twice or taken:
            name = sorted(twice or taken)[0]
            raise UserError(f"A dataset cannot have a typed column '{name}': the name is taken.")
        names = {*self.columns, *self.typed} | ({"obs"} if self.images else set())
        if not {"obs", "mean"} <= names:
            raise UserError("A dataset needs the student's observation and the teacher's mean.")

    @property
    def columns(self) -> dict[str, slice]:
        """Part of a transition -> its columns of the matrix."""
        return lay_out_columns(self.num_obs, self.targets)

    @property
    def images(self) -> list[str]:
        """The columns that are images of the observation, in order."""
        return [name for name in self.typed if name.startswith(IMAGE)]

    @property
    def obs_size(self) -> int:
        """Size of the student's whole observation."""
        flat = math.prod(self.typed["obs"].shape) if "obs" in self.typed else self.num_obs
        return flat + sum(math.prod(self.typed[name].shape) for name in self.images)

    @property
    def target_names(self) -> list[str]:
        """The teacher's outputs that are stored."""
        return [name for name in TARGET_FIELDS if name in self.columns or name in self.typed]

    @property
    def torch_dtype(self) -> torch.dtype:
        """Type of the matrix."""
        return DTYPES[self.dtype]

    @property
    def row_size(self) -> int:
        """Number of columns of the matrix."""
        return sum(part.stop - part.start for part in self.columns.values())

    @property
    def rows_per_chunk(self) -> int:
        """Number of transitions in a chunk."""
        return self.chunk_steps * self.num_envs

    @property
    def max_chunks(self) -> int:
        """Number of chunks that the buffer has room for."""
        return max(1, self.capacity // self.rows_per_chunk)

    @property
    def transition_bytes(self) -> float:
        """Mean size of a transition [bytes]; a stored memory is shared by the steps of its training sequence."""
        # 1 byte is the flag for an episode's start; indices, episode numbers and weights take 4 bytes each.
        extras = int(self.num_teachers > 1) + int(self.track_episodes) + int(self.weighted)
        size = self.row_size * self.torch_dtype.itemsize + 1 + 4 * extras
        size += sum(column.num_bytes for column in self.typed.values())
        return size + 4 * self.state_size / self.sequence_length

    @property
    def num_bytes(self) -> int:
        """Size of the whole buffer when full [bytes]."""
        return round(self.max_chunks * self.rows_per_chunk * self.transition_bytes)
