"""The state that a run is resumed from: entries of its checkpoints, read by their types, written as plain values."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from foundation.config.typing_fit import read_fields
from foundation.core.errors import UserError
from foundation.core.text import quoted
from foundation.runs.run_dir import RunDir

LATEST = "checkpoint_latest.pt"
BEST = "best_student.pt"


@dataclass
class _Student:
    """Entries that every checkpoint of a run has."""

    epoch: int
    model_state_dict: dict[str, Any]
    student: dict[str, Any]
    best_epoch: int
    best_return: float | None
    optimizer_state_dict: dict[str, Any]


@dataclass
class SavedState(ABC):
    """State that a kind of run resumes from; its fields are entries of a checkpoint."""

    key: ClassVar[str]
    """The checkpoint's entry."""

    @abstractmethod
    def check(self, where: str) -> None:
        """Raise :class:`UserError` for numbers that no run has."""


@dataclass
class RankState:
    """What each process of a run has of its own."""

    collector: dict[str, Any]
    dataset: dict[str, Any]
    shards: dict[str, Any]
    """Files that hold the dataset's transitions."""
    torch_rng: torch.Tensor
    cuda_rng: torch.Tensor | None = None

    def restore_rng(self, device: torch.device) -> None:
        """Put torch's random generators back to where they were."""
        torch.set_rng_state(self.torch_rng.cpu())
        if device.type == "cuda" and self.cuda_rng is not None:
            torch.cuda.set_rng_state(self.cuda_rng.cpu(), device)


@dataclass
class RunState(SavedState):
    """Everything that a distillation run resumes from except the student and the dataset's transitions.

    The parts of the first process are fields of their own, so that a run of one process has them as it always had.
    """

    key: ClassVar[str] = "resume"
    epoch: int
    """Epochs that have ended."""
    env_steps: int
    """Transitions that were collected."""
    num_envs: int
    baselines: dict[str, dict[str, Any]]
    """Teacher, zero and random actions -> figures; empty until they are measured."""
    stopwatch: dict[str, dict[str, float]]
    collector: dict[str, Any]
    dataset: dict[str, Any]
    shards: dict[str, Any]
    """Files that hold the dataset's transitions."""
    torch_rng: torch.Tensor
    teachers: dict[str, Any] = field(default_factory=dict)
    early_stopping: dict[str, int | float] = field(default_factory=dict)
    dataset_rows: int | None = None
    """Transitions in the dataset; None in states of earlier versions (see :attr:`num_rows`)."""
    cuda_rng: torch.Tensor | None = None
    others: list[dict[str, Any]] = field(default_factory=list)
    """Parts of the processes of rank 1 and above, as of :class:`RankState`."""

    def by_rank(self) -> list[RankState]:
        """Return the parts of all processes, in order of rank."""
        first = RankState(self.collector, self.dataset, self.shards, self.torch_rng, self.cuda_rng)
        return [first, *(RankState(**read_fields(RankState, part, "the state of a process")) for part in self.others)]

    def check(self, where: str) -> None:
        """Raise :class:`UserError` for numbers that no run has."""
        if self.epoch < 0 or self.env_steps < 0 or self.num_envs < 1:
            steps = f"{self.env_steps} steps of {self.num_envs} envs"
            raise UserError(f"{where} is corrupt: epoch {self.epoch}, {steps}.")
        for name in ("teacher", "random") if self.baselines else ():
            measured = self.baselines.get(name, {}).get("mean_return")
            if not isinstance(measured, int | float):
                raise UserError(f"{where} is corrupt: the baseline '{name}' has the return {quoted(measured)}.")

    @property
    def num_rows(self) -> int:
        """Transitions in the dataset when the run was saved."""
        if self.dataset_rows is not None:
            return self.dataset_rows
        _, steps, num_envs, _ = self.dataset["shape"]
        return self.dataset["num_chunks"] * steps * num_envs

    @property
    def steps_taken(self) -> int:
        """Steps of the environment that the run collects in."""
        return self.env_steps // (self.num_envs * self.world_size)

    @property
    def world_size(self) -> int:
        """Processes that shared the run when it was saved."""
        return 1 + len(self.others)

    def restore_rng(self, device: torch.device) -> None:
        """Put torch's random generators back to where they were in the first process."""
        self.by_rank()[0].restore_rng(device)


