"""Console lines, a progress bar, and scalars for TensorBoard."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.plain import changed_leaves, to_plain
from foundation.learning.learner import LearningStats
from foundation.runs.metrics_writer import MetricsWriter

if TYPE_CHECKING:  # a run from a dataset alone needs no environments
    from foundation.rollout.episodes import CollectionStats

logger = logging.getLogger(__name__)

Scalars = dict[str, float]
FEW_UPDATES = 8
"""Updates in an epoch below which there is a warning."""
MAX_SILENCE = 10.0
"""Seconds after which an epoch without an evaluation is shown too."""
RECENT = 10
"""Epochs by which the time left is estimated."""


class Clock:
    """Time since a run began in this process, and what is left of it.

    Args:
        now: Returns seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._begun = now()
        self._ends = [self._begun]
        self._shown = self._begun
        self.closing = 0.0
        """Expected duration of the last measurement [s]."""

    def epoch_ended(self) -> None:
        """Note the end of an epoch."""
        self._ends = [*self._ends[-RECENT:], self._now()]

    @property
    def silent(self) -> float:
        """Seconds since something was shown."""
        return self._now() - self._shown

    def shown(self) -> None:
        """Note that something was shown."""
        self._shown = self._now()

    def line(self, epochs_left: int) -> str:
        """Return such as ``elapsed 1:21, left 0:40``; the time left is known after the first epoch.

        Args:
            epochs_left: Epochs that have not begun.
        """
        text = f"elapsed {_minutes(self._now() - self._begun)}"
        if len(self._ends) < 2:
            return text
        each = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)
        return f"{text}, left {_minutes(epochs_left * each + self.closing)}"


def _minutes(seconds: float) -> str:
    """Write a time as ``1:21`` or ``1:02:03``."""
    whole = round(seconds)
    minutes = f"{whole // 60 % 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes:0>5}" if whole >= 3600 else minutes


class LineReporter:
    """Prints lines, shows progress and logs scalars, for any kind of run.

    Args:
        num_epochs: Epochs, or iterations, of the run.
        writer: Takes scalars, or None.
        console: Where lines go; standard output by default.
        unit: What the progress bar counts.
    """

    def __init__(
        self,
        num_epochs: int,
        writer: MetricsWriter | None = None,
        console: Console | None = None,
        unit: str = "Epoch",
    ):
        self.num_epochs = num_epochs
        self.writer = writer
        self.console = console or _Console(highlight=False, soft_wrap=True)
        self.clock = Clock()
        self._unit = unit
        self.prefix = ""
        """Begins each line, where several tasks report to one console."""
        self._progress: Progress | None = None
        self._task = TaskID(0)

    def line(self, text: str) -> None:
        """Print one line."""
        self.console.print(f"{self.prefix}{text}", markup=False)

    def warn(self, text: str) -> None:
        """Log a warning, as the rest of the package does: on stderr, where it is seen when stdout goes to a file."""
        logger.warning("%s%s", self.prefix, text)

    def scalars(self, scalars: Scalars, step: int) -> None:
        """Log further numbers."""
        if self.writer is not None:
            self.writer.add_scalars(scalars, step)
            self.writer.flush()

    def advance(self, done: int) -> None:
        """Move the bar on to so many epochs."""
        self.clock.epoch_ended()
        if self._progress is not None:
            self._progress.update(self._task, completed=done, clock=self.clock.line(self.num_epochs - done))

    def show_epoch(self, done: int, title: str, parts: list[str], evaluated: bool) -> None:
        """Show an epoch, if it was evaluated, is the last one, or nothing was shown for a while.

        Args:
            done: Epochs that have ended.
            title: The beginning of the line.
            parts: What follows it.
            evaluated: Whether there is an evaluation in it.
        """
        self.advance(done)
        left = self.num_epochs - done
        if not (evaluated or left == 0 or self.clock.silent > MAX_SILENCE):
            return
        self.clock.shown()
        if not self.console.is_terminal:  # a terminal has the bar
            parts = [*parts, self.clock.line(left)]
        text = " | ".join([title, *parts])
        if self.console.is_terminal and len(text) > self.console.width:
            # A file keeps one line an epoch, for grep; on a terminal it would break in the middle of a figure.
            text = "\n    ".join([title, *parts])
        self.line(text)

    @contextmanager
    def progress(self, done: int) -> Iterator[None]:
        """Show a bar with the time left while the epochs run; nothing animated without a terminal."""
        columns = (
            TextColumn(self._unit),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[clock]}"),
        )
        self.clock = Clock()
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as progress:
            self._progress = progress
            self._task = progress.add_task("epochs", total=self.num_epochs, completed=done, clock="")
            try:
                yield
            finally:
                self._progress = None


