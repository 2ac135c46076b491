"""Base classes of runs: the loop of any run, with best checkpoint, saving and resuming; and of the runs that distil."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch

import foundation
from foundation.checkpoints.initialise import initialise_encoders, initialise_student
from foundation.checkpoints.reading.agent_config import at
from foundation.config.derived_cfg import DerivedGroup, write_derived
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.plain import to_plain
from foundation.core.errors import UserError
from foundation.core.stopwatch import Stopwatch
from foundation.learning.early_stopping import EarlyStopping
from foundation.learning.learner import Learner, LearningStats
from foundation.policies.obs_groups import ObsSelector
from foundation.runs.context import ProcessContext, Settings, Shown
from foundation.runs.report import Reporter
from foundation.runs.run_state import BEST, LATEST, SavedState, write_state
from foundation.students import make_student
from foundation.students.base import NetworkCfg, Student
from foundation.students.cnn import CNNStudent

RECURRENT_SEQUENCE = 50
"""Steps in a training sequence of a student with memory, where nothing else is asked for."""

Collected = TypeVar("Collected")
"""Result of an epoch's collection in a kind of run; None where nothing is collected."""


class RunLoop(ABC, Generic[Settings, Shown, Collected]):
    """The loop over epochs of any kind of run: collect, learn, evaluate, log, save.

    A subclass says what each of these is, what comes before the first epoch and after the last, what its checkpoints
    hold, and what resuming needs.

    Args:
        context: What the run gets from its process.
    """

    unit: ClassVar[str] = "epoch"
    """What is counted, in messages."""

    def __init__(self, context: ProcessContext[Settings, Shown]):
        self.context = context
        self.cfg = context.cfg
        self.run_dir = context.run_dir
        self.reporter = context.reporter
        self.stopwatch = Stopwatch()
        self.epoch = 0
        self.best_epoch = -1
        self.best_return = -math.inf
        """Best mean return of an evaluation."""
        torch.manual_seed(context.seed)

    # -- hooks ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self) -> None:
        """Do what comes before the first epoch of this process."""

    @abstractmethod
    def collect(self, epoch: int) -> Collected:
        """Collect what the epoch (counted from 0) learns from."""

    @abstractmethod
    def learn(self, epoch: int, collected: Collected) -> LearningStats:
        """Update the student."""

    @abstractmethod
    def evaluate(self, epoch: int, collected: Collected) -> dict[str, float] | None:
        """Measure the student and keep it if it is the best so far; None where no evaluation is due."""

    @abstractmethod
    def log(
        self, epoch: int, collected: Collected, learned: LearningStats, evaluation: dict[str, float] | None
    ) -> None:
        """Show and log the epoch, which has just ended."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """Do what comes after the last epoch; return the summary."""

    @abstractmethod
    def state(self) -> SavedState:
        """Return what a resumed run needs beside the student, its optimiser and the dataset's transitions."""

    @abstractmethod
    def student_checkpoint(self, epoch: int, evaluation: dict[str, float] | None = None) -> dict[str, Any]:
        """Return what rebuilds the policy, and its optimiser.

        Args:
            epoch: The epoch that made these weights, counted from 0; stored counted from 1.
            evaluation: What the policy was measured at.

        Returns:
            Plain tensors and values, for ``torch.load(weights_only=True)``.
        """

    # -- what all runs share ------------------------------------------------------------------------------------------

    def stops_early(self) -> bool:
        """Whether the run is to end before its last epoch."""
        return False

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
            while self.epoch < self.cfg.n_epochs and not self.stops_early():
                self.run_epoch(self.epoch)
        return self.finish()

    def run_epoch(self, epoch: int) -> None:
        """Run and save one epoch, counted from 0."""
        collected = self.collect(epoch)
        learned = self.learn(epoch, collected)
        evaluation = self.evaluate(epoch, collected)
        self.epoch = epoch + 1
        with self.stopwatch.stage("saving"):
            self.log(epoch, collected, learned, evaluation)
            self.save(collected)

    def poll(self) -> None:
        """Raise ``RunInterrupted`` if the user asked to stop."""
        self.context.poll()

    def poll_in_step(self) -> None:
        """Raise ``RunInterrupted`` if the user asked to stop, where all processes of the run are at the same update."""
        self.context.poll_in_step()

    def save_checkpoint(self, name: str, values: dict[str, Any]) -> None:
        """Write a checkpoint, in the process that writes; the others wait, and end where it cannot."""

        def write() -> None:
            self.run_dir.save_checkpoint(name, values)

        self.context.ranks.together(write)

    def resume_checkpoint(self) -> dict[str, Any]:
        """Return the student and everything else that a resumed run needs except the dataset's transitions."""
        return self.student_checkpoint(self.epoch - 1) | write_state(self.state())

    def save_latest(self) -> None:
        """Save everything that ``--resume`` needs."""
        self.save_checkpoint(LATEST, self.resume_checkpoint())

    def save_best(self, epoch: int, evaluation: dict[str, float]) -> None:
        """Save the student as the best so far.

        Args:
            epoch: The epoch that it has learned in, counted from 0.
            evaluation: What it was measured at.
        """
        self.best_epoch = epoch
        self.save_checkpoint(BEST, self.student_checkpoint(epoch, evaluation))

    def restore_best(self, values: dict[str, Any]) -> None:
        """Restore the best return so far from a checkpoint, or from ``best_student.pt`` if that is newer.

        The best student may have been saved after the checkpoint was, and no worse one may replace it.

        Args:
            values: The checkpoint's.
        """
        known = [values]
        if (self.run_dir.path / BEST).exists():
            known.append(self.run_dir.load_checkpoint(BEST))
        known = [entry for entry in known if entry["best_return"] is not None]
        if known:
            best = max(known, key=lambda entry: entry["best_return"])
            self.best_return = best["best_return"]
            self.best_epoch = best["best_epoch"]

    def save(self, collected: Collected) -> None:
        """Save the epoch that has just ended, under its own name every ``save_interval`` epochs.

        Args:
            collected: What the epoch collected.
        """
        if self.epoch % self.cfg.save_interval == 0:
            self.save_checkpoint(f"checkpoint_epoch_{self.epoch}.pt", self.resume_checkpoint())
        self.save_latest()


