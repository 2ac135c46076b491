"""Fine-tuning by PPO: a distilled policy, or any other, goes on learning without forgetting."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import foundation
from foundation.config.finetune_cfg import FinetuneCfg
from foundation.config.plain import to_plain
from foundation.core.errors import UserError, reading
from foundation.engines.base import EnvCapabilities, MakeEvalEnv, VecEnv
from foundation.learning.learner import LearningStats
from foundation.policies.actors import Actor, PolicyActor
from foundation.policies.obs_groups import ObsSelector, teacher_selector
from foundation.ppo.actor import DEFAULT_STD, StartPolicy, fresh_actor, load_start, set_std, std_of_entropy
from foundation.ppo.consolidation import Consolidation, fisher_diagonal
from foundation.ppo.critic import ValueFunction
from foundation.ppo.ppo import Ppo, Transitions
from foundation.ppo.replay import Replay
from foundation.ppo.retention import FrozenTeacher, Retention, distillation_terms
from foundation.ppo.rollout import RolloutCollector
from foundation.ppo.settings import AgentSettings
from foundation.rollout.episodes import CollectionStats, EvaluationResult
from foundation.rollout.evaluate import evaluate
from foundation.runs.base import RunLoop
from foundation.runs.context import Interrupted, ProcessContext
from foundation.runs.metrics_writer import MetricsWriter
from foundation.runs.report import LineReporter
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import BEST, RunCheckpoint, SavedState, load_latest
from foundation.students import make_student
from foundation.students.base import Student
from foundation.teachers import TeacherPolicyWrapper

log = logging.getLogger(__name__)

START = "start_student.pt"
"""The policy as the run found it, with the deviation that it began with; the run's own first teacher."""
OWN_TEACHER = "start"
"""Name of that teacher."""
WARMUP = 10
"""Iterations in which a fresh critic learns alone, where an actor is there that it could spoil."""
RECENT_EPISODES = 100
"""Training episodes whose mean return is the measure where no second environment can exist."""


@dataclass
class FinetuneState(SavedState):
    """Everything that a fine-tuning run goes on from, but for the policy and its optimiser."""

    key: ClassVar[str] = "finetune_state"
    epoch: int
    """Iterations that have ended."""
    env_steps: int
    num_envs: int
    critic_state_dict: dict[str, Any]
    ppo_learning_rate: float
    collector: dict[str, Any]
    retention: dict[str, Any]
    evaluations: list[list[float]]
    """[iteration, mean return] of each evaluation."""
    recent_returns: list[float]
    stopwatch: dict[str, dict[str, float]]
    torch_rng: torch.Tensor
    cuda_rng: torch.Tensor | None = None

    def check(self, where: str) -> None:
        """Raise :class:`UserError` for numbers that no run has."""
        if self.epoch < 0 or self.env_steps < 0 or self.num_envs < 1:
            raise UserError(f"{where} is corrupt: iteration {self.epoch}, {self.env_steps} steps.")


@dataclass
class Collected:
    """Result of an iteration's collection."""

    rollout: Transitions
    stats: CollectionStats


