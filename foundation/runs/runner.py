"""Distillation in a simulator: collect, learn, evaluate, save."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.plain import to_plain
from foundation.core.distributed import Ranks
from foundation.core.errors import RunInterrupted, UserError, reading, suggest
from foundation.dataset.build import CollectedData, build_dataset, predicted_group, typed_columns
from foundation.deploy.description import Field
from foundation.engines.base import EnvCapabilities, MakeEvalEnv, VecEnv, env_state_entry
from foundation.engines.joint_terms import joint_columns
from foundation.engines.observation_terms import column_names, observation_terms
from foundation.evaluation.robustness import robustness_table
from foundation.learning.early_stopping import EarlyStopping
from foundation.learning.held_out import unseen_terms
from foundation.learning.learner import LearningStats
from foundation.learning.objective import RunFacts
from foundation.learning.saliency import SalientTeacher
from foundation.policies.actors import Policy, PolicyActor
from foundation.policies.obs_groups import teacher_selector
from foundation.rollout.collector import Collector
from foundation.rollout.episodes import CollectionStats
from foundation.rollout.on_ranks import one_on_ranks
from foundation.runs.base import Runner
from foundation.runs.context import Interrupted, RunContext
from foundation.runs.dataset_shards import DatasetShards
from foundation.runs.epoch_plan import EpochPlan
from foundation.runs.measurements import FEWEST_EACH, Measurements
from foundation.runs.metrics_writer import MetricsWriter
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import BEST, RankState, RunCheckpoint, RunState, load_latest
from foundation.runs.run_teachers import RunTeachers, Teacher
from foundation.runs.teacher_watch import TeacherWatch, num_relabelled
from foundation.students.observations import num_pixels, student_selector
from foundation.teachers import TeacherPolicyWrapper

logger = logging.getLogger(__name__)


@dataclass
class Collection:
    """Result of an epoch's collection."""

    beta: float
    """Probability that the teacher acted in an episode."""
    stats: CollectionStats
    num_new: int
    """Number of new transitions, each multiplied by its oversampling factor."""
    evaluation: dict[str, float] | None
    """The student's figures, if the deterministic student acted alone, so that the episodes are an evaluation of it."""


