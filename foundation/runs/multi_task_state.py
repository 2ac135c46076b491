"""State that a run of several tasks resumes from, in one file, so that all tasks are at the same epoch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from foundation.config.typing_fit import read_fields
from foundation.core.errors import UserError
from foundation.core.text import quoted
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import LATEST, RunCheckpoint, RunState, SavedState, read_checkpoint


@dataclass
class MultiTaskState(SavedState):
    """State that the tasks of a run have in common."""

    key: ClassVar[str] = "multi_task"
    """Entry of the checkpoint that holds it."""
    epoch: int
    """Finished epochs."""
    best_epoch: int
    """Epoch of the best score, counted from 0; -1 before the first evaluation."""
    best_score: float | None
    """Best geometric mean of the tasks' normalised scores."""
    stopwatch: dict[str, dict[str, float]]
    early_stopping: dict[str, int | float]

    def check(self, where: str) -> None:
        """Raise :class:`UserError` if the numbers cannot be those of a run."""
        if self.epoch < 0 or self.best_epoch < -1:
            raise UserError(f"{where} is corrupt: epoch {self.epoch}, best epoch {self.best_epoch}.")


@dataclass
class MultiTaskCheckpoint:
    """A checkpoint of a run of several tasks, its types checked."""

    state: MultiTaskState
    tasks: dict[str, RunCheckpoint[RunState]]
    """Task -> its own checkpoint."""


def load_multi_task(run_dir: RunDir, ids: list[str], named: str | None = None) -> MultiTaskCheckpoint | None:
    """Load the checkpoint to resume from; None if the run stopped before it saved one.

    Args:
        run_dir: The run's folder.
        ids: Its tasks.
        named: Name of the checkpoint. None: the newest.

    Raises:
        UserError: If it has no state to resume from, or has other tasks.
    """
    if named is None and not (run_dir.path / LATEST).exists():
        return None
    path = run_dir.path / LATEST if named is None else run_dir.checkpoint_path(Path(named).name)
    values = run_dir.load_checkpoint(path.name)
    saved = values.get(MultiTaskState.key)
    tasks = values.get("tasks")
    if not isinstance(saved, dict) or not isinstance(tasks, dict):
        raise UserError(f"'{path}' holds no state of several tasks to resume from: name a checkpoint_epoch_*.pt")
    if list(tasks) != ids or not all(isinstance(own, dict) for own in tasks.values()):
        raise UserError(f"'{path}' has the tasks {quoted(list(tasks))}, and the run has {quoted(ids)}: it is corrupt.")
    state = MultiTaskState(**read_fields(MultiTaskState, saved, f"'{path}' ({MultiTaskState.key})"))
    state.check(f"'{path}'")
    return MultiTaskCheckpoint(state, {name: read_checkpoint(own, path, RunState) for name, own in tasks.items()})