class FinetuneRunner(RunLoop[FinetuneCfg, LineReporter, Collected]):
    """PPO on a policy that is there, or on a fresh one beside teachers.

    Args:
        env: The environment to collect in.
        cfg: The run's configuration; ``num_envs`` is filled in.
        agent: What the task's agent config says.
        run_dir: Where checkpoints and the summary go.
        make_eval_env: Builds a second environment; None where a process can hold only one.
        writer: Takes scalars; None writes none.
        interrupted: Returns the reason to stop, or a false value.

    Raises:
        UserError: If policy, teachers and environment do not fit each other.
    """

    unit: ClassVar[str] = "iteration"

    def __init__(
        self,
        env: VecEnv,
        cfg: FinetuneCfg,
        agent: AgentSettings,
        run_dir: RunDir,
        *,
        make_eval_env: MakeEvalEnv | None = None,
        writer: MetricsWriter | None = None,
        interrupted: Interrupted = lambda: None,
    ):
        reporter = LineReporter(cfg.max_iterations, writer, unit="Iteration")
        super().__init__(ProcessContext(cfg, run_dir, reporter, interrupted, torch.device(env.device)))
        self.env = env
        self.agent = agent
        self.env_steps = 0
        self.evaluations: list[list[float]] = []
        self._recent: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._make_eval_env = make_eval_env
        self._eval_envs: dict[int, VecEnv] = {}
        self.frozen_here: list[str] = []
        """Names of the teachers that :meth:`set_teacher` has made."""
        self._make_actor()
        self._refuse_discrete_task()
        teachers = self._load_teachers()
        self._choose_std(teachers)
        self._make_critic(teachers)
        self.ppo = Ppo(self.student, self.critic, agent.algorithm, agent.min_std)
        self.collector = RolloutCollector(
            env,
            self.ppo,
            self.student_obs,
            self.critic_obs,
            agent.num_steps_per_env,
            random_starts=cfg.random_episode_starts,
            seed=self.context.seed,
        )
        self._make_retention(teachers)

    # -- construction -------------------------------------------------------------------------------------------

    def _make_actor(self) -> None:
        """Read the policy to start from, or build one, and choose its observations."""
        cfg = self.cfg
        obs = self.env.get_observations()
        start: StartPolicy | None = None
        groups = cfg.actor.obs_groups
        columns = cfg.actor.obs_slice
        if cfg.checkpoint is not None:
            start = load_start(cfg.checkpoint)
            groups = groups or start.info.obs_groups
            columns = columns or start.info.obs_slice
        self.student_obs = ObsSelector(groups or self.agent.actor_groups, columns)
        wanted = None if start is None else start.student.num_obs
        num_obs = self.student_obs.check(obs, "policy", wanted, key="finetune.actor.obs_groups")
        actor = fresh_actor(cfg.student, num_obs, self.env.num_actions) if start is None else start.student
        if actor.num_actions != self.env.num_actions:
            raise UserError(
                f"'{cfg.checkpoint}' has {actor.num_actions} actions but the task '{cfg.task}' takes "
                f"{self.env.num_actions}: it was trained on another task"
            )
        self.student: Student = actor.to(self.context.device)
        self._has_std = start is not None and start.had_std
        self.fits_normalizer = start is None and cfg.student.obs_normalization
        """Whether the actor's normaliser follows the rollouts; one that came with trained weights is kept."""

    def _refuse_discrete_task(self) -> None:
        if EnvCapabilities.of(self.env).action_choices is not None:
            raise UserError(f"the task '{self.cfg.task}' takes discrete actions; fine-tuning needs continuous ones")

    def _load_teachers(self) -> dict[str, TeacherPolicyWrapper]:
        """Read the teachers that were named."""
        cfg = self.cfg.teacher
        device = self.context.device
        teachers = {}
        for name, path in self.cfg.teacher_checkpoints().items():
            teacher = TeacherPolicyWrapper(path, device, activation=cfg.activation)
            if teacher.num_choices is not None or teacher.num_actions != self.student.num_actions:
                raise UserError(
                    f"teacher '{path}' gives {teacher.num_actions} actions and the policy {self.student.num_actions}: "
                    "they must be of the same task's actions, continuous ones"
                )
            teachers[name] = teacher
        return teachers

    def _selector_of(self, name: str, teacher: TeacherPolicyWrapper) -> ObsSelector:
        """Choose a teacher's observations: as asked for, or those of its size that it, the task or the actor names."""
        cfg = self.cfg.teacher
        obs = self.env.get_observations()
        columns = cfg.obs_slice or teacher.obs_slice
        asked = cfg.groups.get(name) or cfg.obs_groups
        candidates = [teacher.obs_groups, self.agent.actor_groups, list(self.student_obs.groups)]
        named = [list(groups) for groups in candidates if groups]
        for groups in [] if asked else named:
            selector = teacher_selector(teacher, obs, groups, columns)
            try:
                selector.check(obs, "teacher", teacher.num_obs)
            except UserError:
                continue
            return selector
        selector = teacher_selector(teacher, obs, asked or named[0], columns)
        selector.check(obs, "teacher", teacher.num_obs, key=f"finetune.teacher.groups.{name}")
        return selector

    @torch.no_grad()
    def _choose_std(self, teachers: dict[str, TeacherPolicyWrapper]) -> None:
        """Set the deviation that the actions begin with."""
        cfg = self.cfg.actor
        student = self.student
        if cfg.init_std is not None:
            set_std(student, cfg.init_std)
            why = "--init_std"
        elif cfg.init_entropy is not None:
            set_std(student, std_of_entropy(cfg.init_entropy, student.num_actions))
            why = "finetune.actor.init_entropy"
        elif self._has_std:
            return
        elif with_std := next(((name, t) for name, t in teachers.items() if t.has_std), None):
            name, teacher = with_std
            selected = self._selector_of(name, teacher)(self.env.get_observations())
            std = teacher.step(selected)[0].std
            assert std is not None
            set_std(student, std.mean(dim=0).clamp_min(self.agent.min_std))
            why = f"that of {name} on the first states"
        else:
            set_std(student, max(DEFAULT_STD, self.agent.min_std))
            why = "the policy had none; --init_std sets it"
        obs = self.student_obs(self.env.get_observations())
        std = self.student.step(obs)[0].std
        assert std is not None
        log.info("Deviation of the actions at the start: %.3f (%s)", float(std.mean()), why)

    def _make_critic(self, teachers: dict[str, TeacherPolicyWrapper]) -> None:
        cfg = self.cfg.critic
        obs = self.env.get_observations()
        if cfg.init == "teacher":
            name, teacher = next(iter(teachers.items()))
            self.critic_obs = self._selector_of(name, teacher)
            critic = ValueFunction.of_teacher(teacher)
            self.critic_obs.check(obs, "critic", critic.num_obs, key="finetune.critic.obs_groups")
        else:
            groups = cfg.obs_groups or self.agent.critic_groups or list(self.student_obs.groups)
            self.critic_obs = ObsSelector(groups)
            num_obs = self.critic_obs.check(obs, "critic", key="finetune.critic.obs_groups")
            critic = ValueFunction.fresh(
                num_obs,
                self.agent.critic_dims if cfg.hidden_dims is None else cfg.hidden_dims,
                cfg.activation or self.agent.critic_activation,
                cfg.obs_normalization,
            )
        self.critic = critic.to(self.context.device)
        warmup = cfg.warmup_iterations
        if warmup is None:
            warmup = WARMUP if cfg.init == "fresh" and self.cfg.checkpoint is not None else 0
            warmup = min(warmup, self.cfg.max_iterations - 1)
        self.warmup = warmup

    def _make_retention(self, teachers: dict[str, TeacherPolicyWrapper]) -> None:
        cfg = self.cfg
        frozen = []
        for name, teacher in teachers.items() if cfg.wants_teacher() else ():
            weight = cfg.teacher.weights.get(name, 1.0)
            frozen.append(FrozenTeacher(name, teacher, self._selector_of(name, teacher), weight, cfg.teacher.std))
        replay = None
        if cfg.replay.dataset is not None:
            replay = Replay(cfg, self.student, distillation_terms(cfg), self.context.device)
        consolidation = None
        if cfg.ewc.coef > 0.0 and replay is not None:
            fisher = fisher_diagonal(self.student, replay, cfg.ewc.samples, self.context.seed)
            consolidation = Consolidation(self.student, fisher)
        actor_iterations = max(1, cfg.max_iterations - self.warmup)
        bound = self.agent.clip_actions
        self.retention = Retention(cfg, frozen, actor_iterations, bound, replay, consolidation)
        if cfg.wants_teacher() and not frozen:
            self.set_teacher(OWN_TEACHER)
            log.info("The policy that the run starts from is its own frozen teacher ('%s')", OWN_TEACHER)
        self.retention.check()

    def set_teacher(self, name: str) -> None:
        """Freeze the policy as it is now as a teacher of what follows, such as the next stage.

        It is written to the run's folder as ``<name>_student.pt``, from where a run that is resumed reads it.

        Args:
            name: The teacher's name; one of the same name is replaced.
        """
        self.retention.set_teacher(name, self.student, self.student_obs)
        self.frozen_here = [*(other for other in self.frozen_here if other != name), name]
        if name != OWN_TEACHER:  # the start is written when the run begins
            self.run_dir.save_checkpoint(f"{name}_student.pt", self.student_checkpoint(self.epoch - 1))

    # -- the beginning ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Show what is about to run; measure and keep the policy as it is at the start."""
        student = self.student
        kind = student.cfg.name
        critic = "the teacher's own" if self.cfg.critic.init == "teacher" else "fresh"
        self.reporter.line(
            f"Policy: {kind}, obs={student.num_obs} ({', '.join(self.student_obs.groups)}), "
            f"actions={student.num_actions}, {sum(p.numel() for p in student.parameters())} parameters"
        )
        self.reporter.line(
            f"Critic: {critic}, obs={self.critic.num_obs} ({', '.join(self.critic_obs.groups)}); it learns alone for "
            f"{self.warmup} iterations"
        )
        for teacher in self.retention.teachers:
            self.reporter.line(f"Teacher {teacher.name}: obs={', '.join(teacher.selector.groups)}")
        if self.epoch == 0 and not self.evaluations:
            self.run_dir.save_checkpoint(START, self.student_checkpoint(-1))
            if self._make_eval_env is not None:
                self._judge(self._measure(PolicyActor(student, self.student_obs)).summary(), -1)
                self.reporter.line(f"At the start - Mean return: {self.best_return:.2f}")
            self.save_latest()

    # -- an iteration -------------------------------------------------------------------------------------------

    def collect(self, epoch: int) -> Collected:
        """Roll the policy out."""
        if self._actor_learns(epoch):
            self.retention.begin(epoch - self.warmup)
        labelled = self.retention.teachers if self._actor_learns(epoch) and self.retention.needs_labels else []
        with self.stopwatch.stage("collection"):
            rollout, stats = self.collector.collect(labelled, self.poll)
        self.env_steps += rollout.log_probs.numel()
        self._recent.extend(stats.returns.tolist())
        return Collected(rollout, stats)

    def learn(self, epoch: int, collected: Collected) -> LearningStats:
        """Update the critic and, after its warm-up, the actor."""
        train_actor = self._actor_learns(epoch)
        terms = self.retention if train_actor and self.retention.is_on else None
        algorithm = self.ppo.cfg
        with self.stopwatch.stage("learning"):
            critic_rate = None if train_actor else self.cfg.critic.warmup_learning_rate
            losses = self.ppo.update(collected.rollout, terms, critic_rate=critic_rate, poll=self.poll)
            self.critic.fit_normalizer(collected.rollout.critic_obs)
            if self.fits_normalizer:
                self.student.normalizer.update(collected.rollout.obs)
        if train_actor:
            losses |= self.retention.end()
            if self.retention.replay is not None:
                self.retention.replay.end_iteration()
        updates = algorithm.num_learning_epochs * algorithm.num_mini_batches
        return LearningStats(losses["value"], updates, self.ppo.learning_rate, losses)

    def evaluate(self, epoch: int, collected: Collected) -> dict[str, float] | None:
        """Measure the deterministic policy where that is due."""
        last = epoch + 1 == self.cfg.max_iterations
        if not last and (epoch + 1) % self.cfg.eval_interval:
            return None
        if self._make_eval_env is None:
            if not self._recent:
                return None
            evaluation = {"mean_return": sum(self._recent) / len(self._recent)}
        elif not self._actor_learns(epoch) and not last:
            return None  # the actor is what it was at the start
        else:
            with self.stopwatch.stage("evaluation"):
                evaluation = self._measure(PolicyActor(self.student, self.student_obs)).summary()
        self._judge(evaluation, epoch)
        return evaluation

    def _actor_learns(self, epoch: int) -> bool:
        return epoch >= self.warmup

    def _judge(self, evaluation: dict[str, float], epoch: int) -> None:
        """Note an evaluation, and keep the policy if no other was better."""
        value = evaluation["mean_return"]
        self.evaluations.append([float(epoch + 1), value])
        if value > self.best_return:
            self.best_return = value
            self.save_best(epoch, evaluation)

    def _measure(self, actor: Actor, episodes: int | None = None, seed: int | None = None) -> EvaluationResult:
        """Run deterministic episodes in an environment of their own."""
        assert self._make_eval_env is not None
        number = episodes or self.cfg.num_eval_episodes
        if number not in self._eval_envs:
            self._eval_envs[number] = self._make_eval_env(number)
        env = self._eval_envs[number]
        return evaluate(env, actor, number, self.context.eval_seed if seed is None else seed, poll=self.poll)

    def log(
        self, epoch: int, collected: Collected, learned: LearningStats, evaluation: dict[str, float] | None
    ) -> None:
        """Show and log the iteration."""
        terms = learned.terms
        returns = collected.stats.unbiased(collected.stats.returns)
        seconds = self.stopwatch.lap()
        steps = collected.rollout.log_probs.numel()
        phase = "" if self._actor_learns(epoch) else " (critic alone)"
        parts: list[str] = []
        scalars = {f"training/{name}": value for name, value in terms.items()}
        scalars["training/learning_rate"] = learned.learning_rate
        std = float(collected.rollout.std.mean())
        scalars["training/std"] = std
        scalars |= {f"performance/{stage}_seconds": value for stage, value in seconds.items()}
        scalars["performance/env_steps_per_second"] = steps / max(1e-9, seconds.get("collection", 0.0))
        if len(returns):
            mean = float(returns.mean())
            scalars["rollout/mean_return"] = mean
            scalars["rollout/mean_length"] = float(collected.stats.unbiased(collected.stats.lengths).mean())
            parts.append(f"Rollout - Mean return: {mean:.2f}")
        shown = [f"{name} {terms[name]:.4g}" for name in _SHOWN if name in terms]
        parts.append(f"Training - {', '.join([*shown, f'std {std:.3f}'])}")
        if evaluation is not None:
            success = evaluation.get("success_rate")
            said = "" if success is None else f", success {100 * success:.1f} %"
            parts.append(f"Evaluation - Mean return: {evaluation['mean_return']:.2f}{said}")
            scalars |= {f"evaluation/{name}": value for name, value in evaluation.items()}
        scalars |= {name if "/" in name else f"Episode/{name}": v for name, v in collected.stats.log.items()}
        self.reporter.scalars(scalars, epoch + 1)
        title = f"Iteration {epoch + 1}/{self.cfg.max_iterations}{phase}"
        self.reporter.show_epoch(epoch + 1, title, parts, evaluation is not None)

    # -- saving and going on --------------------------------------------------------------------------------------

    def student_checkpoint(self, epoch: int, evaluation: dict[str, float] | None = None) -> dict[str, Any]:
        """Return what rebuilds the policy, in the format of a distilled student."""
        obs = self.student_obs
        return {
            "epoch": epoch + 1,
            "model_state_dict": {name: tensor.detach().clone() for name, tensor in self.student.state_dict().items()},
            "optimizer_state_dict": self.ppo.optimizer.state_dict(),
            "best_return": self.best_return if math.isfinite(self.best_return) else None,
            "best_epoch": self.best_epoch,
            "student": self.student.describe(),
            "obs_groups": list(obs.groups),
            "obs_slice": None if obs.obs_slice is None else list(obs.obs_slice),
            "clip_actions": self.agent.clip_actions,
            "task": self.cfg.task,
            "evaluation": evaluation or {},
            "finetune": to_plain(self.cfg),
            "version": foundation.__version__,
        }

    def state(self) -> FinetuneState:
        """Return everything but the policy and its optimiser."""
        device = self.context.device
        return FinetuneState(
            epoch=self.epoch,
            env_steps=self.env_steps,
            num_envs=self.env.num_envs,
            critic_state_dict={name: value.detach().clone() for name, value in self.critic.state_dict().items()},
            ppo_learning_rate=self.ppo.learning_rate,
            collector=self.collector.state_dict(),
            retention=self.retention.state_dict() | {"frozen_here": list(self.frozen_here)},
            evaluations=[list(entry) for entry in self.evaluations],
            recent_returns=list(self._recent),
            stopwatch=self.stopwatch.state_dict(),
            torch_rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        )

    def resume(self, checkpoint: RunCheckpoint[FinetuneState] | None = None) -> str:
        """Go on from a checkpoint of this run (None: the newest), or begin if there is none yet.

        Returns:
            "" if the run goes on exactly, else why not.
        """
        checkpoint = load_latest(self.run_dir, FinetuneState) if checkpoint is None else checkpoint
        if checkpoint is None:
            return ""
        if checkpoint.state is None:
            raise UserError(
                "This checkpoint holds a policy but no state to resume from: leave --resume out to start a new run "
                "from it, or name a checkpoint_epoch_*.pt"
            )
        with reading(f"the state to resume from in {self.run_dir.path}"):
            return self._restore(checkpoint.values, checkpoint.state)

    def _restore(self, values: dict[str, Any], state: FinetuneState) -> str:
        if state.num_envs != self.env.num_envs:
            raise UserError(f"The run had --num_envs {state.num_envs}, now {self.env.num_envs}: resume with the same.")
        if not self.student.is_described_by(values["student"]):
            raise UserError("The policy's architecture differs from that of the run to resume: give the same settings.")
        for name in state.retention.get("frozen_here", []):
            self._restore_teacher(name)
        self.student.load_state_dict(values["model_state_dict"])
        self.ppo.load_state_dict(
            {
                "critic_state_dict": state.critic_state_dict,
                "optimizer_state_dict": values["optimizer_state_dict"],
                "ppo_learning_rate": state.ppo_learning_rate,
            }
        )
        self.retention.load_state_dict(state.retention)
        self.epoch = state.epoch
        self.env_steps = state.env_steps
        self.evaluations = state.evaluations
        self._recent.extend(state.recent_returns)
        self._restore_best(values)
        self.stopwatch.load_state_dict(state.stopwatch)
        torch.set_rng_state(state.torch_rng.cpu())
        if self.context.device.type == "cuda" and state.cuda_rng is not None:
            torch.cuda.set_rng_state(state.cuda_rng.cpu(), self.context.device)
        if self.collector.load_state_dict(state.collector):
            return ""
        return "this engine cannot restore its environments"

    def _restore_teacher(self, name: str) -> None:
        """Read a teacher that this run froze."""
        saved = self.run_dir.load_checkpoint(f"{name}_student.pt", map_location=str(self.context.device))
        frozen = make_student(self.student.cfg, self.student.num_obs, self.student.num_actions)
        frozen.load_state_dict(saved["model_state_dict"])
        self.retention.set_teacher(name, frozen.to(self.context.device), self.student_obs)
        self.frozen_here = [*(other for other in self.frozen_here if other != name), name]

    def _restore_best(self, values: dict[str, Any]) -> None:
        """Take the best return so far: the best policy may be newer than the checkpoint, and is not to be lost."""
        known = [values]
        if (self.run_dir.path / BEST).exists():
            known.append(self.run_dir.load_checkpoint(BEST))
        known = [entry for entry in known if entry["best_return"] is not None]
        if known:
            best = max(known, key=lambda entry: entry["best_return"])
            self.best_return = best["best_return"]
            self.best_epoch = best["best_epoch"]

    # -- the end ------------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Save the last policy, measure the best one beside that of the start on fresh seeds, write the summary."""
        self.run_dir.save_checkpoint("final_student.pt", self.student_checkpoint(self.epoch - 1))
        summary: dict[str, Any] = {
            "task": self.cfg.task,
            "checkpoint": self.cfg.checkpoint,
            "best_iteration": self.best_epoch + 1,
            **_course(self.evaluations),
            "iterations": self.epoch,
            "critic_warmup_iterations": self.warmup,
            "env_steps": self.env_steps,
        }
        if self._make_eval_env is not None:
            summary |= self._measure_at_the_end()
        summary |= {"wall_seconds": self.stopwatch.wall, "cpu_seconds": self.stopwatch.cpu}
        self.run_dir.write_summary(summary)
        self._say_end(summary)
        return summary

    def _measure_at_the_end(self) -> dict[str, Any]:
        """Measure the policies of the start, of the end and the best one on the same fresh episodes."""
        episodes = self.cfg.final_eval_episodes
        figures = {}
        last = {name: value.clone() for name, value in self.student.state_dict().items()}
        with self.stopwatch.stage("final_evaluation"):
            for name, file in (("start", START), ("best", BEST), ("final", "final_student.pt")):
                saved = self.run_dir.load_checkpoint(file, map_location=str(self.env.device))
                self.student.load_state_dict(saved["model_state_dict"])
                actor = PolicyActor(self.student, self.student_obs)
                measured = self._measure(actor, episodes, self.context.final_seed)
                figures[name] = measured.summary() | {"return_interval_95": measured.return_interval}
        self.student.load_state_dict(last)
        best = figures["best"]
        return {
            "start_return": figures["start"]["mean_return"],
            "best_student_return": best["mean_return"],
            "final_student_return": figures["final"]["mean_return"],
            "success_rate": best.get("success_rate"),
            "final_eval_episodes": episodes,
            **figures,
        }

    def _say_end(self, summary: dict[str, Any]) -> None:
        path = self.run_dir.path / BEST
        if "start_return" not in summary:
            self.reporter.line(f"Best policy (iteration {summary['best_iteration']}): {path}")
            return
        best = summary["best"]
        success = "" if summary["success_rate"] is None else f", success {100 * summary['success_rate']:.2f} %"
        self.reporter.line(
            f"Best policy (iteration {summary['best_iteration']}), {summary['final_eval_episodes']} fresh episodes: "
            f"return {best['mean_return']:.2f} ± {best['return_interval_95']:.2f} (95 %){success}; at the start "
            f"{summary['start_return']:.2f}, at the end {summary['final_student_return']:.2f}"
        )
        if summary["lowest_share_of_start"] is not None:
            self.reporter.line(
                f"Lowest evaluation on the way: {summary['lowest_return']:.2f}, "
                f"{100 * summary['lowest_share_of_start']:.1f} % of the start's"
            )
        self.reporter.line(str(path))


_SHOWN = ("surrogate", "value", "kl", "distillation", "teacher_kl", "replay", "ewc")
"""Losses on the console."""


def _course(evaluations: list[list[float]]) -> dict[str, Any]:
    """Return the evaluations, and how low they fell."""
    if not evaluations:
        return {"evaluations": [], "lowest_return": None, "lowest_share_of_start": None}
    values = [value for _, value in evaluations]
    start = values[0]
    share = min(values) / start if evaluations[0][0] == 0.0 and start > 0.0 else None
    return {"evaluations": evaluations, "lowest_return": min(values), "lowest_share_of_start": share}