@dataclass
class OfflineState(SavedState):
    """Everything that an offline run resumes from except the student."""

    key: ClassVar[str] = "offline"
    epoch: int
    """Epochs that have ended."""
    best_loss: float
    """Lowest loss on the held-out transitions."""
    best: dict[str, Any]
    """Figures of the best student."""
    files: list[str]
    """Checksums of the dataset's files."""
    stopwatch: dict[str, dict[str, float]]
    early_stopping: dict[str, int | float]
    dataset: dict[str, Any]
    torch_rng: torch.Tensor
    others: list[dict[str, Any]] = field(default_factory=list)
    """``dataset`` and ``torch_rng`` of the processes of rank 1 and above."""

    @property
    def world_size(self) -> int:
        """Processes that shared the run when it was saved."""
        return 1 + len(self.others)

    def check(self, where: str) -> None:
        """Raise :class:`UserError` for numbers that no run has."""
        if self.epoch < 0:
            raise UserError(f"{where} is corrupt: epoch {self.epoch}.")


State = TypeVar("State", bound=SavedState)


@dataclass
class RunCheckpoint(Generic[State]):
    """A checkpoint of a run, its types checked."""

    values: dict[str, Any]
    """The whole file: the student, its optimiser and what describes them."""
    state: State | None
    """State to resume from; None where the file holds a student alone."""

    @property
    def epoch(self) -> int:
        """Epochs that had ended."""
        return int(self.values["epoch"])


def read_checkpoint(values: dict[str, Any], path: Path, kind: type[State]) -> RunCheckpoint[State]:
    """Check the types of what a checkpoint holds.

    Args:
        values: The file's values.
        path: The file, for messages.
        kind: The state of the run that is to be resumed.

    Raises:
        UserError: Naming the first value that is missing or of another type.
    """
    saved = values.get(kind.key)
    if saved is None:
        return RunCheckpoint(values, None)
    where = f"'{path}'"
    student = _Student(**read_fields(_Student, values, where))
    if student.epoch < 0:
        raise UserError(f"{where} is corrupt: epoch {student.epoch}.")
    if not isinstance(saved, dict):
        raise UserError(f"{where} is corrupt: '{kind.key}' is {quoted(saved)}, it must be a mapping.")
    state = kind(**read_fields(kind, saved, f"{where} ({kind.key})"))
    state.check(where)
    return RunCheckpoint(values, state)


def write_state(state: SavedState) -> dict[str, Any]:
    """Return a state as the entry of a checkpoint, by its key: plain values and tensors."""
    values = {entry.name: getattr(state, entry.name) for entry in dataclasses.fields(state)}
    return {state.key: values}


def load_latest(run_dir: RunDir, kind: type[State]) -> RunCheckpoint[State] | None:
    """Load the checkpoint that a run is resumed from; None where it stopped before it saved any."""
    path = run_dir.path / LATEST
    return read_checkpoint(run_dir.load_checkpoint(LATEST), path, kind) if path.exists() else None


def load_named(run_dir: RunDir, named: str | None, kind: type[State]) -> RunCheckpoint[State] | None:
    """Load the checkpoint that ``--checkpoint`` names, or else the newest; None where there is none."""
    if not named:
        return load_latest(run_dir, kind)
    path = run_dir.checkpoint_path(Path(named).name)
    return read_checkpoint(run_dir.load_checkpoint(path.name), path, kind)


def first_step(checkpoint: RunCheckpoint[RunState] | None) -> int:
    """Return the first step that a run resumed from this checkpoint logs (again). The baselines are at step 0."""
    if checkpoint is None or checkpoint.state is None or not checkpoint.state.baselines:
        return 0
    return checkpoint.epoch + 1
