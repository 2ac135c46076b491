"""The context of a run: configuration, folder, device, rank, seeds, console and stop signal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch

from foundation.config.distillation_cfg import DistillationCfg, LoggerName
from foundation.core.distributed import Ranks, current
from foundation.core.errors import RunInterrupted
from foundation.runs.metrics_writer import MetricsWriter
from foundation.runs.report import LineReporter, Reporter
from foundation.runs.run_dir import RunDir

EVAL_SEED = 1_000_003
"""Added to a run's seed for the evaluations during the run; each purpose has seeds of its own."""
FINAL_SEED = 2_000_003
"""Added for the last measurement."""
OFFSET_SEED = 3_000_003
"""Added for the episodes that position offsets are estimated from."""
GATE_SEED = 4_000_003
"""Added for the episodes that the gate of many teachers is fitted to."""
ROBUSTNESS_SEED = 5_000_003
"""Added for the measurement of robustness."""

POLL_INTERVAL = 64
"""Updates of the student from one time that several processes ask each other whether to stop to the next."""

Interrupted = Callable[[], str | None]
"""Returns the reason to stop, or a false value."""


class RunSettings(Protocol):
    """The settings that every kind of run has; each has a config of its own with more."""

    task: str | None
    seed: int
    save_interval: int
    """Epochs between two checkpoints that are kept."""
    logger: LoggerName
    log_project_name: str | None

    @property
    def n_epochs(self) -> int:
        """Epochs, or iterations, of the run."""
        ...


Settings = TypeVar("Settings", bound=RunSettings)
Shown = TypeVar("Shown", bound=LineReporter)


@dataclass
class ProcessContext(Generic[Settings, Shown]):
    """Everything that a run of any kind gets from the process that it runs in."""

    cfg: Settings
    """The run's configuration, observation groups resolved."""
    run_dir: RunDir
    """Where checkpoints and the summary go."""
    reporter: Shown
    """Takes lines for the console, and scalars."""
    interrupted: Interrupted
    """Returns the reason to stop, or a false value."""
    device: torch.device
    """Device of the student and its observations."""
    ranks: Ranks = field(default_factory=current)
    """The processes that share the run."""
    _polled: int = 0

    @property
    def rank(self) -> int:
        """Rank of this process among those that share the run."""
        return self.ranks.rank

    @property
    def world_size(self) -> int:
        """Number of processes that share the run."""
        return self.ranks.world_size

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files: of several, one does."""
        return self.ranks.is_first

    @property
    def seed(self) -> int:
        """Seed of this process: another one in each, so that no two collect the same."""
        return self.cfg.seed + self.rank

    @property
    def eval_seed(self) -> int:
        """Seed of the evaluations during the run; the same each time, so that they can be compared."""
        return self.cfg.seed + EVAL_SEED + self.rank

    @property
    def final_seed(self) -> int:
        """Seed of the last measurement, on which no choice was made."""
        return self.cfg.seed + FINAL_SEED + self.rank

    def poll(self) -> None:
        """Raise ``RunInterrupted`` if the user asked to stop; for work inside ``ranks.together``."""
        reason = self.interrupted()
        if reason:
            raise RunInterrupted(str(reason))

    def poll_in_step(self) -> None:
        """Raise ``RunInterrupted`` in all processes if one was asked to stop; all of them call it equally often."""
        if self.world_size == 1:
            self.poll()
            return
        self._polled += 1
        if self._polled % POLL_INTERVAL:
            return
        reason = self.ranks.any_of(str(self.interrupted() or ""))
        if reason:
            raise RunInterrupted(reason)


@dataclass
class RunContext(ProcessContext[DistillationCfg, Reporter]):
    """The context of a run that distils."""

    @classmethod
    def make(
        cls,
        cfg: DistillationCfg,
        run_dir: RunDir,
        device: torch.device | str,
        writer: MetricsWriter | None = None,
        interrupted: Interrupted = lambda: None,
    ) -> RunContext:
        """Make the context of a run in this process and those that it has joined.

        Args:
            cfg: The run's configuration.
            run_dir: Where checkpoints and the summary go.
            device: Where the student is.
            writer: Where scalars are logged. None: nowhere.
            interrupted: Returns the reason to stop, or a false value.
        """
        return cls(cfg, run_dir, Reporter(cfg, writer), interrupted, torch.device(device))
