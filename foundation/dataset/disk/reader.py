"""Read a dataset from disk: checksums and shapes are checked before anything is used."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from foundation.core.archives import check_regular
from foundation.core.errors import UserError
from foundation.core.files import load_json
from foundation.core.pointers import refuse_pointer
from foundation.core.text import one_line, quoted
from foundation.dataset.disk.format import EPISODE_COLUMNS, INDEX, ChunkFile, DatasetLayout
from foundation.dataset.episodes import EpisodeTable
from foundation.dataset.transition import DTYPES

_MAX_HEADER = 1 << 20
"""Longest header of a file of transitions [B]; one of a dozen tensors takes 2 KiB."""


class SavedDataset:
    """A folder that ``--save_dataset`` wrote.

    Args:
        path: The folder.

    Raises:
        UserError: If it is missing, not a dataset, or of a version that this program does not know.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        index = self.path / INDEX
        if not self.path.is_dir():
            raise UserError(
                f"there is no dataset at '{self.path}': --dataset must be a folder that --save_dataset wrote"
            )
        refuse_pointer(index)
        if not index.is_file():
            raise UserError(f"'{self.path}' holds no {INDEX}: --dataset must be a folder that --save_dataset wrote")
        values = load_json(index)
        if not isinstance(values, dict) or not isinstance(values.get("files", []), list):
            raise UserError(f"'{index}' is not the index of a dataset")
        self.layout = DatasetLayout.from_json(values, str(index))
        self.teacher = values.get("teacher") or {}
        if not isinstance(self.teacher, dict):
            raise UserError(f"'{index}' is corrupt: 'teacher' is {quoted(self.teacher)}, it must be a mapping.")
        self.files = [ChunkFile.from_json(entry, str(index)) for entry in values.get("files", [])]
        self._check_files(index)

    def _check_files(self, index: Path) -> None:
        """Refuse a list that names a file twice, or more transitions than its file holds: memory is set aside by it."""
        seen: set[str] = set()
        row_bytes = self.layout.row_size * DTYPES[self.layout.dtype].itemsize
        for entry in self.files:
            if entry.file in seen:
                raise UserError(f"'{index}' lists '{entry.file}' twice: take one of its entries out.")
            seen.add(entry.file)
            path = self.path / entry.file
            refuse_pointer(path)
            size = path.stat().st_size if path.is_file() else entry.bytes
            rows = entry.chunks * self.layout.chunk_steps * self.layout.num_envs
            if entry.rows != rows or rows * max(1, row_bytes) > min(size, entry.bytes):
                raise UserError(
                    f"'{index}' is corrupt: it lists {entry.rows} transitions in '{entry.file}', of {size} bytes."
                )

    @property
    def num_rows(self) -> int:
        """Transitions in all files."""
        return sum(entry.rows for entry in self.files)

    def first(self, number: int | None) -> SavedDataset:
        """Keep only so many files of the beginning: what a run began with, whatever was appended since."""
        if number is not None:
            if len(self.files) < number:
                raise UserError(f"'{self.path}' has {len(self.files)} files, the run began with {number}: restore them")
            self.files = self.files[:number]
        if not self.files:
            raise UserError(f"the dataset '{self.path}' is empty: nothing was saved to it yet")
        return self

    def read(self, entry: ChunkFile) -> dict[str, torch.Tensor]:
        """Read one file.

        Returns:
            Its tensors by name, those of the transitions of shape (chunks, chunk_steps, num_envs, ...).

        Raises:
            UserError: If it is missing, corrupt or of other shapes, or its transitions are not finite.
        """
        path = self.path / entry.file
        refuse_pointer(path)
        try:
            check_regular(path)
            data = path.read_bytes() if path.stat().st_size == entry.bytes else b""
        except OSError as error:
            raise UserError(f"cannot read '{path}': {error.strerror or error}") from None
        except ValueError as error:
            raise UserError(f"cannot read '{path}': {error}") from None
        if len(data) != entry.bytes or f"{zlib.crc32(data):08x}" != entry.crc32:
            raise UserError(
                f"'{path}' is corrupt: its checksum is not that of {INDEX}. Copy it again, or take its entry out."
            )
        if int.from_bytes(data[:8], "little") > _MAX_HEADER:  # each tensor that a header lists costs a kilobyte
            raise UserError(f"'{path}' is corrupt: its header is far longer than a dataset's. Copy it again.")
        try:
            tensors = load(data)
        except (SafetensorError, ValueError, KeyError) as error:
            raise UserError(f"'{path}' is not a safetensors file: {one_line(error)}") from None
        self._check(path, entry, tensors)
        return tensors

    def _row_shapes(self, entry: ChunkFile) -> dict[str, tuple[int, ...]]:
        layout = self.layout
        shape = (entry.chunks, layout.chunk_steps, layout.num_envs)
        wanted: dict[str, tuple[int, ...]] = {"rows": (*shape, layout.row_size), "resets": shape, "episode": shape}
        if layout.num_teachers > 1:
            wanted["teacher_index"] = shape
        if layout.weighted:
            wanted["weights"] = shape
        return wanted | {name: (*shape, *column.shape) for name, column in layout.typed.items()}

    def _check(self, path: Path, entry: ChunkFile, tensors: dict[str, torch.Tensor]) -> None:
        layout = self.layout
        for name, expected in self._row_shapes(entry).items():
            found = tuple(tensors[name].shape) if name in tensors else "missing"
            if found != expected:
                raise UserError(f"'{path}': '{name}' is {found}, {INDEX} has {expected}")
        if tensors["rows"].dtype != DTYPES[layout.dtype]:
            raise UserError(f"'{path}': its transitions are {tensors['rows'].dtype}, {INDEX} has {layout.dtype}")
        for name, column in layout.typed.items():
            if tensors[name].dtype != column.torch_dtype:
                raise UserError(f"'{path}': '{name}' is {tensors[name].dtype}, {INDEX} has {column.dtype}")
        self._check_values(path, tensors)
        lengths = {name: tuple(tensors[name].shape) if name in tensors else None for name in EPISODE_COLUMNS}
        if len(set(lengths.values())) != 1 or len(lengths["episode_id"] or (1, 1)) != 1:
            raise UserError(f"'{path}': its table of episodes is corrupt: {lengths}")

    def _check_values(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        layout = self.layout
        for name in ("resets", "episode", *(["teacher_index"] if layout.num_teachers > 1 else [])):
            if tensors[name].is_floating_point() or tensors[name].is_complex():
                raise UserError(f"'{path}': '{name}' is {tensors[name].dtype}, not integers")
        if layout.num_teachers > 1 and not bool(
            ((tensors["teacher_index"] >= 0) & (tensors["teacher_index"] < layout.num_teachers)).all()
        ):
            raise UserError(
                f"'{path}' has transitions of teachers that {INDEX} does not have ({layout.num_teachers} of them)"
            )
        names = ("rows", *(["weights"] if layout.weighted else []), *layout.typed)
        numbers = [tensors[name] for name in names if tensors[name].is_floating_point()]
        if layout.weighted and bool((tensors["weights"] < 0).any()):
            raise UserError(f"'{path}' has transitions of negative weight: take its entry out of {INDEX}")
        if not all(bool(torch.isfinite(tensor).all()) for tensor in numbers):
            raise UserError(f"'{path}' has NaN or infinite numbers in its transitions: take its entry out of {INDEX}")

    def contents(self) -> Iterator[tuple[str, dict[str, torch.Tensor], EpisodeTable]]:
        """Go through the files: the run that wrote each, its transition tensors, and the episodes that ended in it."""
        for entry in self.files:
            tensors = self.read(entry)
            columns = zip(EPISODE_COLUMNS, EpisodeTable.empty(), strict=True)
            episodes = EpisodeTable(*(tensors[name].to(like.dtype) for name, like in columns))
            yield entry.run, {name: tensors[name] for name in self._row_shapes(entry)}, episodes
