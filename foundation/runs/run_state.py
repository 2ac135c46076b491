"""What a run leaves behind to be loaded or resumed: checkpoints of plain tensors, and shards of its dataset."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from foundation.config.typing_fit import read_fields
from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save, load_checkpoint
from foundation.core.text import quoted
from foundation.dataset.disk.chunks import check_chunks, export_chunks, import_chunks

if TYPE_CHECKING:
    from foundation.dataset.dataset import DistillationDataset

logger = logging.getLogger(__name__)
LATEST = "checkpoint_latest.pt"
BEST = "best_student.pt"


@dataclass
class _Student:
    """What a checkpoint of a run holds, read by its types."""

    epoch: int
    model_state_dict: dict[str, Any]
    student: dict[str, Any]
    best_epoch: int
    best_return: float | None
    optimizer_state_dict: dict[str, Any]


@dataclass
class _Resume:
    """What a run is put back to."""

    epoch: int
    env_steps: int
    num_envs: int
    baselines: dict[str, Any]
    stopwatch: dict[str, Any]
    collector: dict[str, Any]
    dataset: dict[str, Any]
    shards: dict[str, Any]
    torch_rng: torch.Tensor
    teachers: dict[str, Any] = field(default_factory=dict)
    early_stopping: dict[str, Any] = field(default_factory=dict)
    cuda_rng: torch.Tensor | None = None


def _check(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """Refuse a checkpoint to resume from that lacks something, or has it of another type."""
    state = checkpoint.get("resume")
    if state is None:  # a student alone, or an offline run: whoever resumes from it says so
        return checkpoint
    read_fields(_Student, checkpoint, f"'{path}'")
    if not isinstance(state, dict):
        raise UserError(f"'{path}' is corrupt: 'resume' is {quoted(state)}, it must be a mapping.")
    read = _Resume(**read_fields(_Resume, state, f"'{path}' (resume)"))
    if read.epoch < 0 or read.env_steps < 0 or read.num_envs < 1 or checkpoint["epoch"] < 0:
        raise UserError(f"'{path}' is corrupt: epoch {read.epoch}, {read.env_steps} steps of {read.num_envs} envs.")
    return checkpoint


def latest_checkpoint(run_dir: Any) -> dict[str, Any] | None:
    """Load the checkpoint that a run is resumed from; None where it stopped before it saved any."""
    path = run_dir.path / LATEST
    return _check(run_dir.load_checkpoint(LATEST), path) if path.exists() else None


def checkpoint_to_resume(run_dir: Any, named: str | None) -> dict[str, Any] | None:
    """Load the checkpoint that ``--checkpoint`` names, or else the newest; None where there is none."""
    if named:
        path = run_dir.checkpoint_path(Path(named).name)
        return _check(run_dir.load_checkpoint(path.name), path)
    return latest_checkpoint(run_dir)


def first_step(checkpoint: dict[str, Any] | None) -> int:
    """Return the first step that a run resumed from this checkpoint logs (again). The baselines are at step 0."""
    if checkpoint is None or not checkpoint.get("resume", {}).get("baselines"):
        return 0
    return checkpoint["epoch"] + 1


def steps_taken(checkpoint: dict[str, Any] | None) -> int:
    """Return how often the run to resume has stepped the environment that it collects in."""
    state = (checkpoint or {}).get("resume")
    return state["env_steps"] // state["num_envs"] if state else 0


def rows_of(dataset: dict[str, Any]) -> int:
    """Return how many rows a saved dataset held; states of earlier versions do not say it."""
    _, steps, num_envs, _ = dataset["shape"]
    return dataset["num_chunks"] * steps * num_envs


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Put torch's random generators back to where a checkpoint was written."""
    torch.set_rng_state(state["torch_rng"].cpu())
    if device.type == "cuda" and state.get("cuda_rng") is not None:
        torch.cuda.set_rng_state(state["cuda_rng"].cpu(), device)


class DatasetShards:
    """One file per epoch with the chunks that the epoch wrote, within a disk budget.

    Args:
        dataset: Whose chunks.
        run_dir: The run's folder; shards go to ``dataset/``.
        disk_gb: Budget [GB]; 0 writes none.
        keep: False when the dataset is emptied every epoch: nothing has to survive then.
    """

    def __init__(self, dataset: DistillationDataset, run_dir: Any, disk_gb: float, keep: bool = True):
        self.dataset, self.keep = dataset, keep
        self.folder, self._path, self._writing = run_dir.dataset_dir, run_dir.shard_path, run_dir.writing
        self.budget = disk_gb * 1e9
        self.over_budget = disk_gb <= 0.0
        self.epochs: dict[int, list[int]] = {}
        self._obsolete: list[Any] = []

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
                self.budget / 1e9,
                epoch + 1,
            )
            self.over_budget = True
            self._obsolete += [self._path(kept) for kept in self.epochs]
            self.epochs = {}
            return
        with self._writing():
            atomic_torch_save(export_chunks(self.dataset, slots), self._path(epoch))
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

    def restore(self, dataset_state: dict, state: dict[str, Any]) -> bool:
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

    def _delete_but(self, kept: set[Any]) -> None:
        """Delete the shards that the restored state does not know: of epochs that were not finished, or given up."""
        for path in self.folder.glob("*.pt"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the shards: the run is over, or over its budget."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.epochs = {}