class DistillationRunner(Runner[Collection]):
    """Distils one teacher, or several, into one student.

    Args:
        env: The environment to collect in.
        teacher: The teacher (``TeacherPolicyWrapper``), or several as one (``TeacherEnsemble``).
        cfg: The run's configuration, observation groups resolved.
        run_dir: Where checkpoints and the summary go.
        make_eval_env: Builds a second environment; None where a process can hold only one.
        writer: Where scalars are logged (``metrics_writer``). None: nowhere.
        interrupted: Returns the reason to stop, or a false value.
        label_bound: Labels are clipped to [-bound, bound]; None where nothing defines a bound.
    """

    def __init__(
        self,
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
        super().__init__(RunContext.make(cfg, run_dir, env.device, writer, interrupted))
        self.env = env
        self.teacher = teacher
        self.label_bound = label_bound
        self.derived_groups = EnvCapabilities.of(env).derived_groups
        joints = joint_columns(env, cfg.task or "", env.get_observations())
        self.joint_order = [] if joints is None else joints.names
        self.env_steps = 0
        self.plan = EpochPlan(cfg, has_eval_env=make_eval_env is not None)
        self.mode = self.plan.mode
        self._select_observations()
        self.measurements = Measurements(
            env, make_eval_env, teacher, self.teachers, self.student_obs, self.context, label_bound
        )
        self.make_learner(self.num_obs, env.num_actions)
        self._make_dataset()
        self.collector = Collector(
            env,
            self.labelling,
            self.student,
            self.dataset,
            self.teacher_obs,
            self.student_obs,
            cfg.collection,
            mode=self.mode,
            num_episodes=cfg.num_episodes,
            seed=self.context.seed,
            label_bound=label_bound,
            teacher_deterministic=cfg.teacher_deterministic,
            assignment=self.teachers.assignment,
            correction=self.teachers.correction,
            recorder=self.recorder,
            predicted=self.predicted,
        )
        self.shards = DatasetShards(self.dataset, run_dir, cfg.dataset.disk_gb, not cfg.on_policy, self.ranks)
        self.watch = None
        if cfg.teacher.watch is not None and isinstance(teacher, TeacherPolicyWrapper):
            self.watch = TeacherWatch(Path(cfg.teacher.watch), teacher)
        self.num_relabelled = 0
        """Stored transitions that are labelled anew by a newer teacher."""
        if self.watch is not None:
            self.num_relabelled = num_relabelled(cfg, teacher, self.teachers, self.student_obs)
        self.relabels_next = False
        """Whether they are in the next epoch without one: a resumed run's have the labels of their collection."""
        # Patience counts from the student's own episodes: before, it learns from states that it will not meet alone.
        self.early_stopping = EarlyStopping(cfg.early_stopping, self.plan.first_student_epoch or 0)
        self.transitions_before: int | None = None
        """Size of the dataset when the resumed run was saved; None in a new run, and once more has been collected."""

    @property
    def ranks(self) -> Ranks:
        """The processes that share the run."""
        return self.context.ranks

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """Teacher, zero and random actions -> figures; empty until they are measured."""
        return self.measurements.baselines

    # -- construction -------------------------------------------------------------------------------------------

    def _select_observations(self) -> None:
        teacher = self.cfg.teacher
        student = self.cfg.student
        obs = self.env.get_observations()
        base = teacher_selector(self.teacher, obs, teacher.obs_groups, teacher.obs_slice)
        base.check(obs, "teacher", self.teacher.num_obs)
        self.student_obs = student_selector(student, obs)
        self.num_obs = self.student_obs.check(obs, "student")
        self.predicted = self._predicted_group(obs)
        """Observation group that the student predicts; None: none."""
        self.teachers = RunTeachers(self.teacher, self.cfg, self.env, base, self.student_obs)
        self.teacher_obs = self.teachers.selector
        if self.teacher.num_actions != self.env.num_actions:
            raise UserError(
                f"The teacher has {self.teacher.num_actions} actions but the task '{self.cfg.task}' takes "
                f"{self.env.num_actions}: this checkpoint was trained on another task."
            )

    def _predicted_group(self, obs: TensorDict) -> str | None:
        """Return the group that the loss ``predict`` names, checked."""
        group = predicted_group(self.cfg)
        if group is None:
            return None
        key = "distill.loss.auxiliary.predict.group"
        if group not in obs.keys():  # noqa: SIM118  # a TensorDict's
            names = [str(name) for name in obs.keys()]  # noqa: SIM118
            raise UserError(f"{key}: the environment has no observation group '{group}'. {suggest(group, names)}")
        if obs[group].ndim != 2:
            raise UserError(f"{key}: group '{group}' has shape {tuple(obs[group].shape[1:])}: predict a flat one.")
        self.feed_prediction(obs[group].shape[-1])
        terms = self._terms_of(obs)
        read = {field.name for own in self.student_obs.groups for field in terms.get(own, ())}
        if group in terms and read.issuperset(field.name for field in terms[group]):
            logger.warning(
                "%s: the student reads all terms of '%s' in other groups: predicting them teaches it little.",
                key,
                group,
            )
        return group

    def _make_dataset(self) -> None:
        """Build the dataset, with the transitions that it begins with, and what saves and filters its episodes."""
        student = self.student
        env = self.env
        describe = getattr(self.teacher, "describe", None)
        memory = student.initial_state(1, env.device) if student.state_size else None
        typed = typed_columns(self.student_obs, env.get_observations(), self.cfg.dataset.load)
        data = CollectedData(
            obs=self.student_obs,
            num_obs=0 if "obs" in typed else self.num_obs - num_pixels(self.cfg.student),
            typed=typed,
            targets=self._probe_targets(),
            num_envs=env.num_envs,
            max_episode_length=int(env.max_episode_length),
            device=self.context.device,
            mode=self.mode,
            sequence_length=self.sequence_length,
            initial_state=None if memory is None else memory.detach(),
            num_teachers=self.teachers.num_assigned,
            run=f"{self.run_dir.experiment_name}/{self.run_dir.name}",
            teacher=None if describe is None else describe(),
            label_bound=self.label_bound,
            derived=self.derived_groups,
            rank=self.context.rank,
            world_size=self.context.world_size,
        )
        self.dataset, self.recorder = build_dataset(self.cfg, data)
        if self.fits_normalizer:
            self.learner.fit_normalizer_to(map(self.dataset.chunk_obs, range(self.dataset.num_chunks)))

    def _terms_of(self, obs: TensorDict) -> dict[str, tuple[Field, ...]]:
        return observation_terms(self.env, self.cfg.task or "", obs)

    @torch.no_grad()
    def _probe_targets(self) -> dict[str, int]:
        """Evaluate teacher and student once; return the size of each of their outputs that is needed."""
        obs = self.env.get_observations()
        wanted = self.learner.objective.target_fields()
        self.teachers.ask_for(wanted)
        shared = self.teachers.share_columns(wanted, obs)
        self.labelling: Policy = self.teacher if shared is None else SalientTeacher(self.teacher, shared[1])
        facts = RunFacts(
            groups={name: math.prod(obs[name].shape[1:]) for name in self.student_obs.groups},
            layer_sizes=self.teachers.tap_layers(),
            shared_columns=None if shared is None else shared[0],
            estimate_names=[] if self.predicted is None else column_names(self.predicted, self._terms_of(obs), obs),
        )
        teacher = PolicyActor(self.labelling, self.teacher_obs).output(self.teacher_obs(obs))
        if self.predicted is not None:
            teacher = teacher._replace(estimate=obs[self.predicted].float())
        student = PolicyActor(self.student, self.student_obs).output(self.student_obs(obs))
        self.learner.prepare(student, teacher, facts)
        if self.cfg.dataset.save is not None:
            wanted = wanted | {"std"}  # a saved dataset may be used with other losses later, such as kl
        outputs = teacher._asdict().items()
        return {name: value.shape[-1] for name, value in outputs if name in wanted and value is not None}

    # -- the beginning ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Measure the baselines, unless they are known, and show what is about to run."""
        if not self.baselines:
            self._begin_run()
        dataset = self.dataset
        each = f" of each of {self.ranks.world_size} processes" if self.ranks.world_size > 1 else ""
        self.reporter.begin(
            teacher_return=self.baselines["teacher"]["mean_return"] if self.baselines else None,
            student=(
                f"obs={self.num_obs} ({', '.join(self.student_obs.groups)}), actions={self.env.num_actions}, "
                f"{self.num_parameters} parameters"
            ),
            dataset=(
                f"room for {dataset.capacity} transitions ({dataset.num_bytes / 1e6:.0f} MB) on {dataset.device}; "
                f"collection by {self.mode} in {self.env.num_envs} environments{each}"
            ),
        )

    def _begin_run(self) -> None:
        """Measure the baselines and save, so that the run can be resumed from here on."""
        later = self._first_epoch_measures_teacher()
        try:
            self.measurements.measure_baselines(self.stopwatch, teacher_later=later)
        except RunInterrupted:
            self.save_latest()
            raise
        if later:
            return  # nothing to resume before the teacher has passed its check
        self.reporter.log_baselines(self.baselines)
        self.recorder.open()  # this may raise, and then no checkpoint of a run that never began may be left
        self.save_latest()

    # -- an epoch -----------------------------------------------------------------------------------------------

    def collect(self, epoch: int) -> Collection:
        """Let teacher or student act and the teacher label, and fit the normaliser to the new observations."""
        beta = self.plan.beta(epoch)
        if self.watch is not None:
            self._look_for_teacher(self.watch, epoch)
        if self.cfg.on_policy:
            self.dataset.clear()
        with self.stopwatch.stage("collection"):
            stats = one_on_ranks(self.ranks, lambda: self.collector.collect(epoch, beta, self.poll))
        self.env_steps += stats.env_steps
        self.transitions_before = None
        num_new = self.teachers.collected(epoch, beta, stats, self.dataset)
        if self.measurements.teacher_is_due:
            self.measurements.take_teacher(stats)
            self.reporter.log_baselines(self.baselines)
        elif epoch == 0 and self.plan.teacher_acts_alone(epoch):
            self.measurements.refine_teacher(stats)
        evaluation = None
        if self.plan.student_acts_alone(epoch):
            # This epoch has not learned yet: the student that acted has the weights of the epoch before.
            evaluation = self.measurements.summarise(stats)
            self._keep_best(evaluation, epoch, made_by=epoch - 1)
        self._fit_normalizer(epoch, stats)
        return Collection(beta, stats, num_new, evaluation)

    def _look_for_teacher(self, watch: TeacherWatch, epoch: int) -> None:
        """Load the newest teacher of a training that is still running, and measure it as the student's reference."""
        said = watch.look()
        if said:
            with self.stopwatch.stage("baselines"):
                measured = self.measurements.newer_teacher()
            self.reporter.newer_teacher(said, measured, epoch)
        if (said or self.relabels_next) and self.num_relabelled and len(self.dataset):
            with self.stopwatch.stage("collection"):
                count = self.collector.actor.relabel(self.num_relabelled)
            self.reporter.line(f"{count} of {len(self.dataset)} stored transitions are labelled anew")
        self.relabels_next = False

    def learn(self, epoch: int, collected: Collection) -> LearningStats:
        """Fit the student to the dataset."""
        slots = collected.stats.slots
        several = len(self.learner.objective.terms) > 1
        with self.stopwatch.stage("learning"):
            unseen = unseen_terms(self.learner, self.dataset, slots, epoch) if several else {}
            num_new = self.ranks.share_of(collected.num_new)
            learned = self.learner.learn(self.dataset, num_new, epoch, self.poll_in_step)
            learned.unseen = unseen
            self.collector.fit_noise(slots)
        return learned

    def evaluate(self, epoch: int, collected: Collection) -> dict[str, float] | None:
        """Measure the student where that is due and the collection has not done it."""
        if collected.evaluation is not None or not self.plan.evaluation_due(epoch):
            return collected.evaluation
        with self.stopwatch.stage("evaluation"):
            evaluation = self._evaluate_student()
        self._keep_best(evaluation, epoch, made_by=epoch)
        return evaluation

    def log(
        self, epoch: int, collected: Collection, learned: LearningStats, evaluation: dict[str, float] | None
    ) -> None:
        """Show and log the epoch."""
        stats = collected.stats
        performance = {f"{stage}_seconds": seconds for stage, seconds in self.stopwatch.lap().items()}
        performance["env_steps_per_second"] = stats.env_steps / max(1e-9, performance["collection_seconds"])
        rows, evicted = self.ranks.total([len(self.dataset), self.dataset.chunks_evicted])
        dataset = {"rows": int(rows), "evicted_chunks": int(evicted)}
        self.reporter.epoch(epoch, collected.beta, stats, learned, evaluation, performance, dataset)
        self.teachers.log(self.reporter, epoch, evaluation is not None)

    def save(self, collected: Collection) -> None:
        """Save the epoch that has just ended, and its chunks of the dataset."""
        self.ranks.together(lambda: self.shards.append(self.epoch - 1, collected.stats.slots))
        super().save(collected)
        self.shards.prune()

    def _fit_normalizer(self, epoch: int, collected: CollectionStats) -> None:
        """Fit over the teacher-forced phase (over the first epoch if there is none), then leave it frozen.

        A student that starts from trained weights keeps the normaliser that they were trained with.
        """
        if not self.fits_normalizer:
            return
        if not self.plan.fits_normalizer(epoch):
            # Frozen: with another normaliser the same weights would be another policy than the one that has acted.
            self.learner.watch_normalizer(self.dataset, collected.slots)
            return
        self.learner.fit_normalizer_to(map(self.dataset.chunk_obs, collected.slots))

    def _first_epoch_measures_teacher(self) -> bool:
        """Whether the baseline may leave the teacher to the first epoch.

        With a single environment the baseline keeps the user waiting: where it is slow to step, most of the wait before
        the first collected step. A dataset that is saved is not begun before the teacher has passed its check.
        """
        enough = self.cfg.num_episodes >= FEWEST_EACH and self.cfg.dataset.save is None
        return self.epoch == 0 and enough and self.teachers.is_single and self.plan.teacher_acts_alone(0)

    def _evaluate_student(self) -> dict[str, float]:
        measured = self.measurements.student(self.learner.policy)
        if not self.measurements.has_own_env:
            self.collector.restart()  # the evaluation has left the only environment in the middle of other episodes
        return measured

    def _keep_best(self, evaluation: dict[str, float], epoch: int, made_by: int) -> None:
        """Save the student if no other was better; ``made_by``, counted from 0, is the epoch that it has learned in."""
        self.early_stopping.see(epoch, evaluation["mean_return"])
        first_rounded = self.cfg.n_epochs - self.cfg.optimizer.int8_epochs
        # No student of float weights is the best one once there is one of rounded weights, which were asked for.
        first_of_its_kind = self.best_epoch < first_rounded <= made_by
        if evaluation["mean_return"] <= self.best_return and not first_of_its_kind:
            return
        self.best_return = evaluation["mean_return"]
        self.save_best(made_by, evaluation)

    # -- saving and resuming --------------------------------------------------------------------------------------

    def state(self) -> RunState:
        """Return everything but the student and the dataset's transitions."""
        device = self.context.device
        own = RankState(
            collector=self.collector.state_dict(),
            dataset=self.dataset.state_dict(),
            shards=self.shards.state_dict(),
            torch_rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        )
        return RunState(
            epoch=self.epoch,
            env_steps=self.env_steps,
            num_envs=self.env.num_envs,
            baselines=self.baselines,
            teachers=self.teachers.state_dict(),
            stopwatch=self.stopwatch.state_dict(),
            early_stopping=self.early_stopping.state_dict(),
            dataset_rows=self._num_rows(),
            **vars(own),
            others=self.ranks.gather_to_first(vars(own))[1:],
        )

    def _num_rows(self) -> int:
        """Return the number of transitions in the datasets of all processes."""
        return int(self.ranks.total([len(self.dataset)])[0])

    def resume(self) -> str:
        """Resume after the run folder's last finished epoch, or begin if it stopped before its first.

        Returns:
            "" if the run resumes exactly, else why it does not.
        """
        checkpoint = load_latest(self.run_dir, RunState)
        return "" if checkpoint is None else self.restore(checkpoint)

    def restore(self, checkpoint: RunCheckpoint[RunState]) -> str:
        """Put a run back to where a checkpoint was written.

        Returns:
            "" if it resumes exactly, else why it does not.
        """
        if checkpoint.state is None:
            raise UserError(
                "This checkpoint holds a student but no state to resume from: leave --checkpoint out, or name a "
                "checkpoint_epoch_*.pt. To start from a student's weights, set distill.student.init_checkpoint."
            )
        with reading(f"the state to resume from in {self.run_dir.path}"):
            return self._restore(checkpoint.values, checkpoint.state)

    def _restore(self, values: dict[str, Any], state: RunState) -> str:
        self.teachers.load_state_dict(state.teachers)
        if state.num_envs != self.env.num_envs:
            raise UserError(f"The run had --num_envs {state.num_envs}, now {self.env.num_envs}: resume with the same.")
        self.restore_student(values)
        self.restore_best(values)
        self.epoch = state.epoch
        self.env_steps = state.env_steps
        self.transitions_before = state.num_rows
        self.measurements.baselines = state.baselines
        self.stopwatch.load_state_dict(state.stopwatch)
        self.early_stopping.load_state_dict(state.early_stopping)
        reasons = [] if self.watch is None else ["the training of its teacher continues"]
        self.relabels_next = self.watch is not None
        if self.teachers.are_others(state.teachers):
            reasons.append("the teacher is not the one that it was begun with: its weights or its config differ")
        ranks = self.ranks
        parts = state.by_rank()
        own = None
        if ranks.rank < len(parts):  # else this process is new: it begins with a reset, and numbers of its own
            own = parts[ranks.rank]
            own.restore_rng(self.context.device)
            if not self.collector.load_state_dict(own.collector):
                reasons.append("this engine cannot restore its environments")
        if own is not None and len(parts) == ranks.world_size:
            whole = self.shards.restore(own.dataset, own.shards)
        else:
            whole = self.shards.redistribute([part.shards for part in parts], state.epoch)
        if not whole:
            reasons.append(
                "its dataset is not on disk (dataset.disk_gb was too small, or the run had ended)"
                if len(parts) == ranks.world_size or self.dataset.episode is None
                else "the episodes of a filtered dataset are numbered by process, whose number is another"
            )
        # One process may find its files where another, on another machine, does not.
        return " and ".join(dict.fromkeys(reason for found in ranks.gather(reasons) for reason in found))

    def student_checkpoint(self, epoch: int, evaluation: dict[str, float] | None = None) -> dict[str, Any]:
        """Return what rebuilds the student, its optimiser, and how far the environment's curriculum has come."""
        return super().student_checkpoint(epoch, evaluation) | env_state_entry(self.env)

    # -- the end ------------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Save the last student, measure the best one, write the summary and remove what only a resume needs."""
        self.save_checkpoint("final_student.pt", self.student_checkpoint(self.epoch - 1))
        policy = self.learner.policy
        with self.stopwatch.stage("final_evaluation"):
            device = str(self.env.device)
            best = self.ranks.from_first(lambda: self.run_dir.load_checkpoint(BEST, map_location=device))
            policy.load_state_dict(best["model_state_dict"])
            measured = self.measurements.final(policy)
            num_rows = self._num_rows() if self.transitions_before is None else self.transitions_before
            if self.cfg.robustness and self.context.is_first:
                measured["robustness"] = self._measure_robustness(policy)
        summary = {
            "task": self.cfg.task,
            "best_epoch": self.best_epoch + 1,
            **measured,
            "epochs": self.epoch,
            "stopped_early": self.epoch < self.cfg.n_epochs,
            "env_steps": self.env_steps,
            "dataset_rows": num_rows,
            "parameters": {
                "student": sum(p.numel() for p in policy.parameters()),
                "teacher": self.teacher.num_parameters,
            },
            **({"processes": self.ranks.world_size} if self.ranks.world_size > 1 else {}),
            "wall_seconds": self.stopwatch.wall,
            "cpu_seconds": self.stopwatch.cpu,
        }
        self.run_dir.write_summary(summary)
        self.shards.remove()
        self.recorder.close()
        self.reporter.end(summary)
        self.reporter.line(str(self.run_dir.path / BEST))
        return summary

    def _measure_robustness(self, policy: Policy) -> dict[str, Any]:
        """Measure the best student's robustness beside the teacher's, write the curves, and return the summary."""
        measured = self.measurements.robustness(policy)
        self.reporter.table(robustness_table(measured), measured.lacking())
        self.run_dir.write_summary(to_plain(measured), "robustness.json")
        self.reporter.scalars(measured.scalars(), self.epoch + 1)
        return measured.summary()
