"""One task of a multi-task run: a distillation run whose student shares its trunk with the other tasks' students."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.engines.base import MakeEvalEnv, VecEnv
from foundation.learning.turns import share_moments
from foundation.runs.context import Interrupted
from foundation.runs.metrics_writer import MetricsWriter, PrefixedWriter
from foundation.runs.run_dir import RunDir
from foundation.runs.run_teachers import Teacher
from foundation.runs.runner import DistillationRunner
from foundation.students.base import Student
from foundation.students.multi_task import MultiTaskStudent, shared_layers


@dataclass
class SharedStudents:
    """Settings that the tasks of a run share."""

    trained: MultiTaskStudent = field(default_factory=MultiTaskStudent)
    """The students that learn."""
    averaged: MultiTaskStudent = field(default_factory=MultiTaskStudent)
    """The averages of their weights, where ``optimizer.ema_decay`` is set."""
    optimizers: list[torch.optim.Optimizer] = field(default_factory=list)
    """One for each task."""

    def share_moments(self) -> None:
        """Let the optimisers have one state for the trunk; to be done again where the state of one was loaded."""
        first = self.trained.students[0]
        assert isinstance(first, Student)
        trunk = [parameter for layer in shared_layers(first) for parameter in layer.parameters()]
        share_moments(self.optimizers, trunk)


class TaskPart(DistillationRunner):
    """Collects, measures and saves for one task; the run of all tasks decides when it learns and what is best.

    Args:
        task_id: Names the task in the console, in figures and in the run's folder.
        shared: The students of all tasks; this task's is added.
        env: As of :class:`DistillationRunner`, and so are the others.
        teacher: The task's teacher.
        cfg: The task's configuration.
        run_dir: The task's own folder in the run's.
        make_eval_env: Builds a second environment.
        writer: Takes the scalars of all tasks.
        interrupted: Returns the reason to stop, or a false value.
        label_bound: Bound of the labels.
    """

    def __init__(
        self,
        task_id: str,
        shared: SharedStudents,
        env: VecEnv,
        teacher: Teacher,
        cfg: DistillationCfg,
        run_dir: RunDir,
        *,
        make_eval_env: MakeEvalEnv | None = None,
        writer: MetricsWriter | None = None,
        interrupted: Interrupted = lambda: None,
        label_bound: float | None = None,
    ):
        self.task_id = task_id
        self.shared = shared
        if cfg.student.init_checkpoint is not None:
            raise UserError("distill.student.init_checkpoint holds one task's weights: leave it out with --multi_task")
        super().__init__(
            env,
            teacher,
            cfg,
            run_dir,
            make_eval_env=make_eval_env,
            writer=None if writer is None else PrefixedWriter(writer, f"{task_id}/"),
            interrupted=interrupted,
            label_bound=label_bound,
        )
        self.reporter.prefix = f"{task_id}: "

    def build_student(self, num_obs: int, num_actions: int) -> Student:
        """Build the task's student around the trunk of all tasks."""
        return self.shared.trained.add(self.task_id, super().build_student(num_obs, num_actions))

    def make_learner(self, num_obs: int, num_actions: int) -> None:
        """Make the student, and a learner for it that shares what the others have learned of the trunk."""
        super().make_learner(num_obs, num_actions)
        self.shared.optimizers.append(self.learner.optimizer)
        self.shared.share_moments()
        if self.learner.average is not None:
            self.shared.averaged.add(self.task_id, self.learner.average)

    def restore_student(self, values: dict[str, Any]) -> None:
        """Put the student and its optimiser back to where a checkpoint was written."""
        super().restore_student(values)
        self.shared.share_moments()

    def _keep_best(self, evaluation: dict[str, float], epoch: int, made_by: int) -> None:
        """Leave it to the run of all tasks, which compares what they reach together."""

    def save_latest(self) -> None:
        """Leave it to the run of all tasks, whose file holds the state of each."""

    def refuse_without_score(self) -> None:
        """Raise where the task's scores have no scale, as its teacher is no better than random actions."""
        baselines = self.baselines
        if baselines["teacher"]["mean_return"] <= baselines["random"]["mean_return"]:
            raise UserError(
                f"task '{self.task_id}': its teacher is no better than random actions, so that a student has no "
                "score: give another teacher"
            )

    def keep(self, epoch: int, evaluation: dict[str, float]) -> None:
        """Save the student, which is the best so far of all tasks together."""
        self.best_return = evaluation["mean_return"]
        self.best_epoch = epoch
        self.save_best(epoch, evaluation)
