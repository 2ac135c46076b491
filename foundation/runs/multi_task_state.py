"""State that a run of several tasks resumes from: one file, so that no task is behind the others."""

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
    """State of a run of several tasks, beside the states of its tasks."""

    key: ClassVar[str] = "multi_task"
    epoch: int
    """Epochs that have ended."""
    best_epoch: int
    best_score: float | None
    """Best geometric mean of the tasks' normalised scores."""
    stopwatch: dict[str, dict[str, float]]
    early_stopping: dict[str, int | float]

    def check(self, where: str) -> None:
        """Raise :class:`UserError` for numbers that no run has."""
        if self.epoch < 0 or self.best_epoch < -1:
            raise UserError(f"{where} is corrupt: epoch {self.epoch}, best epoch {self.best_epoch}.")


@dataclass
class MultiTaskCheckpoint:
    """A checkpoint of a run of several tasks, its types checked."""

    state: MultiTaskState
    tasks: dict[str, RunCheckpoint[RunState]]
    """The tasks' own."""


def load_multi_task(run_dir: RunDir, ids: list[str], named: str | None = None) -> MultiTaskCheckpoint | None:
    """Load the checkpoint to go on from; None where the run stopped before it saved any.

    Args:
        run_dir: The run's folder.
        ids: Its tasks.
        named: Name of the checkpoint. None: the newest.

    Raises:
        UserError: If it holds no state, or other tasks.
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
