"""The measurements of a run: teacher, baselines and student, in which environment and on which seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.distributed import Ranks
from foundation.core.stopwatch import Stopwatch
from foundation.engines.base import EnvCapabilities, MakeEvalEnv, VecEnv, curriculum_kept
from foundation.engines.joint_terms import action_joints
from foundation.evaluation.divergence import DivergenceProbe
from foundation.evaluation.robustness import Robustness, measure_robustness
from foundation.evaluation.teacher_check import check_teacher
from foundation.policies.actors import Policy, PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.baselines import measure_baselines, ratio_interval, scores
from foundation.rollout.episodes import CollectionStats, EvaluationResult
from foundation.rollout.evaluate import evaluate, preserved_rng
from foundation.rollout.on_ranks import on_ranks, one_on_ranks
from foundation.rollout.stepper import Observer
from foundation.runs.context import ROBUSTNESS_SEED, ProcessContext
from foundation.runs.report import Reporter
from foundation.runs.run_teachers import RunTeachers

MAX_EVAL_ENVS = 4096
FEWEST_EACH = 16
"""Episodes of teacher, zero and random actions, where all share a rollout: so many tell a teacher from chance."""


class Measurements:
    """Measures teacher and student in an environment of their own, or in the only one that the process can hold.

    Args:
        env: The environment that the run collects in.
        make_eval_env: Builds a second one; None where there can be only one.
        teacher: The teacher.
        teachers: Knows which teacher each environment has, and selects what it reads.
        student_obs: Selects the student's observations.
        context: The run's configuration, seeds and console.
        label_bound: Actions and labels are clipped to it before they are compared [action units].
    """

    def __init__(
        self,
        env: VecEnv,
        make_eval_env: MakeEvalEnv | None,
        teacher: Policy,
        teachers: RunTeachers,
        student_obs: ObsSelector,
        context: ProcessContext[DistillationCfg, Reporter],
        label_bound: float | None,
    ):
        self.collecting_env = env
        self.make_eval_env = make_eval_env
        self.teacher = teacher
        self.teachers = teachers
        self.teacher_obs = teachers.selector
        self.student_obs = student_obs
        self.context = context
        self.label_bound = label_bound
        self.baselines: dict[str, dict[str, float]] = {}
        """Teacher, zero and random actions -> figures; empty until they are measured."""
        self._without_teacher: dict[str, EvaluationResult] = {}
        """Zero and random actions, while the teacher's own episodes are still to come."""
        self._baseline_episodes = 0
        self._eval_env: VecEnv | None = None

    @property
    def cfg(self) -> DistillationCfg:
        """The run's configuration."""
        return self.context.cfg

    @property
    def ranks(self) -> Ranks:
        """The processes that measure together, each its share of the episodes."""
        return self.context.ranks

    @property
    def has_own_env(self) -> bool:
        """Whether measuring leaves the collection undisturbed."""
        return self.make_eval_env is not None

    @property
    def num_episodes(self) -> int:
        """Episodes of an evaluation that this process runs."""
        return self.ranks.share_of(self.cfg.num_eval_episodes)

    def env(self, num_envs: int | None = None) -> VecEnv:
        """Return the evaluation environment, or the only one.

        Args:
            num_envs: Make one of about this size. None: the one of all evaluations, made when it is first asked for.
        """
        if self.make_eval_env is None:
            return self.collecting_env
        with preserved_rng(self.context.device):
            if num_envs is not None:
                return self.make_eval_env(self.teachers.round_envs(num_envs, MAX_EVAL_ENVS))
            if self._eval_env is None:
                num_envs = self.teachers.round_envs(self.num_episodes, MAX_EVAL_ENVS)
                self._eval_env = self.make_eval_env(num_envs)
            return self._eval_env

    def measure_baselines(self, stopwatch: Stopwatch, *, teacher_later: bool = False) -> None:
        """Measure the teacher beside zero and random actions, and what many teachers need before the first epoch.

        Args:
            stopwatch: Takes the time.
            teacher_later: Measure zero and random actions alone, whose episodes are short in most tasks; the teacher's
                come from the first epoch, by :meth:`take_teacher`. For one teacher that acts alone in it.
        """
        context = self.context
        teachers = self.teachers
        actor = PolicyActor(self.teacher, self.teacher_obs)
        with stopwatch.stage("baselines"), curriculum_kept(self.env()):
            self.ranks.together(lambda: teachers.fit_gate(self.env(), context.reporter, context.poll))
            teachers.share_gate(self.ranks)
            results = on_ranks(
                self.ranks,
                lambda: measure_baselines(
                    self.env(),
                    None if teacher_later else actor,
                    self._num_baseline_episodes(2 if teacher_later else 3),
                    context.eval_seed,
                    shared_rollout=not self.has_own_env,
                    poll=context.poll,
                    teacher_of=teachers.teacher_of,
                    num_teachers=teachers.num_assigned,
                ),
            )
        context.reporter.baselines({name: result.summary() for name, result in results.items()})
        if teacher_later:
            self._without_teacher = results
            context.reporter.line("The teacher is measured in the first epoch, in which it acts alone.")
            return
        teachers.measured(results["teacher"], context.reporter)
        self._baseline_episodes = len(results["teacher"].returns)
        self._check(results)
        with stopwatch.stage("baselines"), curriculum_kept(self.env()):
            actor = PolicyActor(self.teacher, self.teacher_obs)
            self.ranks.together(lambda: teachers.measure_offsets(self.env(), actor, context.reporter, context.poll))
            teachers.share_offsets(self.ranks)
        self._keep(results)

    @property
    def teacher_is_due(self) -> bool:
        """Whether the first epoch's episodes are to measure the teacher."""
        return bool(self._without_teacher)

    def take_teacher(self, collected: CollectionStats) -> None:
        """Take the first epoch's episodes, in which the teacher acted alone, as its measurement.

        Raises:
            UserError: If the teacher is no better than no policy.
        """
        results: dict[str, EvaluationResult] = {"teacher": collected, **self._without_teacher}
        self._without_teacher = {}
        self.context.reporter.teacher_measured(collected.summary(), len(collected.returns))
        self._check(results)
        self._keep(results)

    def newer_teacher(self) -> dict[str, float] | None:
        """Measure the teacher that has replaced another, on the student's seeds; None where that disturbs the run."""
        if not self.has_own_env:
            return None
        context = self.context
        actor = PolicyActor(self.teacher, self.teacher_obs)
        episodes = self.cfg.num_eval_episodes
        result = evaluate(self.env(), actor, episodes, context.eval_seed, poll=context.poll, role="teacher")
        self.baselines["teacher"] = result.summary()
        return self.baselines["teacher"]

    def _check(self, results: dict[str, EvaluationResult]) -> None:
        solved = EnvCapabilities.of(self.collecting_env).solved_return
        for warning in check_teacher(results, self.cfg.teacher, solved, action_joints(self.collecting_env)):
            self.context.reporter.warn(warning)

    def _keep(self, results: dict[str, EvaluationResult]) -> None:
        """Take the figures, last of all: a run that is stopped before measures them again."""
        self.baselines = {name: result.summary() for name, result in results.items()}

    def _num_baseline_episodes(self, policies: int) -> int:
        """Episodes of the baseline: with a single environment, one in each, but ``FEWEST_EACH`` of each policy.

        That is enough to check the teacher with. The baseline is the wait before the first collected step, and the
        figures that are quoted are measured at the end.
        """
        wanted = self.num_episodes
        if self.has_own_env:
            return wanted
        return min(wanted, max(self.collecting_env.num_envs, policies * FEWEST_EACH))

    def refine_teacher(self, collected: CollectionStats) -> None:
        """Take episodes of the teacher alone as its figure where they are more than the baseline had."""
        if len(collected.returns) > self._baseline_episodes:
            self.baselines["teacher"] = collected.summary()
            self.context.reporter.teacher_measured(self.baselines["teacher"], len(collected.returns))

    def student(self, policy: Policy) -> dict[str, float]:
        """Measure the student, and how far its actions are from the teacher's."""
        probe = None
        if self.teacher.state_size == 0:
            probe = DivergenceProbe(self.teacher, self.teacher_obs, policy, self.student_obs, self.label_bound)
        actor = PolicyActor(policy, self.student_obs)
        observers = [] if probe is None else [probe]
        with curriculum_kept(self.env()):
            result = self._evaluate(self.env(), actor, self.num_episodes, self.context.eval_seed, "policy", observers)
        return self.summarise(result) | (probe.summary(self.ranks) if probe else {})

    def _evaluate(
        self,
        env: VecEnv,
        actor: PolicyActor,
        num_episodes: int,
        seed: int,
        role: str,
        observers: Sequence[Observer] = (),
    ) -> EvaluationResult:
        """Measure an actor in every process; return the episodes of all. The arguments are those of ``evaluate``."""
        context = self.context
        teacher_of = self.teachers.teacher_of
        return one_on_ranks(
            self.ranks,
            lambda: evaluate(env, actor, num_episodes, seed, observers, context.poll, role, teacher_of),
        )

    def summarise(self, result: EvaluationResult) -> dict[str, float]:
        """Return the figures of the student's episodes, beside the teacher's; the same in every process."""
        self.teachers.evaluated(result)
        summary = result.summary()
        baselines = self.baselines
        summary |= scores(
            summary["mean_return"], baselines["teacher"]["mean_return"], baselines["random"]["mean_return"]
        )
        # They decide what is saved and when the run ends: the last digit must not depend on a process's machine.
        return self.ranks.from_first(lambda: summary)

    def final(self, policy: Policy) -> dict[str, Any]:
        """Measure the student and the teacher on fresh seeds, the same for both.

        Args:
            policy: The best student.

        Returns:
            Plain values for ``summary.json``.
        """
        cfg = self.cfg
        context = self.context
        teachers = self.teachers
        episodes = cfg.final_eval_episodes if self.has_own_env else cfg.num_eval_episodes
        context.reporter.last_measurement(episodes, cheap=self.has_own_env)
        episodes = self.ranks.share_of(episodes)
        env = self.env(episodes)
        actor = PolicyActor(policy, self.student_obs)
        measured = self._evaluate(env, actor, episodes, context.final_seed, "policy")
        teachers.evaluated(measured)
        # The ratio that is quoted rests on as many episodes of the teacher, from the same initial states.
        teacher_actor = PolicyActor(self.teacher, self.teacher_obs)
        judged = self._evaluate(env, teacher_actor, episodes, context.final_seed, "teacher")
        teachers.record("teacher", judged)
        student = measured.summary()
        teacher = judged.summary()
        ratio = scores(student["mean_return"], teacher["mean_return"], self.baselines["random"]["mean_return"])
        if "return_ratio" in ratio:
            ratio["return_ratio_interval_95"] = ratio_interval(measured.returns, judged.returns)
        declared = EnvCapabilities.of(self.collecting_env).metric_units
        return {
            "teacher": teacher | {"return_interval_95": judged.return_interval},
            "student": student | {"return_interval_95": measured.return_interval},
            "teacher_return": teacher["mean_return"],
            "best_student_return": student["mean_return"],
            **ratio,
            "success_rate": student.get("success_rate"),
            **{name: student.get(name) for name in declared},
            "final_eval_episodes": len(measured.returns),
            "baselines": self.baselines,
            **teachers.summary(),
        }

    def robustness(self, policy: Policy) -> Robustness:
        """Measure the student and the teacher while one quantity at a time leaves its nominal value.

        Args:
            policy: The best student.
        """
        context = self.context
        actors = {
            "teacher": PolicyActor(self.teacher, self.teacher_obs),
            "student": PolicyActor(policy, self.student_obs),
        }
        seed = self.cfg.seed + ROBUSTNESS_SEED
        episodes = self.cfg.num_eval_episodes
        return measure_robustness(self.env(), actors, (), episodes, seed, context.poll, context.reporter.perturbing)
