"""The distillation loop, and nothing else: collect, learn, evaluate, save."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import RunInterrupted, UserError, reading
from foundation.evaluation.divergence import DivergenceProbe
from foundation.evaluation.teacher_check import check_teacher
from foundation.learning.early_stopping import EarlyStopping
from foundation.learning.learner import LearningStats
from foundation.learning.schedules import teacher_share
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector, teacher_selector
from foundation.rollout.baselines import measure_baselines, ratio_interval, scores
from foundation.rollout.collector import Collector
from foundation.rollout.episodes import CollectionStats
from foundation.rollout.evaluate import EvaluationResult, evaluate, preserved_rng
from foundation.runs.base import Runner
from foundation.runs.run_dataset import make_run_dataset
from foundation.runs.run_state import BEST, DatasetShards, latest_checkpoint, restore_rng, rows_of
from foundation.runs.run_teachers import RunTeachers

MakeEvalEnv = Callable[[int], Any]
"""Builds an evaluation environment of the wanted number of environments."""

MAX_EVAL_ENVS = 4096
FEWEST_BASELINE_EPISODES = 48
"""Of teacher, zero and random actions together, where all share a rollout: sixteen each tell a teacher from chance."""


class DistillationRunner(Runner):
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
        super().__init__(cfg, run_dir, writer, interrupted)
        self.env, self.teacher = env, teacher
        self.make_eval_env, self.label_bound = make_eval_env, label_bound
        self.env_steps = 0
        self.baselines: dict[str, dict[str, float]] = {}
        self._baseline_episodes = 0
        self.mode = self._resolve_mode()
        self._select_observations()
        self.make_learner(self.num_obs, env.num_actions, env.device)
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
            assignment=self.teachers.assignment,
            correction=self.teachers.correction,
            recorder=self.recorder,
        )
        self.shards = DatasetShards(self.dataset, run_dir, cfg.dataset.disk_gb, keep=not cfg.on_policy)
        acts = [epoch for epoch in range(cfg.n_epochs) if self.beta(epoch) < 1.0]
        self.forced_epochs = acts[0] if acts else cfg.n_epochs
        self.early_stopping = EarlyStopping(cfg.early_stopping, acts[0] if acts else 0)
        self._eval_env: Any = None
        self.rows_before: int | None = None
        """Size of the dataset when the run was saved that is resumed; None once more is collected."""

    # -- the loop -----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Measure the baselines, unless they are known, and show what is about to run."""
        if not self.baselines:
            self._begin_run()
        dataset = self.dataset
        self.reporter.begin(
            teacher_return=self.baselines["teacher"]["mean_return"],
            student=(
                f"obs={self.num_obs} ({', '.join(self.student_obs.groups)}), actions={self.env.num_actions}, "
                f"{self.num_parameters} parameters"
            ),
            dataset=(
                f"room for {dataset.capacity} rows ({dataset.num_bytes / 1e6:.0f} MB) on {dataset.device}; "
                f"collection by {self.mode} in {self.env.num_envs} environments"
            ),
        )

    def resume(self) -> str:
        """Go on from the run folder's last finished epoch, or begin if it stopped before its first.

        Returns:
            "" if the run goes on exactly, else why it is not exact.
        """
        checkpoint = latest_checkpoint(self.run_dir)
        return "" if checkpoint is None else self.restore(checkpoint)

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
            evaluation = self._summarise(collected)
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

    def beta(self, epoch: int) -> float:
        """Return the probability that an episode of this epoch is driven by the teacher."""
        return teacher_share(self.cfg, epoch)

    # -- parts of an epoch --------------------------------------------------------------------------------------

    def _fit_normalizer(self, epoch: int, collected: CollectionStats) -> None:
        """Fit over the teacher-forced phase (over the first epoch if there is none), then leave it frozen.

        A student that starts from trained weights keeps the normaliser that they were trained with.
        """
        if not self.fits_normalizer:
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
        self.baselines["teacher"] = collected.summary()
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
            self.context.eval_seed,
            [] if probe is None else [probe],
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
        self.best_return = evaluation["mean_return"]
        self.save_best(made_by, evaluation)

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
        self.save()
        self.shards.prune()

    # -- saving and going on --------------------------------------------------------------------------------------

    def resume_state(self) -> dict[str, Any]:
        """Return everything but the student and the dataset's rows."""
        device = torch.device(self.env.device)
        state = {
            "epoch": self.epoch,
            "env_steps": self.env_steps,
            "baselines": self.baselines,
            "teachers": self.teachers.state_dict(),
            "stopwatch": self.stopwatch.state_dict(),
            "early_stopping": self.early_stopping.state_dict(),
            "collector": self.collector.state_dict(),
            "dataset": self.dataset.state_dict(),
            "shards": self.shards.state_dict(),
            "dataset_rows": len(self.dataset),
            "torch_rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "num_envs": self.env.num_envs,
        }
        return {"resume": state}

    def restore(self, checkpoint: dict[str, Any]) -> str:
        """Put a run back to where a checkpoint was written.

        Returns:
            "" if it goes on exactly, else why not.
        """
        state = checkpoint.get("resume")
        if state is None:
            raise UserError(
                "This checkpoint holds a student but no state to resume from: leave --checkpoint out, or name a "
                "checkpoint_epoch_*.pt. To start from a student's weights, set distill.student.init_checkpoint."
            )
        with reading(f"the state to resume from in {self.run_dir.path}"):
            return self._restore(checkpoint, state)

    def _restore(self, checkpoint: dict[str, Any], state: dict[str, Any]) -> str:
        self.teachers.load_state_dict(state.get("teachers", {}))
        if state["num_envs"] != self.env.num_envs:
            raise UserError(
                f"The run had --num_envs {state['num_envs']}, now {self.env.num_envs}: resume with the same."
            )
        if checkpoint["student"] != self.student.describe():
            raise UserError(
                "The student's architecture differs from that of the run to resume: give the same settings."
            )
        self.learner.load_state_dict(checkpoint["model_state_dict"], checkpoint)
        self._restore_best(checkpoint)
        self.epoch, self.env_steps = state["epoch"], state["env_steps"]
        self.rows_before = state.get("dataset_rows", rows_of(state["dataset"]))
        self.baselines = state["baselines"]
        self.stopwatch.load_state_dict(state["stopwatch"])
        self.early_stopping.load_state_dict(state.get("early_stopping", {}))
        restore_rng(state, torch.device(self.env.device))
        reasons = []
        if not self.collector.load_state_dict(state["collector"]):
            reasons.append("this engine cannot restore its environments")
        if not self.shards.restore(state["dataset"], state["shards"]):
            reasons.append("its dataset is not on disk (dataset.disk_gb was too small, or the run had ended)")
        return " and ".join(reasons)

    def _restore_best(self, checkpoint: dict[str, Any]) -> None:
        """Take the best return so far: ``best_student.pt`` may be newer than the checkpoint, and is not to be lost."""
        known = [checkpoint]
        if (self.run_dir.path / BEST).exists():
            known.append(self.run_dir.load_checkpoint(BEST))
        best = max(known, key=lambda entry: entry["best_return"])
        self.best_return, self.best_epoch = best["best_return"], best["best_epoch"]

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
            self.save_latest()
            raise
        self.reporter.log_baselines(self.baselines)
        self.recorder.open()  # refused before anything is saved, so that no run is left that never began
        self.save_latest()

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
                self.context.eval_seed,
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

    def finish(self) -> dict[str, Any]:
        """Save the last student, measure the best one, write the summary and remove what only a resume needs."""
        self.run_dir.save_checkpoint("final_student.pt", self.student_checkpoint(self.epoch - 1))
        with self.stopwatch.stage("final_evaluation"):
            summary = self._final_summary()
        summary |= {"wall_seconds": self.stopwatch.wall, "cpu_seconds": self.stopwatch.cpu}
        self.run_dir.write_summary(summary)
        self.shards.remove()
        self.recorder.close()
        self.reporter.end(summary)
        return summary

    def _final_summary(self) -> dict[str, Any]:
        """Measure the best student and the teacher on fresh seeds, the same for both.

        The learner's policy holds the best student's weights afterwards.

        Returns:
            Plain values for ``summary.json``, the stages' seconds left out.
        """
        cfg, policy = self.cfg, self.learner.policy
        best = self.run_dir.load_checkpoint(BEST, map_location=str(self.env.device))
        policy.load_state_dict(best["model_state_dict"])
        episodes = cfg.num_eval_episodes if self.make_eval_env is None else cfg.final_eval_episodes
        self.reporter.last_measurement(episodes, cheap=self.make_eval_env is not None)
        env, seed = self.eval_env(episodes), self.context.final_seed
        teachers = self.teachers
        actor = PolicyActor(policy, self.student_obs)
        measured = evaluate(env, actor, episodes, seed, poll=self.poll, teacher_of=teachers.teacher_of)
        teachers.evaluated(measured)
        # The ratio that is quoted rests on as many episodes of the teacher, from the same initial states.
        actor = PolicyActor(self.teacher, self.teacher_obs)
        judged = evaluate(env, actor, episodes, seed, poll=self.poll, who="teacher", teacher_of=teachers.teacher_of)
        teachers.record("teacher", judged)
        student = measured.summary()
        teacher = judged.summary()
        ratio = scores(student["mean_return"], teacher["mean_return"], self.baselines["random"]["mean_return"])
        if "return_ratio" in ratio:
            ratio["return_ratio_interval_95"] = ratio_interval(measured.returns, judged.returns)
        return {
            "task": cfg.task,
            "best_epoch": self.best_epoch + 1,
            "teacher": teacher | {"return_interval_95": judged.return_interval},
            "student": student | {"return_interval_95": measured.return_interval},
            "teacher_return": teacher["mean_return"],
            "best_student_return": student["mean_return"],
            **ratio,
            "success_rate": student.get("success_rate"),
            "position_error": student.get("position_error"),
            "final_eval_episodes": len(measured.returns),
            "baselines": self.baselines,
            **teachers.summary(),
            "epochs": self.epoch,
            "stopped_early": self.epoch < cfg.n_epochs,
            "env_steps": self.env_steps,
            "dataset_rows": len(self.dataset) if self.rows_before is None else self.rows_before,
            "parameters": {
                "student": sum(p.numel() for p in policy.parameters()),
                "teacher": sum(p.numel() for p in self.teacher.parameters()),
            },
        }

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
