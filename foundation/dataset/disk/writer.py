"""Write a dataset to disk, file by file. The files in ``dataset.json`` are complete even if the process is killed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import weakref
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes, lock_folder
from foundation.dataset.disk.format import EPISODE_COLUMNS, INDEX, ChunkFile, DatasetLayout
from foundation.dataset.disk.reader import SavedDataset
from foundation.dataset.episodes import EpisodeTable

MAX_FILE_BYTES = 64_000_000
"""Size of the buffered chunks from which on a file is written [bytes]; one is also written when an epoch ends."""
_CHUNK_FILE = re.compile(r"chunk_\d{6,}\.safetensors")
_LEFTOVER = re.compile(r"\.(chunk_\d{6,}\.safetensors|dataset\.json)\..*\.tmp")


class DatasetWriter:
    """Appends chunks to a folder. One process at a time may write to it.

    A file is complete before ``dataset.json`` lists it. Files that are not listed are not part of the dataset, and are
    removed here. A resumed run removes what it had saved of the epochs that it collects again.

    Args:
        path: The folder; made if it is missing.
        layout: Layout of the chunks; must be equal to the folder's if it holds a dataset.
        run: Identifier of this run, the same after ``--resume``.
        teacher: Description of the teacher, in plain values.

    Raises:
        UserError: If the folder holds something else, or a dataset of another layout, or is being written to.
    """

    def __init__(self, path: str | Path, layout: DatasetLayout, run: str, teacher: Mapping[str, Any] | None = None):
        self.path = Path(path)
        self.layout = layout
        self.run = run
        self.teacher = dict(teacher or {})
        self.files: list[ChunkFile] = []
        self._chunks: list[dict[str, torch.Tensor]] = []
        self._episodes: list[EpisodeTable] = []
        self.is_open = False
        self._unlock: Any = None
        self._look()

    def _look(self) -> None:
        """Read the index of an existing folder; write nothing."""
        if not self.path.exists():
            return
        try:
            content = os.listdir(self.path)
        except OSError as error:
            raise UserError(f"cannot save a dataset to '{self.path}': {error.strerror or error}") from None
        if INDEX not in content and any(not name.startswith(".") for name in content):
            raise UserError(f"--save_dataset: '{self.path}' holds other files and no {INDEX}: name a new folder")
        if INDEX in content:
            self._take_up()

    def open(self) -> None:
        """Make the folder, lock it, and remove files that are not listed; a second call does nothing."""
        if self.is_open:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot save a dataset to '{self.path}': {error.strerror or error}") from None
        self._lock_folder()
        self.is_open = True
        self._look()  # others may have appended in the meantime
        self._write_index()
        self._clean()

    def _take_up(self) -> None:
        saved = SavedDataset(self.path)
        difference = saved.layout.difference(self.layout)
        if difference:
            raise UserError(f"cannot append to the dataset '{self.path}': its {difference}; name another folder")
        self.files = saved.files
        self.teacher = saved.teacher or self.teacher

    def _lock_folder(self) -> None:
        handle = lock_folder(self.path, _refusal(self.path))
        if handle is not None:
            self._unlock = weakref.finalize(self, os.close, handle)

    def close(self) -> None:
        """Release the lock. Chunks that have not been flushed are lost."""
        if self._unlock is not None:
            self._unlock()

    @property
    def next_episode(self) -> int:
        """The first episode number that no file uses."""
        return max((entry.next_episode for entry in self.files), default=0)

    def add(self, chunks: dict[str, torch.Tensor], episodes: EpisodeTable, epoch: int) -> None:
        """Buffer chunks, in the order in which they were collected.

        Args:
            chunks: ``rows``, ``resets``, ``episode`` and the other columns, each (chunks, chunk_steps, num_envs, ...).
            episodes: The episodes that ended in them.
            epoch: Their epoch, counted from 1.
        """
        self._chunks.append({name: tensor.cpu() for name, tensor in chunks.items()})
        self._episodes.append(episodes)
        if sum(tensor.nbytes for chunk in self._chunks for tensor in chunk.values()) >= MAX_FILE_BYTES:
            self.flush(epoch)

    def flush(self, epoch: int) -> None:
        """Write the buffered chunks to a file.

        Raises:
            UserError: If the disk is full; the listed files stay complete.
        """
        if not self._chunks:
            return
        names = self._chunks[0].keys()
        tensors = {name: torch.cat([chunk[name] for chunk in self._chunks]).contiguous() for name in names}
        table = EpisodeTable.join(self._episodes)
        data = save(tensors | dict(zip(EPISODE_COLUMNS, table, strict=True)))
        number = 1 + max((int(re.sub(r"\D", "", entry.file) or 0) for entry in self.files), default=-1)
        name = f"chunk_{number:06d}.safetensors"
        chunks = len(tensors["rows"])
        atomic_write_bytes(self.path / name, data)
        rows = chunks * self.layout.chunk_steps * self.layout.num_envs
        beyond = int(tensors["episode"].max()) + 1
        self.files.append(ChunkFile(name, chunks, rows, len(data), f"{zlib.crc32(data):08x}", self.run, epoch, beyond))
        self._write_index()
        self._chunks = []
        self._episodes = []

    def begin_epoch(self, epoch: int) -> None:
        """Remove what this run has saved of this epoch and later ones: they are collected again."""
        self.open()
        self._chunks = []
        self._episodes = []
        kept = [entry for entry in self.files if entry.run != self.run or entry.epoch < epoch]
        if len(kept) < len(self.files):
            self.files = kept
            self._write_index()
            self._clean()

    def _write_index(self) -> None:
        values = self.layout.to_json() | {"teacher": self.teacher}
        values["files"] = [entry.to_json() for entry in self.files]
        text = json.dumps(values, indent=1) + "\n"
        atomic_write_bytes(self.path / INDEX, text.encode())

    def _clean(self) -> None:
        """Remove files that are not listed: a killed process left them, or their epoch is collected again."""
        listed = {entry.file for entry in self.files}
        for name in os.listdir(self.path):
            if _LEFTOVER.fullmatch(name) or (_CHUNK_FILE.fullmatch(name) and name not in listed):
                with contextlib.suppress(OSError):
                    (self.path / name).unlink()


def refuse_dataset_in_use(path: str | None) -> None:
    """Check, before a run's folder is made, that no other process is saving to the dataset.

    Args:
        path: ``--save_dataset``; None is nothing to check.

    Raises:
        UserError: If another process is saving to it.
    """
    if path is None or not Path(path).is_dir():
        return
    handle = lock_folder(path, _refusal(path))
    if handle is not None:
        os.close(handle)


def _refusal(path: Path | str) -> str:
    return f"another process is saving to the dataset '{path}': name another folder"