class Reporter(LineReporter):
    """Prints and logs a distillation run.

    Args:
        cfg: The run's configuration.
        writer: Takes scalars, or None.
        console: Where lines go; standard output by default.
    """

    def __init__(self, cfg: DistillationCfg, writer: MetricsWriter | None = None, console: Console | None = None):
        super().__init__(cfg.n_epochs, writer, console)
        self.cfg = cfg
        self._teacher = math.nan
        self._warned_of_few_updates = False
        self._evaluations: list[float] = []
        """Seconds that each has taken."""

    def baselines(self, baselines: dict[str, Scalars]) -> None:
        """Show what the teacher scores, beside zero and random actions."""
        for name, summary in baselines.items():
            label = {"teacher": "Teacher", "zero": "Zero actions", "random": "Random actions"}.get(name, name)
            mean = summary["mean_return"]
            std = summary["std_return"]
            self.line(f"{label} - Mean return: {mean:.2f} ± {std:.2f}{_success(summary)}")
        if any("success_rate" not in summary for summary in baselines.values()):
            self.line(
                "Success is unknown: the environment gives neither extras['time_outs'] nor "
                "extras['episode_metrics']['success']."
            )

    def teacher_measured(self, summary: Scalars, episodes: int) -> None:
        """Show the teacher's figure from the first epoch, in which it acted alone."""
        self._teacher = summary["mean_return"]
        self.line(
            f"Teacher - Mean return: {summary['mean_return']:.2f} ± {summary['std_return']:.2f}{_success(summary)}, "
            f"from the {episodes} episodes of the first epoch"
        )

    def newer_teacher(self, said: str, summary: Scalars | None, epoch: int) -> None:
        """Show and log that a newer teacher teaches.

        Args:
            said: What was read.
            summary: Its figures. None: it was not measured.
            epoch: The epoch from which on it does, counted from 0.
        """
        if summary is None:
            self.line(f"{said}; it is not measured here")
            return
        self._teacher = summary["mean_return"]
        self.line(
            f"{said} - Mean return: {summary['mean_return']:.2f} ± {summary['std_return']:.2f}{_success(summary)}"
        )
        self.scalars({"teacher/mean_return": summary["mean_return"]}, epoch)

    def begin(self, *, teacher_return: float | None, student: str, dataset: str) -> None:
        """Show what is about to run.

        Args:
            teacher_return: The teacher's mean return; None while it is not known.
            student: What the student takes, gives and has.
            dataset: How large the dataset is, and how it is filled.
        """
        self._teacher = math.nan if teacher_return is None else teacher_return
        self.line(f"Student: {self.cfg.student.name}, {student}")
        self.line(f"Dataset: {dataset}")

    def log_baselines(self, baselines: dict[str, Scalars]) -> None:
        """Log the baselines, once in the life of a run."""
        if self.writer is not None:
            scalars = {f"baseline/{name}_mean_return": summary["mean_return"] for name, summary in baselines.items()}
            self.writer.add_scalars(scalars, 0)
            self.writer.flush()

    def epoch(
        self,
        epoch: int,
        beta: float,
        collected: CollectionStats,
        learned: LearningStats,
        evaluation: Scalars | None,
        performance: Scalars,
        dataset: dict[str, int],
    ) -> None:
        """Print and log one epoch (counted from 0; shown and logged counted from 1)."""
        acting = {1.0: "teacher forcing", 0.0: "student acts"}.get(beta, f"beta {beta:.2f}")
        whole = len(collected.returns)
        title = (
            f"Epoch {epoch + 1}/{self.cfg.n_epochs} ({acting}): {collected.env_steps:,} transitions, {whole:,} whole "
            f"episode{'' if whole == 1 else 's'}"
        )
        scalars: Scalars = {"training/loss": learned.mean_loss, "training/learning_rate": learned.learning_rate}
        scalars["training/updates"] = learned.num_updates
        scalars["data_collection/beta"] = beta
        returns = collected.unbiased(collected.returns)
        if len(returns):
            mean = float(returns.mean())
            std = float(returns.std(correction=0))
            shown = f"{mean:.2f} ± {std:.2f}"
            scalars |= {"data_collection/mean_return": mean, "data_collection/std_return": std}
            scalars["data_collection/mean_length"] = float(collected.unbiased(collected.lengths).mean())
        else:
            shown = "not known yet (only short episodes can have ended)"
        parts = [f"Data collection - Mean return: {shown} | Training - Mean loss: {learned.mean_loss:.6f}"]
        self._warn_of_few_updates(learned.num_updates)
        if len(learned.terms) > 1:
            scalars |= {f"training/{name}": value for name, value in learned.terms.items()}
        scalars |= {f"held_out/{name}": value for name, value in learned.unseen.items()}
        if evaluation is not None:
            parts.append(self._evaluation(evaluation))
            scalars |= {f"evaluation/{name}": value for name, value in evaluation.items()}
        scalars |= {f"performance/{name}": value for name, value in performance.items()}
        scalars |= {f"dataset/{name}": float(value) for name, value in dataset.items()}
        scalars |= {_log_tag(name): value for name, value in collected.log.items()}
        if self.writer is not None:
            self.writer.add_scalars(scalars, epoch + 1)
            self.writer.flush()
        if evaluation is not None and "evaluation_seconds" in performance:
            self._evaluations.append(performance["evaluation_seconds"])
            seconds = sum(self._evaluations) / len(self._evaluations)
            self.clock.closing = seconds * self._closing_share()
        self.show_epoch(epoch + 1, title, parts, evaluation is not None)

    def _warn_of_few_updates(self, num_updates: int) -> None:
        """Warn once if an epoch makes fewer than ``FEW_UPDATES`` updates, as with a large batch of sequences."""
        if num_updates >= FEW_UPDATES or self._warned_of_few_updates:
            return
        self._warned_of_few_updates = True
        fixed = self.cfg.optimizer.updates_per_epoch
        if fixed is not None:
            advice = f"raise distill.optimizer.updates_per_epoch (now {fixed})"
        elif self.cfg.batch_size is None:
            advice = "give a --batch_size (now 256 transitions, or sequences of as many)"
        elif self.cfg.batch_size > 1:
            fitting = max(1, self.cfg.batch_size * num_updates // FEW_UPDATES)
            advice = f"lower --batch_size (now {self.cfg.batch_size}, try {fitting})"
        else:
            advice = f"raise distill.optimizer.update_ratio (now {self.cfg.optimizer.update_ratio:g})"
        more = "" if fixed is not None or self.cfg.offline else ", or collect more with --num_episodes"
        self.warn(f"only {num_updates} updates in an epoch: {advice}{more}.")

    def _closing_share(self) -> float:
        """Return how many evaluations the last measurement, of student and teacher, is like."""
        return 2.0 * self.cfg.final_eval_episodes / max(1, self.cfg.num_eval_episodes or 1)

    def _evaluation(self, evaluation: Scalars) -> str:
        parts = [f"Evaluation - Mean return: {evaluation['mean_return']:.2f} ± {evaluation['std_return']:.2f}"]
        if "return_ratio" in evaluation:
            parts.append(f"{100 * evaluation['return_ratio']:.1f} % of the teacher's {self._teacher:.2f}")
        return ", ".join(parts) + _success(evaluation)

    def last_measurement(self, episodes: int, cheap: bool) -> None:
        """Announce the last measurement, which takes a while and shows nothing until it is done.

        Args:
            episodes: Episodes of each.
            cheap: Whether a second environment measures them.
        """
        flag = "--final_eval_episodes" if cheap else "--num_eval_episodes"
        seconds = f", about {_minutes(self.clock.closing)}" if self.clock.closing >= 1.0 else ""
        self.line(f"Measuring the best student and the teacher on {episodes} fresh episodes each ({flag}{seconds}) ...")

    def perturbing(self, quantity: str) -> None:
        """Announce the next quantity of the measurement of robustness."""
        self.line(f"Robustness: {quantity} ...")

    def table(self, table: Table, *lines: str) -> None:
        """Show a table, and lines below it; empty ones are left out."""
        self.console.print(table)
        for line in filter(None, lines):
            self.line(line)

    def end(self, summary: dict[str, Any]) -> None:
        """Show what the run reached."""
        student = summary["student"]
        teacher = summary["teacher"]
        if summary["stopped_early"]:
            self.line(
                f"Stopped early after epoch {summary['epochs']} of {self.cfg.n_epochs}: no evaluation was better "
                f"within {self.cfg.early_stopping.patience} epochs (distill.early_stopping.patience)"
            )
        ratio = ""
        if "return_ratio" in summary:
            ratio = f", ratio {summary['return_ratio']:.4f} ± {summary['return_ratio_interval_95']:.4f}"
        self.line(
            f"Best student (epoch {summary['best_epoch']}), {summary['final_eval_episodes']} fresh episodes: return "
            f"{student['mean_return']:.2f} ± {student['return_interval_95']:.2f} (95 %), teacher on the same "
            f"{teacher['mean_return']:.2f}{ratio}{_success(student, digits=2)}"
        )
        if self.writer is not None:
            final = {f"final/{name}": float(value) for name, value in student.items()}
            # One step on: a run that is resumed hides what lies beyond its last epoch, and logs this again at its end.
            self.writer.add_scalars(final, summary["epochs"] + 1)
            self.writer.add_hparams(hyper_parameters(self.cfg), final)
            self.writer.flush()


SHOWN = ("learning_rate", "n_epochs", "seed", "student.name", "loss.name")
"""Settings that TensorBoard's table of runs has in any case, beside those that are not the default."""


def hyper_parameters(cfg: DistillationCfg) -> dict[str, bool | float | str]:
    """Return what a run was made with, for a table of runs: ``SHOWN``, and what is not the default.

    Args:
        cfg: The run's configuration.
    """
    values = to_plain(cfg)
    kept = {name: _at(values, name) for name in SHOWN} | dict(changed_leaves(values, to_plain(DistillationCfg())))
    return {name: value if isinstance(value, bool | int | float) else str(value) for name, value in kept.items()}


def _at(values: Mapping[str, Any], name: str) -> Any:
    """Return the value of a dotted name in nested mappings."""
    head, dot, rest = name.partition(".")
    return _at(values[head], rest) if dot else values[head]


def _success(summary: Scalars, digits: int = 1) -> str:
    """Return ", success 98.0 %", or "" where success is unknown."""
    return f", success {100 * summary['success_rate']:.{digits}f} %" if "success_rate" in summary else ""


class _Console(Console):
    """A console whose pipe may be closed, as by ``| head``: writing then raises."""

    def on_broken_pipe(self) -> None:
        """Raise, as ``print`` does; the library would end the process without a word."""
        raise BrokenPipeError


def _log_tag(name: str) -> str:
    """Return the tag of an entry of ``extras["log"]``, as RSL-RL writes it: bare names go under ``Episode/``."""
    return name if "/" in name else f"Episode/{name}"
