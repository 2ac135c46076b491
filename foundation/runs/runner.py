"""The distillation loop, and nothing else: collect, learn, evaluate, save."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from foundation.checkpoints.initialise import initialise_student
from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import RunInterrupted, UserError
from foundation.core.stopwatch import Stopwatch
from foundation.evaluation.divergence import DivergenceProbe
from foundation.evaluation.teacher_check import check_teacher
from foundation.learning.early_stopping import EarlyStopping
from foundation.learning.learner import Learner, LearningStats
from foundation.learning.schedules import teacher_share
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector, teacher_selector
from foundation.rollout.baselines import measure_baselines, scores
from foundation.rollout.collector import Collector
from foundation.rollout.episodes import CollectionStats
from foundation.rollout.evaluate import EvaluationResult, evaluate, preserved_rng
from foundation.runs.report import Reporter
from foundation.runs.run_dataset import make_run_dataset
from foundation.runs.run_state import (
    BEST,
    DatasetShards,
    latest_checkpoint,
    restore,
    resume_checkpoint,
    save_latest,
    student_checkpoint,
)
from foundation.runs.run_summary import final_summary
from foundation.runs.run_teachers import RunTeachers
from foundation.students import make_student

MakeEvalEnv = Callable[[int], Any]
"""Builds an evaluation environment of the wanted number of environments."""

MAX_EVAL_ENVS = 4096
EVAL_SEED = 1_000_003
FEWEST_BASELINE_EPISODES = 48
"""Of teacher, zero and random actions together, where all share a rollout: sixteen each tell a teacher from chance."""


class DistillationRunner:
    """Distils one teacher into one student.

    Args:
        env: The environment to collect in.
        teacher: The teacher (``TeacherPolicyWrapper``).
        cfg: The run's configuration, observation groups resolved.
        run_dir: Where checkpoints and the summary go.
        make_eval_env: Builds a second environment; None where a process can hold only one.
        writer: Takes scalars (``metrics_writer``); None writes none.
        interrupted: Returns the reason to stop, or a false value.
        label_bound: Labels are clipped to [-bound, bound]; None where nothing defines a bound.
    """

    def __init__(
        self,
        env: Any,
        teacher: Any,
        cfg: DistillationCfg,
        run_dir: Any,
        *,
        make_eval_env: MakeEvalEnv | None = None,
        writer: Any = None,
        interrupted: Callable[[], Any] = lambda: None,
        label_bound: float | None = None,
    ):
        self.env, self.teacher, self.cfg, self.run_dir = env, teacher, cfg, run_dir
        self.make_eval_env, self.interrupted, self.label_bound = make_eval_env, interrupted, label_bound
        self.stopwatch = Stopwatch()
        self.epoch, self.best_return, self.best_epoch, self.env_steps = 0, -math.inf, -1, 0
        self.baselines: dict[str, dict[str, float]] = {}
        self._baseline_episodes = 0
        self.mode = self._resolve_mode()
        torch.manual_seed(cfg.seed)
        self._select_observations()
        self.student = make_student(cfg.student, self.num_obs, env.num_actions).to(env.device)
        if cfg.student.init_checkpoint is not None:
            initialise_student(self.student, cfg.student.init_checkpoint)
        self.sequence_length = cfg.sequence_length or (50 if self.student.state_size else 1)
        self.learner = Learner(self.student, cfg, self.sequence_length)
        self.dataset, self.recorder = make_run_dataset(self)
        self.collector = Collector(
            env,
            teacher,
            self.student,
            self.dataset,
            self.teacher_obs,
            self.student_obs,
            cfg.collection,
            mode=self.mode,
            num_episodes=cfg.num_episodes,
            seed=cfg.seed,
            label_bound=label_bound,
            teacher_deterministic=cfg.teacher_deterministic,
            keeper=self.teachers.keeper,
            recorder=self.recorder,
        )
        self.shards = DatasetShards(self.dataset, run_dir, cfg.dataset.disk_gb, keep=not cfg.on_policy)
        self.reporter = Reporter(cfg, writer)
        acts = [epoch for epoch in range(cfg.n_epochs) if self.beta(epoch) < 1.0]
        self.forced_epochs = acts[0] if acts else cfg.n_epochs
        self.early_stopping = EarlyStopping(cfg.early_stopping, acts[0] if acts else 0)
        self._eval_env: Any = None
        self.rows_before: int | None = None
        """Size of the dataset when the run was saved that is resumed; None once more is collected."""

    # -- the loop -----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run all epochs, measure the best student on fresh seeds, and write ``summary.json``.

        Returns:
            The summary.

        Raises:
            RunInterrupted: If the user asked to stop; everything up to the last finished epoch is saved.
            UserError: If the teacher is worse than asked for, or something became NaN.
        """
        if not self.baselines:
            self._begin_run()
        self.reporter.begin(self)
        with self.reporter.progress(self.epoch):
            while self.epoch < self.cfg.n_epochs and not self.early_stopping.due():
                self.run_epoch(self.epoch)
        return self._finish()

    def resume(self) -> str:
        """Go on from the run folder's last finished epoch, or begin if it stopped before its first.

        Returns:
            "" if the run goes on exactly, else why it is not exact.
        """
        checkpoint = latest_checkpoint(self.run_dir)
        return "" if checkpoint is None else restore(self, checkpoint)

    def run_epoch(self, epoch: int) -> None:
        """Collect, learn, evaluate, log and save one epoch."""
        beta = self.beta(epoch)
        if self.cfg.on_policy:
            self.dataset.clear()
        with self.stopwatch.stage("collection"):
            collected = self.collector.collect(epoch, beta, self.poll)
        self.env_steps += collected.env_steps
        self.rows_before = None
        new_rows = self.teachers.collected(epoch, beta, collected, self.dataset)
        evaluation: dict[str, float] | None = None
        self._refine_teacher(epoch, beta, collected)
        if self._collection_is_evaluation(beta):
            evaluation = self._summarise(EvaluationResult.of(collected))
            self._keep_best(evaluation, epoch, made_by=epoch - 1)
        self._fit_normalizer(epoch, collected)
        with self.stopwatch.stage("learning"):
            learned = self.learner.learn(self.dataset, new_rows, epoch, self.poll)
            self.collector.fit_noise(collected.slots)
        if evaluation is None and self._evaluation_due(epoch):
            with self.stopwatch.stage("evaluation"):
                evaluation = self._evaluate_student()
            self._keep_best(evaluation, epoch, made_by=epoch)
        self.epoch = epoch + 1
        with self.stopwatch.stage("saving"):
            self._log(epoch, beta, collected, learned, evaluation)
            self._save(epoch, collected)

    def poll(self) -> None:
        """Raise ``RunInterrupted`` if the user asked to stop."""
        reason = self.interrupted()
        if reason:
            raise RunInterrupted(str(reason))

    def beta(self, epoch: int) -> float:
        """Return the probability that an episode of this epoch is driven by the teacher."""
        return teacher_share(self.cfg, epoch)

    # -- parts of an epoch --------------------------------------------------------------------------------------

    def _fit_normalizer(self, epoch: int, collected: CollectionStats) -> None:
        """Fit over the teacher-forced phase (over the first epoch if there is none), then leave it frozen.

        A student that starts from trained weights keeps the normaliser that they were trained with.
        """
        if not self.cfg.student.obs_normalization or self.cfg.student.init_checkpoint is not None:
            return
        if epoch >= max(1, self.forced_epochs):
            self.learner.watch_normalizer(self.dataset, collected.slots)
            return
        for slot in collected.slots:
            self.learner.fit_normalizer(self.dataset.chunk_obs(slot))

    def _collection_is_evaluation(self, beta: float) -> bool:
        """Whether the deterministic student acted alone in whole episodes (single-environment engines)."""
        deterministic = self.cfg.collection.student_deterministic
        same_policy = self.learner.average is None
        return self._whole_episodes_undisturbed() and beta == 0.0 and deterministic and same_policy

    def _whole_episodes_undisturbed(self) -> bool:
        """Whether an epoch is whole episodes of the only environment, without noise on the actions."""
        noise = self.cfg.collection
        disturbed = noise.epsilon > 0.0 or noise.noise_std > 0.0
        return self.make_eval_env is None and self.mode == "episodes" and not disturbed

    def _refine_teacher(self, epoch: int, beta: float, collected: CollectionStats) -> None:
        """Take the first epoch's episodes as the teacher's figure where they are more than the baseline had.

        With a single environment the baseline is short, for it keeps the user waiting; the teacher then acts alone.
        """
        alone = epoch == 0 and beta == 1.0 and self.cfg.teacher_deterministic and self._whole_episodes_undisturbed()
        if not alone or len(collected.returns) <= self._baseline_episodes:
            return
        self.baselines["teacher"] = EvaluationResult.of(collected).summary()
        self.reporter.teacher_refined(self.baselines["teacher"], len(collected.returns))

    def _evaluation_due(self, epoch: int) -> bool:
        default = 10 if self.make_eval_env is None and self.beta(epoch) > 0.0 else 1
        interval = self.cfg.eval_interval or default
        return (epoch + 1) % interval == 0 or epoch + 1 == self.cfg.n_epochs

    def _evaluate_student(self) -> dict[str, float]:
        actor = PolicyActor(self.learner.policy, self.student_obs)
        probe = None
        if self.teacher.state_size == 0:
            probe = DivergenceProbe(
                self.teacher, self.teacher_obs, self.learner.policy, self.student_obs, self.label_bound
            )
        result = evaluate(
            self.eval_env(),
            actor,
            self.cfg.num_eval_episodes,
            self.cfg.seed + EVAL_SEED,
            None if probe is None else probe.on_step,
            self.poll,
            teacher_of=self.teachers.teacher_of,
        )
        if self.make_eval_env is None:
            self.collector.restart()
        return self._summarise(result) | (probe.summary() if probe else {})

    def _summarise(self, result: EvaluationResult) -> dict[str, float]:
        self.teachers.evaluated(result)
        summary = result.summary()
        return summary | scores(
            summary["mean_return"], self.baselines["teacher"]["mean_return"], self.baselines["random"]["mean_return"]
        )

    def _keep_best(self, evaluation: dict[str, float], epoch: int, made_by: int) -> None:
        """Save the student if no other was better; ``made_by``, counted from 0, is the epoch that it has learned in."""
        self.early_stopping.see(epoch, evaluation["mean_return"])
        if evaluation["mean_return"] <= self.best_return:
            return
        self.best_return, self.best_epoch = evaluation["mean_return"], made_by
        self.run_dir.save_checkpoint(BEST, student_checkpoint(self, made_by, evaluation))

    def _log(
        self,
        epoch: int,
        beta: float,
        collected: CollectionStats,
        learned: LearningStats,
        evaluation: dict[str, float] | None,
    ) -> None:
        performance = {f"{stage}_seconds": seconds for stage, seconds in self.stopwatch.lap().items()}
        performance["env_steps_per_second"] = collected.env_steps / max(1e-9, performance["collection_seconds"])
        dataset = {"rows": len(self.dataset), "evicted_chunks": self.dataset.chunks_evicted}
        self.reporter.epoch(epoch, beta, collected, learned, evaluation, performance, dataset)
        self.teachers.log(self.reporter, epoch, evaluation is not None)

    def _save(self, epoch: int, collected: CollectionStats) -> None:
        self.shards.append(epoch, collected.slots)
        if (epoch + 1) % self.cfg.save_interval == 0:
            self.run_dir.save_checkpoint(f"checkpoint_epoch_{epoch + 1}.pt", resume_checkpoint(self))
        save_latest(self)
        self.shards.prune()

    # -- the beginning and the end ------------------------------------------------------------------------------

    def eval_env(self, num_envs: int | None = None) -> Any:
        """Return the evaluation environment, or the only one."""
        if self.make_eval_env is None:
            return self.env
        with preserved_rng(self.env.device):
            if num_envs is not None:
                return self.make_eval_env(self.teachers.round_envs(num_envs, MAX_EVAL_ENVS))
            if self._eval_env is None:
                num_envs = self.teachers.round_envs(self.cfg.num_eval_episodes, MAX_EVAL_ENVS)
                self._eval_env = self.make_eval_env(num_envs)
            return self._eval_env

    def _begin_run(self) -> None:
        """Measure the baselines and save, so that the run can be resumed from here on."""
        try:
            self._measure_baselines()
        except RunInterrupted:
            save_latest(self)
            raise
        self.reporter.log_baselines(self.baselines)
        self.recorder.open()  # refused before anything is saved, so that no run is left that never began
        save_latest(self)

    def _num_baseline_episodes(self) -> int:
        """Episodes of the baseline: with a single environment, one in each, but at least ``FEWEST_BASELINE_EPISODES``.

        That is enough to check the teacher with. The baseline is the wait before the first collected step, and the
        figures that are quoted are measured at the end.
        """
        wanted = self.cfg.num_eval_episodes
        if self.make_eval_env is not None:
            return wanted
        return min(wanted, max(self.env.num_envs, FEWEST_BASELINE_EPISODES))

    def _measure_baselines(self) -> None:
        with self.stopwatch.stage("baselines"):
            self.teachers.fit_gate(self.eval_env(), self.reporter, self.poll)
            results = measure_baselines(
                self.eval_env(),
                PolicyActor(self.teacher, self.teacher_obs),
                self._num_baseline_episodes(),
                self.cfg.seed + EVAL_SEED,
                shared_rollout=self.make_eval_env is None,
                poll=self.poll,
                teacher_of=self.teachers.teacher_of,
                num_teachers=self.teachers.num_assigned,
            )
        self.teachers.measured(results["teacher"], self.reporter)
        self._baseline_episodes = len(results["teacher"].returns)
        baselines = {name: result.summary() for name, result in results.items()}
        self.reporter.baselines(baselines)
        for warning in check_teacher(results, self.cfg.teacher, getattr(self.env, "solved_return", None)):
            self.reporter.line(f"WARNING: {warning}")
        with self.stopwatch.stage("baselines"):
            actor = PolicyActor(self.teacher, self.teacher_obs)
            self.teachers.measure_offsets(self.eval_env(), actor, self.reporter, self.poll)
        self.baselines = baselines

    def _finish(self) -> dict[str, Any]:
        self.run_dir.save_checkpoint("final_student.pt", student_checkpoint(self, self.epoch - 1))
        with self.stopwatch.stage("final_evaluation"):
            summary = final_summary(self)
        summary |= {"wall_seconds": self.stopwatch.wall, "cpu_seconds": self.stopwatch.cpu}
        self.run_dir.write_summary(summary)
        self.shards.remove()
        self.recorder.close()
        self.reporter.end(summary)
        return summary

    # -- construction -------------------------------------------------------------------------------------------

    def _resolve_mode(self) -> str:
        if self.cfg.collection.mode != "auto":
            return self.cfg.collection.mode
        return "episodes" if self.make_eval_env is None else "steps"

    def _select_observations(self) -> None:
        teacher, student = self.cfg.teacher, self.cfg.student
        obs = self.env.get_observations()
        self.teacher_obs = teacher_selector(self.teacher, obs, teacher.obs_groups, teacher.obs_slice)
        self.teacher_obs.check(obs, "teacher", self.teacher.num_obs)
        self.student_obs = ObsSelector(student.obs_groups or ["policy"], student.obs_slice)
        self.num_obs = self.student_obs.check(obs, "student")
        self.teachers = RunTeachers(self.teacher, self.cfg, self.env, self.teacher_obs, self.student_obs)
        self.teacher_obs = self.teachers.selector
        if self.teacher.num_actions != self.env.num_actions:
            raise UserError(
                f"The teacher has {self.teacher.num_actions} actions but the task '{self.cfg.task}' takes "
                f"{self.env.num_actions}: this checkpoint was trained on another task."
            )
