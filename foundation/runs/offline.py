"""Distillation from a saved dataset alone: no simulator, no teacher; held-out transitions measure the student."""

from __future__ import annotations

import math
from typing import Any

import torch

from foundation.config.derived_cfg import copied, read_derived
from foundation.config.distillation_cfg import DistillationCfg, StudentCfg
from foundation.config.plain import to_plain
from foundation.core.errors import UserError, reading
from foundation.core.program import command_name
from foundation.core.text import quoted
from foundation.dataset.build import OfflineData, load_offline
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.disk.reader import SavedDataset
from foundation.learning.early_stopping import EarlyStopping
from foundation.learning.held_out import held_out_loss
from foundation.learning.learner import LearningStats
from foundation.learning.objective import RunFacts
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import map_output
from foundation.runs.base import Runner
from foundation.runs.context import Interrupted, RunContext
from foundation.runs.metrics_writer import MetricsWriter
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import BEST, OfflineState, RunCheckpoint, load_latest
from foundation.students.cnn import CNNStudentCfg
from foundation.students.observations import tell_images


class OfflineRunner(Runner[None]):
    """Learns from a dataset on disk.

    Args:
        cfg: The run's configuration; task and observation groups are filled in from the dataset.
        run_dir: Where checkpoints and the summary go.
        writer: Where scalars are logged. None: nowhere.
        interrupted: Returns the reason to stop, or a false value.

    Raises:
        UserError: If the dataset is missing, corrupt or of another task, or no episode of it passes the filter.
    """

    def __init__(
        self,
        cfg: DistillationCfg,
        run_dir: RunDir,
        *,
        writer: MetricsWriter | None = None,
        interrupted: Interrupted = lambda: None,
    ):
        super().__init__(RunContext.make(cfg, run_dir, cfg.device, writer, interrupted))
        self.saved = open_for(cfg)
        layout = self.saved.layout
        _set_image_shapes(cfg.student, self.saved)
        self.student_obs = ObsSelector(layout.obs_groups, layout.obs_slice, list(layout.images))
        self.label_bound = layout.clip_actions
        self.derived_groups = read_derived(layout.derived_groups, f"'{self.saved.path}'")
        self.best_loss = math.inf
        self.best: dict[str, float] = {}
        self.early_stopping = EarlyStopping(cfg.early_stopping)
        self.feed_prediction(layout.sizes.get("estimate", 0))
        self.make_learner(layout.obs_size, layout.sizes["mean"])
        self.train, self.held_out = self._load()
        self._prepare()

    # -- the loop -----------------------------------------------------------------------------------------------

    def collect(self, epoch: int) -> None:
        """Collect nothing: every transition is in the dataset already."""

    def learn(self, epoch: int, collected: None) -> LearningStats:
        """Fit the student to the dataset."""
        with self.stopwatch.stage("learning"):
            return self.learner.learn(self.train, self.rows_each, epoch, self.poll_in_step)

    def evaluate(self, epoch: int, collected: None) -> dict[str, float] | None:
        """Measure the student on the held-out transitions, every ``eval_interval`` epochs and in the last one."""
        if (epoch + 1) % (self.cfg.eval_interval or 1) and epoch + 1 != self.cfg.n_epochs:
            return None
        with self.stopwatch.stage("evaluation"):
            measured = held_out_loss(self.learner, self.held_out, epoch)
        self._keep_best(measured, epoch)
        return measured

    def resume(self, checkpoint: RunCheckpoint[OfflineState] | None = None) -> None:
        """Resume exactly from a checkpoint of this run (None: the newest), or begin if there is none yet.

        Raises:
            UserError: If the dataset or the student's architecture has changed.
        """
        checkpoint = load_latest(self.run_dir, OfflineState) if checkpoint is None else checkpoint
        if checkpoint is None:
            return
        state = checkpoint.state
        if state is None:
            raise UserError(
                "this checkpoint has no state of an --offline run to resume from: name a checkpoint_epoch_*.pt of one"
            )
        with reading(f"the state to resume from in {self.run_dir.path}"):
            # The order in which transitions are drawn is restored by their places in the dataset: other files would
            # silently give other minibatches.
            if state.files != [entry.crc32 for entry in self.saved.files]:
                raise UserError(f"the dataset '{self.saved.path}' is not the one that this run began with: restore it")
            self.restore_student(checkpoint.values)
            self.epoch = state.epoch
            self.best_loss = state.best_loss
            self.best_epoch = checkpoint.values["best_epoch"]
            self.best = state.best
            self.stopwatch.load_state_dict(state.stopwatch)
            self.early_stopping.load_state_dict(state.early_stopping)
            if state.world_size == self.context.world_size:  # else each process has other chunks than any had
                parts = [{"dataset": state.dataset, "torch_rng": state.torch_rng}, *state.others]
                own = parts[self.context.rank]
                self.train.load_state_dict(own["dataset"])
                torch.set_rng_state(own["torch_rng"].cpu())

    # -- parts ----------------------------------------------------------------------------------------------------

    def _load(self) -> tuple[DistillationDataset, DistillationDataset]:
        """Read the dataset into two: transitions to train on, and a random share of the chunks that is held out."""
        ranks = self.context.ranks
        objective = self.learner.objective
        needed = {name for term in objective.terms for name in term.spec.teacher}
        kept = objective.target_fields()
        loaded: list[OfflineData] = []

        def read() -> list[int]:
            share = (self.sequence_length, ranks.rank, ranks.world_size)
            loaded.append(load_offline(self.cfg, self.saved, needed, kept, *share))
            return [len(loaded[0].train), len(loaded[0].held_out)]

        with self.stopwatch.stage("loading"):
            parts = ranks.together(read)
        [data] = loaded
        self.episodes = data.num_episodes
        self.episodes_left_out = data.num_left_out
        self.filtered = data.filtered
        fewest = min(part[0] for part in parts)
        batch = self.learner.batch_size * self.sequence_length
        if ranks.world_size > 1 and fewest < batch:
            raise UserError(
                f"one of {ranks.world_size} processes has {fewest} transitions of '{self.saved.path}' to learn from, "
                f"fewer than the {batch} of a batch: start fewer processes, or give a smaller --batch_size"
            )
        self.rows_to_learn_from, self.rows_held_out = (sum(numbers) for numbers in zip(*parts, strict=True))
        self.rows_each = ranks.share_of(self.rows_to_learn_from)
        return data.train, data.held_out

    @torch.no_grad()
    def _prepare(self) -> None:
        """Prepare the learner, and fit the student's normaliser to the training transitions."""
        # One transition is enough for the learner: it checks which outputs there are, and their sizes.
        batch = self.train.chunk_batch(0, slice(0, 1))
        teacher = map_output(lambda target: target[0].float(), batch.targets)
        student = self.student.step(batch.obs[0].float(), None)[0]
        layout = self.saved.layout
        # A dataset stores the groups' concatenation: of several groups the sizes of each are not known.
        groups = {layout.obs_groups[0]: layout.obs_size} if len(layout.obs_groups) == 1 else None
        self.learner.prepare(student, teacher, RunFacts(groups))
        if self.fits_normalizer:
            self.learner.fit_normalizer_to(map(self.train.chunk_obs, range(self.train.num_chunks)))
            self.learner.watch_normalizer(self.train, [])

    def _keep_best(self, measured: dict[str, float], epoch: int) -> None:
        self.early_stopping.see(epoch, -measured["held_out_loss"])
        if measured["held_out_loss"] >= self.best_loss:
            return
        self.best_loss = measured["held_out_loss"]
        self.best = measured
        self.save_best(epoch, measured)

    def student_checkpoint(self, epoch: int, evaluation: dict[str, float] | None = None) -> dict[str, Any]:
        """Return what rebuilds the student, with the best loss in place of a return: nothing acts in this run."""
        return super().student_checkpoint(epoch, evaluation) | {"best_return": None, "best_loss": self.best_loss}

    def state(self) -> OfflineState:
        """Return the progress, the state of the sampling, and the checksums of the dataset's files."""
        own = {"dataset": self.train.state_dict(), "torch_rng": torch.get_rng_state()}
        return OfflineState(
            epoch=self.epoch,
            best_loss=self.best_loss,
            best=self.best,
            files=[entry.crc32 for entry in self.saved.files],
            stopwatch=self.stopwatch.state_dict(),
            early_stopping=self.early_stopping.state_dict(),
            dataset=own["dataset"],
            torch_rng=own["torch_rng"],
            others=self.context.ranks.gather_to_first(own)[1:],
        )

    # -- what the user sees ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Show what is about to run, and save a first state, so that the run can be resumed from here on."""
        layout = self.saved.layout
        size = self.train.num_bytes + self.held_out.num_bytes
        self.reporter.line(
            f"Student: {self.cfg.student.name}, obs={layout.obs_size} ({', '.join(layout.obs_groups)}), "
            f"actions={layout.sizes['mean']}, {self.num_parameters} parameters"
        )
        self.reporter.line(
            f"Dataset: {self.saved.num_rows} transitions of {layout.task} ({size / 1e6:.0f} MB) on "
            f"{self.train.device}, {self.episodes} finished episodes, {self.episodes_left_out} of them left out by the "
            f"filter; {self.rows_held_out} transitions are held out"
        )
        if self.epoch == 0:
            self.save_latest()

    def log(self, epoch: int, collected: None, learned: LearningStats, evaluation: dict[str, float] | None) -> None:
        """Show and log the epoch."""
        seconds = self.stopwatch.lap().get("learning", 0.0)
        rows = self.context.world_size * self.learner.batch_size * self.sequence_length
        rate = learned.num_updates * rows / max(1e-9, seconds)
        parts = [f"Training - Mean loss: {learned.mean_loss:.6f}"]
        scalars = {"training/loss": learned.mean_loss, "training/learning_rate": learned.learning_rate}
        scalars |= {"training/updates": float(learned.num_updates), "performance/rows_per_second": rate}
        if evaluation is not None:
            parts.append(
                f"Evaluation - Held-out loss: {evaluation['held_out_loss']:.6f}, "
                f"action RMSE {evaluation['action_rmse']:.4f}"
            )
            scalars |= {f"evaluation/{name}": value for name, value in evaluation.items()}
        self.reporter.scalars(scalars, self.epoch)
        title = f"Epoch {self.epoch}/{self.cfg.n_epochs} (offline)"
        self.reporter.show_epoch(self.epoch, title, parts, evaluation is not None)

    def finish(self) -> dict[str, Any]:
        """Write the last student and the summary."""
        self.save_checkpoint("final_student.pt", self.student_checkpoint(self.epoch - 1))
        summary = {
            "task": self.cfg.task,
            "offline": True,
            "best_epoch": self.best_epoch + 1,
            **self.best,
            "epochs": self.epoch,
            "dataset": {
                "path": str(self.saved.path),
                "files": len(self.saved.files),
                "rows": self.saved.num_rows,
                "rows_to_learn_from": self.rows_to_learn_from,
                "rows_held_out": self.rows_held_out,
                "episodes": self.episodes,
                "episodes_left_out": self.episodes_left_out,
                **({} if self.filtered is None else {"episodes_unfinished": self.filtered.unfinished.episodes}),
                "teacher": self.saved.teacher,
            },
            "parameters": {"student": self.num_parameters},
            **({"processes": self.context.world_size} if self.context.world_size > 1 else {}),
            "wall_seconds": self.stopwatch.wall,
            "cpu_seconds": self.stopwatch.cpu,
        }
        self.run_dir.write_summary(summary)
        self.reporter.line(
            f"Best student (epoch {self.best_epoch + 1}): held-out loss {self.best_loss:.6f}, action RMSE "
            f"{self.best.get('action_rmse', math.nan):.4f}. Measure it: {command_name('play.py')} "
            f"--task {self.cfg.task} --checkpoint {self.run_dir.path / BEST}"
        )
        return summary


