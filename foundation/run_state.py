"""What a run leaves behind to be loaded or resumed: checkpoints of plain tensors, and shards of its dataset."""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any

import torch

import foundation
from foundation.config.plain import to_plain
from foundation.errors import UserError
from foundation.files import atomic_torch_save, load_checkpoint

if TYPE_CHECKING:
    from foundation.data.dataset import DistillationDataset
    from foundation.runner import DistillationRunner

logger = logging.getLogger(__name__)
LATEST = "checkpoint_latest.pt"


def student_checkpoint(runner: DistillationRunner, epoch: int, evaluation: dict | None = None) -> dict[str, Any]:
    """Return what rebuilds the student, and its optimiser.

    Args:
        runner: The run.
        epoch: The epoch that made these weights, counted from 0; stored counted from 1.
        evaluation: What the student was measured at.

    Returns:
        Plain tensors and values, for ``torch.load(weights_only=True)``.
    """
    policy = runner.learner.policy
    return {
        "epoch": epoch + 1,
        "model_state_dict": {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()},
        **runner.learner.state_dict(),
        "best_return": runner.best_return,
        "best_epoch": runner.best_epoch,
        "student": policy.describe(),
        "obs_groups": list(runner.student_obs.groups),
        "obs_slice": None if runner.student_obs.obs_slice is None else list(runner.student_obs.obs_slice),
        "clip_actions": runner.label_bound,
        "task": runner.cfg.task,
        "evaluation": evaluation or {},
        "distillation": to_plain(runner.cfg),
        "version": foundation.__version__,
    }


def save_latest(runner: DistillationRunner) -> None:
    """Save everything that ``--resume`` needs, after each epoch."""
    payload = student_checkpoint(runner, runner.epoch - 1)
    payload["resume"] = {
        "epoch": runner.epoch,
        "env_steps": runner.env_steps,
        "baselines": runner.baselines,
        "stopwatch": runner.stopwatch.state_dict(),
        "collector": runner.collector.state_dict(),
        "dataset": runner.dataset.state_dict(),
        "shards": runner.shards.state_dict(),
        "torch_rng": torch.get_rng_state(),
        "num_envs": runner.env.num_envs,
    }
    runner.run_dir.save_checkpoint(LATEST, payload)


def latest_checkpoint(run_dir: Any) -> dict[str, Any]:
    """Load the checkpoint that a run is resumed from.

    Raises:
        UserError: If there is none.
    """
    if not (run_dir.path / LATEST).exists():
        raise UserError(f"{run_dir.path} has no {LATEST}: it stopped before its first epoch; start it anew.")
    return run_dir.load_checkpoint(LATEST)


def restore(runner: DistillationRunner, checkpoint: dict[str, Any]) -> str:
    """Put a run back to where a checkpoint was written.

    Returns:
        "" if it goes on exactly, else why not.
    """
    state = checkpoint.get("resume")
    if state is None:
        raise UserError("This checkpoint holds a student but no state to resume from; resume from the run's folder.")
    if state["num_envs"] != runner.env.num_envs:
        raise UserError(f"The run had --num_envs {state['num_envs']}, now {runner.env.num_envs}: resume with the same.")
    if checkpoint["student"] != runner.student.describe():
        raise UserError("The student's architecture differs from that of the run to resume: give the same settings.")
    runner.learner.load_state_dict(checkpoint["model_state_dict"], checkpoint)
    runner.best_return, runner.best_epoch = checkpoint["best_return"], checkpoint["best_epoch"]
    runner.epoch, runner.env_steps = state["epoch"], state["env_steps"]
    runner.baselines = state["baselines"]
    runner.stopwatch.load_state_dict(state["stopwatch"])
    torch.set_rng_state(state["torch_rng"])
    reasons = []
    if not runner.collector.load_state_dict(state["collector"]):
        reasons.append("this engine cannot restore its environments")
    if not runner.shards.restore(state["dataset"], state["shards"]):
        reasons.append("its dataset was not kept on disk (dataset.disk_gb)")
    return " and ".join(reasons)


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
        self.folder, self._path = run_dir.dataset_dir, run_dir.shard_path
        self.budget = disk_gb * 1e9
        self.over_budget = disk_gb <= 0.0
        self.epochs: dict[int, list[int]] = {}
        self._obsolete: list[Any] = []

    def append(self, epoch: int, slots: list[int]) -> None:
        """Write the epoch's chunks."""
        if not self.keep or self.over_budget:
            return
        shard_bytes = len(slots) * self.dataset.num_bytes / self.dataset.max_chunks
        used = sum(path.stat().st_size for path in self.folder.glob("*.pt")) if self.folder.exists() else 0
        if used + shard_bytes > self.budget:
            logger.warning(
                "The dataset's shards reached distill.dataset.disk_gb=%g: from epoch %d on, --resume is not exact.",
                self.budget / 1e9,
                epoch + 1,
            )
            self.over_budget = True
            self.remove()
            return
        self.folder.mkdir(exist_ok=True)
        atomic_torch_save(self.dataset.export_chunks(slots), self._path(epoch))
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
        if not state["keep"]:
            self.dataset.load_state_dict(dataset_state)
            return True
        epochs = {int(epoch): list(slots) for epoch, slots in state["epochs"].items()}
        paths = [self._path(epoch) for epoch in sorted(epochs)]
        if not state["complete"] or not all(path.exists() for path in paths):
            self.over_budget = True
            return dataset_state["num_chunks"] == 0
        self.dataset.load_state_dict(dataset_state)
        for path in paths:
            self.dataset.import_chunks(load_checkpoint(path))
        self.epochs = epochs
        return True

    def remove(self) -> None:
        """Delete the shards: the run is over, or over its budget."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.epochs = {}
