"""The index of a dataset on disk, ``dataset.json`` (docs/reference/dataset_format.md)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from foundation.config.derived_cfg import read_derived
from foundation.config.typing_fit import read_fields
from foundation.core.errors import UserError
from foundation.core.text import one_line, quoted
from foundation.dataset.spec import RESERVED
from foundation.dataset.transition import COLUMN_DTYPES, DTYPES, TARGET_FIELDS, Column, image_column, lay_out_columns

FORMAT = "foundation-dataset"
VERSION = 2
PLAIN_VERSION = 1
"""The version of datasets without typed columns, which older programs read too."""
INDEX = "dataset.json"
EPISODE_COLUMNS = ("episode_id", "episode_return", "episode_length", "episode_success", "episode_whole")
"""Tensors of a file that hold the episodes which ended in it, each (num_episodes,)."""


@dataclass(frozen=True)
class DatasetLayout:
    """Shapes and types that all chunk files of a dataset share."""

    task: str
    """Gym id of the task."""
    obs_groups: list[str]
    """Observation groups of the transitions' observations, concatenated in order."""
    obs_slice: list[int] | None
    """``[a, b]``: only these columns of the concatenated groups; null: all."""
    num_obs: int
    """Columns of the observation; its images are columns of their own (``typed``)."""
    targets: dict[str, int]
    """Columns of each of the teacher's outputs."""
    dtype: str
    """Type of the transitions: float32, float16 or bfloat16."""
    chunk_steps: int
    """Consecutive env steps in a chunk."""
    num_envs: int
    """Environments in a chunk."""
    num_teachers: int = 1
    """With more than one, each transition has its teacher's index."""
    weighted: bool = False
    """Each transition has a weight, ``weights``. This program writes none, and takes those that are there."""
    clip_actions: float | None = None
    """The labels are clipped to this bound [action units]; null: they are not."""
    predicted_group: str | None = None
    """Observation group that the column ``estimate`` holds, for a student to predict; null: there is none."""
    derived_groups: dict[str, Any] = field(default_factory=dict)
    """Those of ``obs_groups`` that were made of the environment's own, by name, with their settings and terms."""
    typed: dict[str, Column] = field(default_factory=dict)
    """Columns that are stored as tensors of their own, with their shapes and types (version 2)."""

    @property
    def columns(self) -> dict[str, slice]:
        """Columns of each field of a transition."""
        return lay_out_columns(self.num_obs, self.targets)

    @property
    def row_size(self) -> int:
        """Columns of a transition."""
        return self.num_obs + sum(self.targets.values())

    @property
    def images(self) -> dict[str, Column]:
        """The columns of the observation groups that are images, by the group, in the order of the observation."""
        named = {group: image_column(group) for group in self.obs_groups}
        return {group: self.typed[name] for group, name in named.items() if name in self.typed}

    @property
    def obs_size(self) -> int:
        """Size of the student's whole observation, images flattened."""
        flat = math.prod(self.typed["obs"].shape) if "obs" in self.typed else self.num_obs
        return flat + sum(math.prod(column.shape) for column in self.images.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each of the teacher's outputs, wherever it is stored."""
        own = {name: column.shape[-1] for name, column in self.typed.items() if name in TARGET_FIELDS}
        return self.targets | own

    def to_json(self) -> dict[str, Any]:
        """Return the head of ``dataset.json``."""
        columns = {name: [part.start, part.stop] for name, part in self.columns.items()}
        values = asdict(self)
        typed = values.pop("typed")
        for name in ("derived_groups", "predicted_group"):
            if not values[name]:
                del values[name]
        if not typed:
            return {"format": FORMAT, "version": PLAIN_VERSION, **values, "columns": columns}
        typed = {name: {"shape": list(column.shape), "dtype": column.dtype} for name, column in self.typed.items()}
        return {"format": FORMAT, "version": VERSION, **values, "columns": columns, "typed": typed}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> DatasetLayout:
        """Read the head of ``dataset.json``.

        Raises:
            UserError: If it is of another format or version, or corrupt.
        """
        if values.get("format") != FORMAT:
            raise UserError(f"'{where}' is not the index of a dataset (its format is {quoted(values.get('format'))}).")
        if values.get("version") not in (PLAIN_VERSION, VERSION):
            raise UserError(
                f"'{where}' is of version {quoted(values.get('version'))} of the format; this program reads versions "
                f"{PLAIN_VERSION} and {VERSION}: use the program that wrote it, or a newer one."
            )
        try:
            known = read_fields(cls, values, f"'{where}'", leave=("typed",))
            read_derived(known.get("derived_groups"), f"'{where}'")
            known["typed"] = {name: _column(name, entry) for name, entry in values.get("typed", {}).items()}
            layout = cls(**known)
            layout._check_sizes()
            layout._check_columns(values)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{type(error).__name__} {one_line(error)}"
            raise UserError(f"'{where}' is corrupt or incomplete: {what}.") from None
        return layout

    def _check_sizes(self) -> None:
        """Check the numbers and types that were read."""
        sizes = [self.chunk_steps, self.num_envs, self.num_teachers, *self.targets.values()]
        if self.images and "obs" not in self.typed:
            sizes.append(self.num_obs or 1)
            if any(len(column.shape) != 3 for column in self.images.values()):
                raise ValueError(f"images {self.images}")
        elif "obs" not in self.typed:
            sizes.append(self.num_obs)
        elif self.num_obs != 0:
            raise ValueError(f"num_obs {self.num_obs} beside a typed column 'obs'")
        if self.dtype not in DTYPES or any(type(size) is not int or not 1 <= size < 1 << 31 for size in sizes):
            raise ValueError(f"sizes {sizes} of {self.dtype}")
        if not self.obs_groups:
            raise ValueError("no observation groups")
        if self.obs_slice is not None and not (len(self.obs_slice) == 2 and 0 <= self.obs_slice[0] < self.obs_slice[1]):
            raise ValueError(f"obs_slice {self.obs_slice}")
        if self.clip_actions is not None and not 0 < self.clip_actions < math.inf:
            raise ValueError(f"clip_actions {self.clip_actions}")

    def _check_columns(self, values: Mapping[str, Any]) -> None:
        """Check the columns against each other, and against the file's own sizes."""
        if bool(self.typed) != (values["version"] == VERSION):
            raise ValueError(f"typed columns {sorted(self.typed)} in version {values['version']}")
        if "mean" not in self.sizes or not set(self.targets) <= set(TARGET_FIELDS):
            raise ValueError(f"targets {self.targets}")
        if set(self.typed) & {*self.targets, *RESERVED, *EPISODE_COLUMNS}:
            raise ValueError(f"typed columns {sorted(self.typed)}")
        own = self.to_json()["columns"]
        if values.get("columns", own) != own:
            raise ValueError(f"columns {values['columns']}, which have to be {own}")

    def difference(self, other: DatasetLayout, ignore: tuple[str, ...] = ()) -> str:
        """Name the first field in which two layouts differ, with both values; "" if they are the same."""
        mine = asdict(self)
        theirs = asdict(other)
        for name, value in mine.items():
            if name not in ignore and theirs[name] != value:
                return f"{name} is {value} there and {theirs[name]} here"
        return ""


def _column(name: object, entry: Any) -> Column:
    """Read a typed column's shape and type."""
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"a typed column {name!r}")
    shape = entry["shape"]
    dtype = entry["dtype"]
    if not isinstance(shape, list) or not shape or any(type(size) is not int or size < 1 for size in shape):
        raise ValueError(f"typed column '{name}' of shape {shape}")
    if dtype not in COLUMN_DTYPES:
        raise ValueError(f"typed column '{name}' of type {dtype}")
    return Column(tuple(shape), dtype)


