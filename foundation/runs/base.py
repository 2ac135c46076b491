"""The base of every kind of run: its context, its loop, its best checkpoint, saving and resuming."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import foundation
from foundation.checkpoints.initialise import initialise_student
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.plain import to_plain
from foundation.core.errors import RunInterrupted
from foundation.core.stopwatch import Stopwatch
from foundation.learning.early_stopping import EarlyStopping
from foundation.learning.learner import Learner
from foundation.policies.obs_groups import ObsSelector
from foundation.runs.metrics_writer import MetricsWriter
from foundation.runs.report import Reporter
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import BEST, LATEST
from foundation.students import make_student
from foundation.students.base import Student

EVAL_SEED, FINAL_SEED = 1_000_003, 2_000_003
"""Added to a run's seed: evaluations while it runs, and the measurement that it is quoted by."""
RECURRENT_SEQUENCE = 50
"""Steps in a training sequence of a student with memory, where nothing else is asked for."""


@dataclass
class RunContext:
    """What a run gets from the process that it runs in."""

    cfg: DistillationCfg
    """The run's configuration, observation groups resolved."""
    run_dir: RunDir
    """Where checkpoints and the summary go."""
    reporter: Reporter
    """Takes lines for the console, and scalars."""
    interrupted: Callable[[], str | None]
    """Returns the reason to stop, or a false value."""

    @property
    def eval_seed(self) -> int:
        """Seed of the evaluations while the run goes on; the same each time, so that they can be compared."""
        return self.cfg.seed + EVAL_SEED

    @property
    def final_seed(self) -> int:
        """Seed of the last measurement, on which no choice was made."""
        return self.cfg.seed + FINAL_SEED

    def poll(self) -> None:
        """Raise ``RunInterrupted`` if the user asked to stop."""
        reason = self.interrupted()
        if reason:
            raise RunInterrupted(str(reason))


class Runner(ABC):
    """The loop over epochs. A subclass says what an epoch is, and what comes before the first and after the last.

    Args:
        cfg: The run's configuration.
        run_dir: Where checkpoints and the summary go.
        writer: Takes scalars; None writes none.
        interrupted: Returns the reason to stop, or a false value.
    """

    student: Student
    learner: Learner
    student_obs: ObsSelector
    early_stopping: EarlyStopping
    label_bound: float | None
    """Labels are clipped to [-bound, bound]; None where nothing defines a bound."""

    def __init__(
        self,
        cfg: DistillationCfg,
        run_dir: RunDir,
        writer: MetricsWriter | None,
        interrupted: Callable[[], str | None],
    ):
        self.context = RunContext(cfg, run_dir, Reporter(cfg, writer), interrupted)
        self.cfg, self.run_dir, self.reporter = cfg, run_dir, self.context.reporter
        self.stopwatch = Stopwatch()
        self.epoch, self.best_epoch = 0, -1
        self.best_return = -math.inf
        """Best mean return of an evaluation."""
        torch.manual_seed(cfg.seed)

    # -- hooks ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> None:
        """Do what comes before the first epoch of this process."""

    @abstractmethod
    def run_epoch(self, epoch: int) -> None:
        """Run an epoch (counted from 0): collect, learn, evaluate, and :meth:`save` it."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Do what comes after the last epoch; return the summary."""

    @abstractmethod
    def resume_state(self) -> dict[str, Any]:
        """Return what going on needs beside the student and its optimiser, by the checkpoint's key."""

    # -- what all runs share ------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run all epochs and write ``summary.json``.

        Returns:
            The summary.

        Raises:
            RunInterrupted: If the user asked to stop; everything up to the last finished epoch is saved.
            UserError: If the teacher is worse than asked for, or something became NaN.
        """
        self.begin()
        with self.reporter.progress(self.epoch):
            while self.epoch < self.cfg.n_epochs and not self.early_stopping.due():
                self.run_epoch(self.epoch)
        return self.finish()

    def poll(self) -> None:
        """Raise ``RunInterrupted`` if the user asked to stop."""
        self.context.poll()

    def make_learner(self, num_obs: int, num_actions: int, device: torch.device | str) -> None:
        """Make the student, its weights drawn or read, and what fits it."""
        cfg = self.cfg
        self.student = make_student(cfg.student, num_obs, num_actions).to(device)
        if cfg.student.init_checkpoint is not None:
            initialise_student(self.student, cfg.student.init_checkpoint)
        default = RECURRENT_SEQUENCE if self.student.state_size else 1
        self.sequence_length = cfg.sequence_length or default
        self.learner = Learner(self.student, cfg, self.sequence_length)

    @property
    def num_parameters(self) -> int:
        """Parameters of the student."""
        return sum(parameter.numel() for parameter in self.student.parameters())

    @property
    def fits_normalizer(self) -> bool:
        """Whether the student's normaliser is fitted: one that came with trained weights is kept."""
        return self.cfg.student.obs_normalization and self.cfg.student.init_checkpoint is None

    def student_checkpoint(self, epoch: int, evaluation: dict[str, float] | None = None) -> dict[str, Any]:
        """Return what rebuilds the student, and its optimiser.

        Args:
            epoch: The epoch that made these weights, counted from 0; stored counted from 1.
            evaluation: What the student was measured at.

        Returns:
            Plain tensors and values, for ``torch.load(weights_only=True)``.
        """
        policy, obs = self.learner.policy, self.student_obs
        return {
            "epoch": epoch + 1,
            "model_state_dict": {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()},
            **self.learner.state_dict(),
            "best_return": self.best_return,
            "best_epoch": self.best_epoch,
            "student": policy.describe(),
            "obs_groups": list(obs.groups),
            "obs_slice": None if obs.obs_slice is None else list(obs.obs_slice),
            "clip_actions": self.label_bound,
            "task": self.cfg.task,
            "evaluation": evaluation or {},
            "distillation": to_plain(self.cfg),
            "version": foundation.__version__,
        }

    def resume_checkpoint(self) -> dict[str, Any]:
        """Return the student and everything else that going on needs, but for the dataset's rows."""
        return self.student_checkpoint(self.epoch - 1) | self.resume_state()

    def save_latest(self) -> None:
        """Save everything that ``--resume`` needs."""
        self.run_dir.save_checkpoint(LATEST, self.resume_checkpoint())

    def save_best(self, epoch: int, evaluation: dict[str, float]) -> None:
        """Save the student as the best so far.

        Args:
            epoch: The epoch that it has learned in, counted from 0.
            evaluation: What it was measured at.
        """
        self.best_epoch = epoch
        self.run_dir.save_checkpoint(BEST, self.student_checkpoint(epoch, evaluation))

    def save(self) -> None:
        """Save the epoch that has just ended, under its own name every ``save_interval`` epochs."""
        if self.epoch % self.cfg.save_interval == 0:
            self.run_dir.save_checkpoint(f"checkpoint_epoch_{self.epoch}.pt", self.resume_checkpoint())
        self.save_latest()
