"""The dataset of a run on disk, so that it can be resumed exactly: one file per epoch, within a disk budget."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

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
    """

    def __init__(self, dataset: DistillationDataset, run_dir: RunDir, disk_gb: float, keep: bool = True):
        self.dataset = dataset
        self.keep = keep
        self.run_dir = run_dir
        self.budget = disk_gb * 1e9
        self.over_budget = disk_gb <= 0.0
        self.epochs: dict[int, list[int]] = {}
        self._obsolete: list[Path] = []

    def append(self, epoch: int, slots: list[int]) -> None:
        """Write the epoch's chunks."""
        if not self.keep or self.over_budget:
            return
        shard_bytes = len(slots) * self.dataset.num_bytes / self.dataset.max_chunks
        paths = [self.run_dir.shard_path(kept) for kept in self.epochs]
        used = sum(path.stat().st_size for path in paths if path.exists())
        if used + shard_bytes > self.budget:
            logger.warning(
                "The dataset's shards reached distill.dataset.disk_gb=%g: from epoch %d on, --resume is not exact.",
                self.budget / 1e9,
                epoch + 1,
            )
            self.over_budget = True
            self._obsolete += [self.run_dir.shard_path(kept) for kept in self.epochs]
            self.epochs = {}
            return
        with self.run_dir.writing():
            atomic_torch_save(
                export_chunks(self.dataset, slots), self.run_dir.shard_path(epoch), within=self.run_dir.not_to_make
            )
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
            self._obsolete.append(self.run_dir.shard_path(epoch))
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
        paths = {epoch: self.run_dir.shard_path(epoch) for epoch in sorted(epochs)}
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

    def _delete_but(self, kept: set[Path]) -> None:
        """Delete the shards that the restored state does not know: of epochs that were not finished, or given up."""
        for path in self.run_dir.dataset_dir.glob("*.pt"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the shards: the run is over, or over its budget."""
        shutil.rmtree(self.run_dir.dataset_dir, ignore_errors=True)
        self.epochs = {}
