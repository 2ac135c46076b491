"""The index of a dataset on disk, ``dataset.json`` (docs/dataset_format.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from foundation.core.errors import UserError
from foundation.dataset.transition import DTYPES, TARGET_FIELDS, lay_out_columns

FORMAT, VERSION = "foundation-dataset", 1
INDEX = "dataset.json"


@dataclass(frozen=True)
class DatasetLayout:
    """What all chunk files of a dataset have in common."""

    task: str
    """Gym id of the task."""
    obs_groups: list[str]
    """Observation groups of the rows' observations, concatenated in order."""
    obs_slice: list[int] | None
    """``[a, b]``: only these columns of the concatenated groups; null: all."""
    num_obs: int
    """Columns of the observation."""
    targets: dict[str, int]
    """Columns of each of the teacher's outputs."""
    dtype: str
    """Type of the rows: float32, float16 or bfloat16."""
    chunk_steps: int
    """Consecutive env steps in a chunk."""
    num_envs: int
    """Environments in a chunk."""
    num_teachers: int = 1
    """With more than one, each row has its teacher's index."""
    weighted: bool = False
    """Each row has a weight, ``weights``. This program writes none, and takes those that are there."""
    clip_actions: float | None = None
    """The labels are clipped to this bound [action units]; null: they are not."""

    @property
    def columns(self) -> dict[str, slice]:
        """Columns of each field of a row."""
        return lay_out_columns(self.num_obs, self.targets)

    @property
    def row_size(self) -> int:
        """Columns of a row."""
        return self.num_obs + sum(self.targets.values())

    def to_json(self) -> dict[str, Any]:
        """Return the head of ``dataset.json``."""
        columns = {name: [part.start, part.stop] for name, part in self.columns.items()}
        return {"format": FORMAT, "version": VERSION, **asdict(self), "columns": columns}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> DatasetLayout:
        """Read the head of ``dataset.json``.

        Raises:
            UserError: If it is of another format or version, or spoiled.
        """
        if values.get("format") != FORMAT:
            raise UserError(f"'{where}' is not the index of a dataset (its format is {values.get('format')!r}).")
        if values.get("version") != VERSION:
            raise UserError(
                f"'{where}' is of version {values.get('version')!r} of the format; this program reads version "
                f"{VERSION}: use the program that wrote it, or a newer one."
            )
        try:
            layout = cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})
            sizes = [layout.num_obs, layout.chunk_steps, layout.num_envs, layout.num_teachers, *layout.targets.values()]
            if layout.dtype not in DTYPES or any(type(size) is not int or size < 1 for size in sizes):
                raise ValueError(f"sizes {sizes} of {layout.dtype}")
            if "mean" not in layout.targets or not set(layout.targets) <= set(TARGET_FIELDS):
                raise ValueError(f"targets {layout.targets}")
            own = layout.to_json()["columns"]
            if values.get("columns", own) != own:
                raise ValueError(f"columns {values['columns']}, which have to be {own}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"'{where}' is spoiled or incomplete: {type(error).__name__} {error}.") from None
        return layout

    def difference(self, other: DatasetLayout, ignore: tuple[str, ...] = ()) -> str:
        """Name the first field in which two layouts differ, with both values; "" if they are the same."""
        mine, theirs = asdict(self), asdict(other)
        for name, value in mine.items():
            if name not in ignore and theirs[name] != value:
                return f"{name} is {value} there and {theirs[name]} here"
        return ""


@dataclass
class ChunkFile:
    """One file of a dataset, as ``dataset.json`` lists it."""

    file: str
    """Its name."""
    chunks: int
    """Chunks in it."""
    rows: int
    """Rows in it."""
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
    def from_json(cls, values: Any, where: str) -> ChunkFile:
        """Read an entry of the list."""
        try:
            known = {name: values[name] for name in ("file", "chunks", "rows", "bytes", "crc32")}
            entry = cls(**known, run=str(values.get("run", "")), epoch=int(values.get("epoch", 0)))
            entry.next_episode = int(values.get("next_episode", 0))
            if "/" in entry.file or "\\" in entry.file or min(entry.chunks, entry.rows, entry.bytes) < 1:
                raise ValueError(entry.file)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"'{where}': an entry of its list of files is spoiled ({error}).") from None
        return entry

    def to_json(self) -> dict[str, Any]:
        """Return the entry."""
        return asdict(self)