@dataclass
class ChunkFile:
    """One file of a dataset, as ``dataset.json`` lists it."""

    file: str
    """Its name."""
    chunks: int
    """Chunks in it."""
    rows: int
    """Transitions in it."""
    bytes: int
    """Its size [bytes]."""
    crc32: str
    """Checksum of the whole file, eight hexadecimal digits."""
    run: str = ""
    """The run that wrote it. Chunks of one run follow each other in time, in the order of the list."""
    epoch: int = 0
    """The epoch of that run, counted from 1."""
    next_episode: int = 0
    """A number above those of all episodes in it."""

    @classmethod
    def from_json(cls, values: object, where: str) -> ChunkFile:
        """Read an entry of the list."""
        if not isinstance(values, Mapping):
            raise UserError(f"'{where}': an entry of its list of files is corrupt ({quoted(values)}).")
        entry = cls(**read_fields(cls, values, f"'{where}': an entry of its list of files"))
        plain = entry.file not in ("", ".", "..") and "/" not in entry.file and "\\" not in entry.file
        least = min(entry.chunks, entry.rows, entry.bytes) >= 1 and min(entry.epoch, entry.next_episode) >= 0
        if not (plain and least):
            raise UserError(f"'{where}': an entry of its list of files is corrupt ({quoted(dict(values))}).")
        return entry

    def to_json(self) -> dict[str, Any]:
        """Return the entry."""
        return asdict(self)
