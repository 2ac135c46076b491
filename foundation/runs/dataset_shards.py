"""The dataset of a run on disk, so that it can be resumed exactly: one file per epoch, within a disk budget."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foundation.core.distributed import ALONE, Ranks
from foundation.core.files import atomic_torch_save, load_checkpoint
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.disk.chunks import check_chunks, export_chunks, import_chunks
from foundation.runs.run_dir import RunDir

logger = logging.getLogger(__name__)


class DatasetShards:
    """One file per epoch with the chunks that the epoch wrote, within a disk budget.

    Args:
        dataset: The dataset whose chunks are saved.
        run_dir: The run's folder; shards go to ``dataset/``.
        disk_gb: Budget [GB]; 0 writes none.
        keep: False when the dataset is emptied every epoch: nothing has to survive then.
        ranks: The processes of the run; each writes the chunks of its own dataset, to a folder of its own if several.
    """

    def __init__(
        self,
        dataset: DistillationDataset,
        run_dir: RunDir,
        disk_gb: float,
        keep: bool = True,
        ranks: Ranks = ALONE,
    ):
        self.dataset = dataset
        self.keep = keep
        self.run_dir = run_dir
        self.ranks = ranks
        self.budget = disk_gb * 1e9 / ranks.world_size
        self.over_budget = disk_gb <= 0.0
        self.epochs: dict[int, list[int]] = {}
        self._obsolete: list[Path] = []

    def _path(self, epoch: int) -> Path:
        return self.run_dir.shard_path(epoch, self.ranks.rank, self.ranks.world_size)

    def append(self, epoch: int, slots: list[int]) -> None:
        """Write the epoch's chunks."""
        if not self.keep or self.over_budget:
            return
        shard_bytes = len(slots) * self.dataset.num_bytes / self.dataset.max_chunks
        paths = [self._path(kept) for kept in self.epochs]
        used = sum(path.stat().st_size for path in paths if path.exists())
        if used + shard_bytes > self.budget:
            logger.warning(
                "The dataset's shards reached distill.dataset.disk_gb=%g: from epoch %d on, --resume is not exact.",
                self.ranks.world_size * self.budget / 1e9,
                epoch + 1,
            )
            self.over_budget = True
            self._obsolete += [self._path(kept) for kept in self.epochs]
            self.epochs = {}
            return
        with self.run_dir.writing():
            atomic_torch_save(export_chunks(self.dataset, slots), self._path(epoch), within=self.run_dir.not_to_make)
        self.epochs[epoch] = list(slots)
        self._forget_overwritten()

    def _forget_overwritten(self) -> None:
        """Leave out shards that hold nothing current. Their files stay until the state that needs them is replaced."""
        newest: dict[int, int] = {}
        for epoch in sorted(self.epochs):
            for slot in self.epochs[epoch]:
                newest[slot] = epoch
        current = set(newest.values())
        for epoch in [epoch for epoch in self.epochs if epoch not in current]:
            self._obsolete.append(self._path(epoch))
            del self.epochs[epoch]

    def prune(self) -> None:
        """Delete what no saved state needs any more; call after the state was saved."""
        for path in self._obsolete:
            path.unlink(missing_ok=True)
        self._obsolete = []

    def state_dict(self) -> dict[str, Any]:
        """Return which shards make up the dataset."""
        return {"epochs": self.epochs, "complete": not self.over_budget, "keep": self.keep}

    def restore(self, dataset_state: dict[str, Any], state: dict[str, Any]) -> bool:
        """Read the shards back.

        Returns:
            Whether the dataset is exactly as it was.
        """
        if not self.keep:
            self.dataset.load_state_dict(dataset_state)
            return True
        epochs = {int(epoch): list(slots) for epoch, slots in state["epochs"].items()}
        paths = {epoch: self._path(epoch) for epoch in sorted(epochs)}
        whole = state["keep"] and state["complete"] and all(path.exists() for path in paths.values())
        if whole:
            self.dataset.load_state_dict(dataset_state)
            for path in paths.values():
                shard = load_checkpoint(path)
                check_chunks(self.dataset, shard)
                import_chunks(self.dataset, shard)
            self.epochs = epochs
        # Else the dataset begins anew, empty: shards written from here on make it up again.
        self._delete_but(set(paths.values()) if whole else set())
        return whole or dataset_state["num_chunks"] == 0

    def redistribute(self, states: Sequence[dict[str, Any]], epochs: int) -> bool:
        """Read this process's share of what another number of processes has saved: every n-th chunk, by age.

        Args:
            states: The state of each of those processes' shards, in order of rank.
            epochs: Epochs that have ended.

        Returns:
            Whether the processes now have all transitions, but for those for which there is no room.
        """
        if not self.keep:
            return True
        chunks = [chunk for rank, state in enumerate(states) for chunk in self._chunks(state, rank, len(states))]
        files = {path for _, path, _ in chunks}
        whole = all(state["keep"] and state["complete"] for state in states) and all(map(Path.exists, files))
        if self.dataset.episode is not None or not whole:
            return not epochs
        mine = sorted(chunks, key=lambda chunk: chunk[0])[self.ranks.rank :: self.ranks.world_size]
        loaded: tuple[Path | None, dict[str, Any]] = (None, {})
        noted = min((epoch for epoch, *_ in chunks), default=0)
        for epoch, path, position in mine:
            noted = self._note_epochs(noted, epoch + 1)
            if loaded[0] != path:
                loaded = (path, load_checkpoint(path))
                check_chunks(self.dataset, loaded[1])
            slot = self.dataset.begin_chunk()
            tensors = {name: entry for name, entry in loaded[1].items() if name != "slots"}
            one = {name: tensor[position : position + 1] for name, tensor in tensors.items()}
            import_chunks(self.dataset, {"slots": [slot], **one})
            self.dataset.commit_chunk()
        self._note_epochs(noted, epochs)
        self.append(epochs - 1, list(range(self.dataset.num_chunks)))
        self._obsolete += [path for path in files if self.ranks.is_first]
        return True

    def _note_epochs(self, first: int, end: int) -> int:
        """Let the dataset count the epochs from ``first`` up to ``end``, those without a chunk here too."""
        for _ in range(first, end):
            self.dataset.begin_epoch()
        return max(first, end)

    def _chunks(self, state: dict[str, Any], rank: int, world_size: int) -> list[tuple[int, Path, int]]:
        """Return the epoch of each current chunk that a process has saved, its file and its position in that."""
        newest: dict[int, tuple[int, Path, int]] = {}
        for epoch, slots in sorted((int(epoch), slots) for epoch, slots in state["epochs"].items()):
            path = self.run_dir.shard_path(epoch, rank, world_size)
            newest |= {slot: (epoch, path, position) for position, slot in enumerate(slots)}
        return list(newest.values())

    def _delete_but(self, kept: set[Path]) -> None:
        """Delete the shards that the restored state does not know: of epochs that were not finished, or given up."""
        for path in self._path(0).parent.glob("*.pt"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the shards: the run is over, or over its budget."""
        shutil.rmtree(self._path(0).parent, ignore_errors=True)
        if self.ranks.is_first:  # and what is left of other numbers of processes
            for folder in (self.run_dir.dataset_dir, *self.run_dir.path.glob("dataset_*_of_*")):
                shutil.rmtree(folder, ignore_errors=True)
        self.epochs = {}