def open_for(cfg: DistillationCfg) -> SavedDataset:
    """Open the dataset of an offline run, and fill in the config's task and observation groups from it.

    Raises:
        UserError: If the config asks for another task or other groups.
    """
    assert cfg.dataset.load is not None
    saved = SavedDataset(cfg.dataset.load).first(cfg.dataset.load_files)
    cfg.dataset.load_files = len(saved.files)
    layout = saved.layout
    asked = {"task": cfg.task, "obs_groups": cfg.student.obs_groups, "obs_slice": cfg.student.obs_slice}
    for name, value in asked.items():
        found = getattr(layout, name)
        if value is not None and value != found:
            raise UserError(
                f"the dataset '{saved.path}' has {name} {found}, not {value}: leave {name} out, or load another dataset"
            )
    derived = copied(read_derived(layout.derived_groups, f"'{saved.path}'"))
    if cfg.obs and to_plain(cfg.obs) != to_plain(derived):
        made = to_plain(derived) or "no derived groups"
        raise UserError(
            f"the dataset '{saved.path}' was collected with {quoted(made, 300)}, not with the distill.obs that was "
            "given: leave it out, or take another"
        )
    cfg.obs = derived
    cfg.task = layout.task
    cfg.student.obs_groups = layout.obs_groups
    cfg.student.obs_slice = layout.obs_slice
    return saved


def _set_image_shapes(cfg: StudentCfg, saved: SavedDataset) -> None:
    """Set the shapes of a dataset's images in the config of a student that reads images.

    Raises:
        UserError: If it sees and there are none, or the other way round.
    """
    images = saved.layout.images
    if isinstance(cfg, CNNStudentCfg) != bool(images):
        there = f"images ({', '.join(images)})" if images else f"no images (its groups are {saved.layout.obs_groups})"
        other = "student=cnn" if images else "another student"
        raise UserError(f"student={cfg.name} does not fit the dataset '{saved.path}', which holds {there}: use {other}")
    if isinstance(cfg, CNNStudentCfg):
        shapes = {group: list(column.shape) for group, column in images.items()}
        tell_images(cfg, shapes, {group: column.torch_dtype for group, column in images.items()})
