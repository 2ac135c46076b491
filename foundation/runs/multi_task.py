"""Distillation of several tasks into one student (Rusu et al. 2015, sec. 4): a buffer each, learned from in turns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import foundation
from foundation.checkpoints.foundation_multi_task import FORMAT
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.plain import to_plain
from foundation.core.errors import RunInterrupted, UserError
from foundation.learning.early_stopping import EarlyStopping
from foundation.learning.learner import LearningStats
from foundation.learning.turns import learn_in_turns
from foundation.rollout.baselines import geometric_mean
from foundation.runs.base import RunLoop
from foundation.runs.context import RunContext
from foundation.runs.multi_task_state import MultiTaskState
from foundation.runs.report import Reporter
from foundation.runs.run_state import BEST, write_state
from foundation.runs.runner import Collection
from foundation.runs.task_part import TaskPart

Collections = dict[str, Collection]
"""Result of an epoch's collection, by the tasks' ids."""


class MultiTaskRunner(RunLoop[DistillationCfg, Reporter, Collections]):
    """Distils a teacher for each task into one student of all tasks.

    Every epoch collects in each task, then learns a minibatch of one task after another, as many of each: the paper
    switches tasks every episode, and a shorter period only forgets less in between.

    Args:
        context: What the run gets from its process.
        parts: The tasks, by their ids; their students share a trunk.
    """

    def __init__(self, context: RunContext, parts: Mapping[str, TaskPart]):
        super().__init__(context)
        self.parts = dict(parts)
        first = next(iter(self.parts.values()))
        self.shared = first.shared.trained
        self.early_stopping = EarlyStopping(self.cfg.early_stopping, first.early_stopping.first_epoch)
        self.learned: dict[str, LearningStats] = {}
        self.evaluations: dict[str, dict[str, float] | None] = {}

    def stops_early(self) -> bool:
        """Whether the scores have not become better for too long."""
        return self.early_stopping.due()

    # -- hooks ------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Measure each task's teacher, and show what is about to run."""
        try:
            for part in self.parts.values():
                part.begin()
                part.refuse_without_score()
        except RunInterrupted:
            self.save_latest()
            raise
        self.reporter.line(
            f"One student of {len(self.parts)} tasks: {self.num_parameters} parameters, {self.shared.num_shared} of "
            "them shared"
        )
        if self.epoch == 0:
            self.save_latest()

    def collect(self, epoch: int) -> Collections:
        """Collect in each task."""
        return {name: part.collect(epoch) for name, part in self.parts.items()}

    def learn(self, epoch: int, collected: Collections) -> LearningStats:
        """Fit the student to the tasks' datasets in turns; each gets the updates of the one with most transitions."""
        most = max(own.num_new for own in collected.values())
        learners = {name: part.learner for name, part in self.parts.items()}
        datasets = {name: part.dataset for name, part in self.parts.items()}
        with self.stopwatch.stage("learning"):
            self.learned = learn_in_turns(learners, datasets, most, epoch, self.poll)
        for name, part in self.parts.items():
            part.collector.fit_noise(collected[name].stats.slots)
        loss = sum(own.mean_loss for own in self.learned.values()) / len(self.learned)
        updates = sum(own.num_updates for own in self.learned.values())
        return LearningStats(loss, updates, next(iter(self.learned.values())).learning_rate)

    def evaluate(self, epoch: int, collected: Collections) -> dict[str, float] | None:
        """Measure the student in each task, and keep it if the geometric mean of its scores is the best so far."""
        self.evaluations = {name: part.evaluate(epoch, collected[name]) for name, part in self.parts.items()}
        measured = {name: own for name, own in self.evaluations.items() if own is not None}
        if len(measured) < len(self.parts):
            return None
        score = geometric_mean([own["normalized_score"] for own in measured.values()])
        self.early_stopping.see(epoch, score)
        evaluation = {"geometric_mean_score": score}
        if score > self.best_return:
            self.best_return = score
            for name, part in self.parts.items():
                part.keep(epoch, measured[name])
            self.save_best(epoch, evaluation)
        return evaluation

    def log(
        self, epoch: int, collected: Collections, learned: LearningStats, evaluation: dict[str, float] | None
    ) -> None:
        """Show and log each task, and what the student reaches in all of them."""
        self.stopwatch.lap()
        for name, part in self.parts.items():
            part.epoch = self.epoch
            part.log(epoch, collected[name], self.learned[name], self.evaluations[name])
        if evaluation is not None:
            mean = evaluation["geometric_mean_score"]
            self.reporter.scalars({"evaluation/geometric_mean_score": mean}, self.epoch)
            scores = {name: own["normalized_score"] for name, own in self.evaluations.items() if own is not None}
            best = ", the best so far" if self.best_epoch == epoch else ""
            self.reporter.line(f"Epoch {self.epoch}/{self.cfg.n_epochs}, all tasks - {score_line(mean, scores)}{best}")
        self.reporter.advance(self.epoch)

    def finish(self) -> dict[str, Any]:
        """Measure the best student in each task and write the summaries, the tasks' own in their folders."""
        self.run_dir.save_checkpoint("final_student.pt", self.student_checkpoint(self.epoch - 1))
        summaries = {name: part.finish() for name, part in self.parts.items()}
        scores = {name: summary.get("normalized_score", math.nan) for name, summary in summaries.items()}
        mean = geometric_mean(list(scores.values()))
        summary = {
            "geometric_mean_score": mean,
            "normalized_scores": scores,
            "best_epoch": self.best_epoch + 1,
            "epochs": self.epoch,
            "stopped_early": self.epoch < self.cfg.n_epochs,
            "parameters": {
                "student": self.num_parameters,
                "shared": self.shared.num_shared,
                "teachers": sum(own["parameters"]["teacher"] for own in summaries.values()),
            },
            "tasks": summaries,
            "wall_seconds": self.stopwatch.wall,
            "cpu_seconds": self.stopwatch.cpu,
        }
        self.run_dir.write_summary(summary)
        self.reporter.scalars({"final/geometric_mean_score": mean}, self.epoch + 1)
        self.reporter.line(f"Best student of all tasks (epoch {self.best_epoch + 1}): {score_line(mean, scores)}")
        self.reporter.line(str(self.run_dir.path / BEST))
        return summary

    # -- saving and resuming ------------------------------------------------------------------------------------------

    @property
    def num_parameters(self) -> int:
        """Parameters of the student of all tasks."""
        return self.shared.num_parameters

    def student_checkpoint(self, epoch: int, evaluation: dict[str, float] | None = None) -> dict[str, Any]:
        """Return each task's student as a checkpoint of its own; the trunk is in each."""
        tasks = {name: part.student_checkpoint(epoch) for name, part in self.parts.items()}
        return self._around(epoch, tasks) | {"evaluation": evaluation or {}}

    def resume_checkpoint(self) -> dict[str, Any]:
        """Return everything that a resumed run needs except the datasets' transitions."""
        tasks = {name: part.resume_checkpoint() for name, part in self.parts.items()}
        return self._around(self.epoch - 1, tasks) | write_state(self.state())

    def _around(self, epoch: int, tasks: dict[str, Any]) -> dict[str, Any]:
        best = {"best_return": self.best_return, "best_epoch": self.best_epoch}
        plain = {"distillation": to_plain(self.cfg), "version": foundation.__version__}
        return {"format": FORMAT, "epoch": epoch + 1, "tasks": tasks, **best, **plain}

    def save(self, collected: Collections) -> None:
        """Save the epoch: each task's chunks of its dataset, then the state of all in one file."""
        for name, part in self.parts.items():
            part.shards.append(self.epoch - 1, collected[name].stats.slots)
        super().save(collected)
        for part in self.parts.values():
            part.shards.prune()

    def state(self) -> MultiTaskState:
        """Return what is not a task's own."""
        score = self.best_return if math.isfinite(self.best_return) else None
        stopping = self.early_stopping.state_dict()
        return MultiTaskState(self.epoch, self.best_epoch, score, self.stopwatch.state_dict(), stopping)

    def restore(self, state: MultiTaskState) -> None:
        """Go on from a checkpoint whose tasks have been restored."""
        self.epoch = state.epoch
        self.best_epoch = state.best_epoch
        self.best_return = -math.inf if state.best_score is None else state.best_score
        self.stopwatch.load_state_dict(state.stopwatch)
        self.early_stopping.load_state_dict(state.early_stopping)
        if not (self.run_dir.path / BEST).exists():
            return
        best = self.run_dir.load_checkpoint(BEST)  # after a kill newer than the checkpoint, or than some tasks' own
        if best["best_return"] < self.best_return:
            raise UserError(f"{self.run_dir.path / BEST} is not the best student of this run: restore it.")
        self.best_return = best["best_return"]
        self.best_epoch = best["best_epoch"]
        for name, part in self.parts.items():
            part.best_epoch = self.best_epoch
            part.best_return = best["tasks"][name]["best_return"]
            part.run_dir.save_checkpoint(BEST, best["tasks"][name])


def score_line(mean: float, scores: Mapping[str, float]) -> str:
    """Return the scores for the console, such as ``geometric mean score 0.990 (cartpole 1.000, acrobot 0.980)``."""
    return f"geometric mean score {mean:.3f} ({', '.join(f'{name} {own:.3f}' for name, own in scores.items())})"