class Runner(RunLoop[DistillationCfg, Reporter, Collected]):
    """The base of the runs that distil: the loop, with a student and the learner that fits it to a dataset."""

    student: Student
    learner: Learner
    student_obs: ObsSelector
    early_stopping: EarlyStopping
    joint_order: Sequence[str] = ()
    """Joints of the environment, those of its actions first, and bodies, where they have names."""
    derived_groups: Mapping[str, DerivedGroup]
    """Observation groups that were made for the student (``cfg.obs``), by name."""
    label_bound: float | None
    """Labels are clipped to [-bound, bound]; None where nothing defines a bound."""

    def stops_early(self) -> bool:
        """Whether no evaluation was better for as long as the config waits."""
        return self.early_stopping.due()

    def make_learner(self, num_obs: int, num_actions: int) -> None:
        """Make the student, its weights drawn or read, and what fits it."""
        cfg = self.cfg
        self.student = self.build_student(num_obs, num_actions)
        default = RECURRENT_SEQUENCE if self.student.state_size else 1
        self.sequence_length = cfg.sequence_length or default
        self.learner = Learner(self.student, cfg, self.sequence_length, self.context.ranks)

    def feed_prediction(self, size: int) -> None:
        """Let the student estimate a group of so many columns on the way, where the config asks for it.

        Raises:
            UserError: If it reads that group anyway.
        """
        term = self.cfg.loss.prediction
        if term is not None and term.group in self.student_obs.groups and self.student_obs.obs_slice is None:
            raise UserError(
                f"distill.loss.auxiliary.predict.group: the student reads '{term.group}' itself, so that there is "
                "nothing to learn from predicting it: name a group that it does not see, or leave it out of "
                "distill.student.obs_groups"
            )
        if term is not None and isinstance(self.cfg.student, NetworkCfg):
            self.cfg.student.num_estimates = size if term.feed else 0

    def build_student(self, num_obs: int, num_actions: int) -> Student:
        """Build the student on the run's device, its weights drawn or read."""
        cfg = self.cfg.student
        student = make_student(cfg, num_obs, num_actions).to(self.context.device)
        term = self.cfg.loss.prediction
        if term is not None and term.feed and student.estimator is None:
            raise UserError(
                f"distill.loss.auxiliary.predict.feed=true: student={cfg.name} has no place for an estimate. Give it "
                "one (Student.add_body), or set feed=false"
            )
        if cfg.init_checkpoint is not None:
            initialise_student(student, cfg.init_checkpoint)
        if isinstance(student, CNNStudent) and student.cfg.init_encoder is not None:
            initialise_encoders(student, student.cfg.init_encoder)
        return student

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
        policy = self.learner.policy
        obs = self.student_obs
        derived = write_derived(self.derived_groups, obs.groups)
        return {
            "epoch": epoch + 1,
            "model_state_dict": {name: tensor.detach().clone() for name, tensor in policy.state_dict().items()},
            **self.learner.state_dict(),
            "best_return": self.best_return,
            "best_epoch": self.best_epoch,
            "student": policy.describe(),
            "obs_groups": list(obs.groups),
            "obs_slice": None if obs.obs_slice is None else list(obs.obs_slice),
            **({"derived_groups": derived} if derived else {}),
            **({"joint_order": list(self.joint_order)} if self.joint_order else {}),
            "clip_actions": self.label_bound,
            "task": self.cfg.task,
            "evaluation": evaluation or {},
            "distillation": to_plain(self.cfg),
            "version": foundation.__version__,
        }

    def restore_student(self, values: dict[str, Any]) -> None:
        """Put the student and its optimiser back to where a checkpoint was written.

        Args:
            values: The checkpoint's.

        Raises:
            UserError: If the student has another architecture now, or what fits it is of another kind.
        """
        if not self.student.is_described_by(values["student"]):
            raise UserError(
                "The student's architecture differs from that of the run to resume: give the same settings."
            )
        kind = at(values, "distillation", "optimizer", "name")
        if kind not in (None, self.cfg.optimizer.name):
            raise UserError(
                f"The run to resume has the optimiser {kind}, whose state means nothing to {self.cfg.optimizer.name}: "
                f"leave distill.optimizer.name={self.cfg.optimizer.name} out."
            )
        if ("adapter_state_dict" in values) != (self.learner.objective.adapter is not None):
            raise UserError("The loss 'feature' cannot come or go when a run is resumed: give the same losses.")
        if ("estimator_state_dict" in values) != (self.learner.objective.estimator is not None):
            raise UserError("The loss 'predict' cannot come or go when a run is resumed: give the same losses.")
        self.learner.load_state_dict(values["model_state_dict"], values)
