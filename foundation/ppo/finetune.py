"""The runner of fine-tuning: PPO on a distilled policy, or any other, with terms that keep it from forgetting."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

import foundation
from foundation.config.derived_cfg import write_derived
from foundation.config.finetune_cfg import FinetuneCfg
from foundation.config.plain import to_plain
from foundation.core.errors import UserError, reading
from foundation.engines.base import EnvCapabilities, MakeEvalEnv, VecEnv, env_state_entry
from foundation.engines.joint_terms import joint_columns
from foundation.learning.learner import LearningStats
from foundation.policies.actors import Actor, PolicyActor
from foundation.ppo.adapters import has_adapters, load_merged, merged_state_dict
from foundation.ppo.agent_checks import check_rollout
from foundation.ppo.finetune_setup import FinetuneSetup
from foundation.ppo.no_effect import without_effect
from foundation.ppo.ppo import Ppo, Transitions
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

log = logging.getLogger(__name__)

START = "start_student.pt"
"""The policy before the first iteration, with its initial standard deviation."""
OWN_TEACHER = "start"
"""Name of the teacher that is a frozen copy of that policy, where the user names none."""
RECENT_EPISODES = 100
"""Training episodes whose mean return stands in for an evaluation where no second environment can exist."""


@dataclass
class FinetuneState(SavedState):
    """State that a fine-tuning run resumes from, beside the policy and its optimiser."""

    key: ClassVar[str] = "finetune_state"
    epoch: int
    """Finished iterations."""
    env_steps: int
    """Transitions collected so far, over all environments."""
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
    adapted: dict[str, Any] | None = None
    """State_dict of a policy with adapters, whose checkpoints have the sums alone."""

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
    """Trains a policy by PPO: one read from a checkpoint, or a fresh one that teachers guide.

    Args:
        env: The environment to collect in.
        cfg: The run's configuration; ``num_envs`` is filled in.
        agent: What the task's agent config says.
        run_dir: Where checkpoints and the summary go.
        make_eval_env: Builds a second environment; None where a process can hold only one.
        make_old_env: Builds one of the old task that some environments keep running, to measure it too.
        writer: Where scalars are logged. None: nowhere.
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
        make_old_env: MakeEvalEnv | None = None,
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
        self._make_old_env = make_old_env
        self._old_envs: dict[int, VecEnv] = {}
        self.frozen_here: list[str] = []
        """Names of the teachers that :meth:`set_teacher` has made."""
        check_rollout(agent.algorithm, agent.num_steps_per_env, env.num_envs, env.num_actions, env.device)
        setup = FinetuneSetup(env, cfg, agent, self.context.device)
        self.student = setup.student
        self.student_obs = setup.student_obs
        self.fits_normalizer = setup.fits_normalizer
        self.critic = setup.critic
        self.critic_obs = setup.critic_obs
        self.warmup = setup.warmup
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
        self.retention = setup.make_retention(self.context.seed)
        if cfg.wants_teacher() and not self.retention.teachers:
            self.set_teacher(OWN_TEACHER)
            log.info("The policy that the run starts from is its own frozen teacher ('%s')", OWN_TEACHER)
        self.retention.check()

    # -- teachers of its own ------------------------------------------------------------------------------------

    def set_teacher(self, name: str) -> None:
        """Add a frozen copy of the current policy to the teachers, such as for the next stage.

        The copy is saved in the run's folder as ``<name>_student.pt``; a resumed run reads it from there.

        Args:
            name: The teacher's name; one of the same name is replaced.
        """
        self.retention.set_teacher(name, self.student, self.student_obs)
        self.frozen_here = [*(other for other in self.frozen_here if other != name), name]
        if name != OWN_TEACHER:  # START is saved when the run begins
            self.run_dir.save_checkpoint(f"{name}_student.pt", self.student_checkpoint(self.epoch - 1))

    # -- the beginning ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Show what is about to run; measure the policy before the first iteration, and save it."""
        student = self.student
        kind = student.cfg.name
        critic = "the teacher's own" if self.cfg.critic.init == "teacher" else "fresh"
        self.reporter.line(
            f"Policy: {kind}, obs={student.num_obs} ({', '.join(self.student_obs.groups)}), "
            f"actions={student.num_actions}, {sum(p.numel() for p in student.parameters())} parameters"
            f"{_trained_share(student)}"
        )
        self.reporter.line(
            f"Critic: {critic}, obs={self.critic.num_obs} ({', '.join(self.critic_obs.groups)}); it learns alone for "
            f"{self.warmup} iterations"
        )
        for teacher in self.retention.teachers:
            self.reporter.line(f"Teacher {teacher.name}: obs={', '.join(teacher.selector.groups)}")
        if unused := without_effect(self.cfg):
            log.warning("Settings without effect: %s.", "; ".join(unused))
        if self.warmup >= self.cfg.max_iterations:
            log.warning(
                "The policy never learns: in all %d iterations the critic learns alone (--critic_warmup_iterations %d)",
                self.cfg.max_iterations,
                self.warmup,
            )
        if self.epoch == 0 and not self.evaluations:
            self.run_dir.save_checkpoint(START, self.student_checkpoint(-1))
            if self._make_eval_env is not None:
                self._record(self._measure_tasks(PolicyActor(student, self.student_obs)), -1)
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
                self.student.update_normalizer(collected.rollout.obs)
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
            return None  # during the warm-up the actor does not change
        else:
            with self.stopwatch.stage("evaluation"):
                evaluation = self._measure_tasks(PolicyActor(self.student, self.student_obs))
        self._record(evaluation, epoch)
        return evaluation

    def _actor_learns(self, epoch: int) -> bool:
        return epoch >= self.warmup

    def _record(self, evaluation: dict[str, float], epoch: int) -> None:
        """Record an evaluation, and save the policy if it is the best so far."""
        value = evaluation["mean_return"]
        self.evaluations.append([float(epoch + 1), value])
        if value > self.best_return:
            self.best_return = value
            self.save_best(epoch, evaluation)

    def _measure_tasks(self, actor: Actor) -> dict[str, float]:
        """Measure the task, and the old one that some environments keep running (``old_task_return``)."""
        figures = self._measure(actor).summary()
        old = self._measure_old(actor, self.cfg.num_eval_episodes, self.context.eval_seed)
        return figures | old

    def _measure_old(self, actor: Actor, episodes: int, seed: int) -> dict[str, float]:
        """Measure the old task where there is one."""
        if self._make_old_env is None:
            return {}
        if episodes not in self._old_envs:
            self._old_envs[episodes] = self._make_old_env(episodes)
        result = evaluate(self._old_envs[episodes], actor, episodes, seed, poll=self.poll)
        return {"old_task_return": result.mean_return}

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
            if "old_task_return" in evaluation:
                said += f", old task {evaluation['old_task_return']:.2f}"
            parts.append(f"Evaluation - Mean return: {evaluation['mean_return']:.2f}{said}")
            scalars |= {f"evaluation/{name}": value for name, value in evaluation.items()}
        scalars |= {name if "/" in name else f"Episode/{name}": v for name, v in collected.stats.log.items()}
        self.reporter.scalars(scalars, epoch + 1)
        title = f"Iteration {epoch + 1}/{self.cfg.max_iterations}{phase}"
        self.reporter.show_epoch(epoch + 1, title, parts, evaluation is not None)

    # -- saving and resuming --------------------------------------------------------------------------------------

    def student_checkpoint(self, epoch: int, evaluation: dict[str, float] | None = None) -> dict[str, Any]:
        """Return what rebuilds the policy, in the format of a distilled student."""
        obs = self.student_obs
        columns = joint_columns(self.env, self.cfg.task or "", self.env.get_observations())
        joints = [] if columns is None else columns.names
        derived = write_derived(EnvCapabilities.of(self.env).derived_groups, obs.groups)
        return {
            "epoch": epoch + 1,
            "model_state_dict": merged_state_dict(self.student),
            "optimizer_state_dict": self.ppo.optimizer.state_dict(),
            "best_return": self.best_return if math.isfinite(self.best_return) else None,
            "best_epoch": self.best_epoch,
            "student": self.student.describe(),
            "obs_groups": list(obs.groups),
            "obs_slice": None if obs.obs_slice is None else list(obs.obs_slice),
            **({"derived_groups": derived} if derived else {}),
            **env_state_entry(self.env),
            **({"joint_order": joints} if joints else {}),
            "clip_actions": self.agent.clip_actions,
            "task": self.cfg.task,
            "evaluation": evaluation or {},
            "finetune": to_plain(self.cfg),
            "version": foundation.__version__,
        }

    def state(self) -> FinetuneState:
        """Return what a resumed run needs beside the policy and its optimiser."""
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
            adapted=_copied(self.student) if has_adapters(self.student) else None,
        )

    def resume(self, checkpoint: RunCheckpoint[FinetuneState] | None = None) -> str:
        """Resume from a checkpoint of this run (None: the newest), or begin if there is none yet.

        Returns:
            "" if the run resumes exactly, else why it does not.
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
        if has_adapters(self.student) != (state.adapted is not None):
            raise UserError("The run to resume has other adapters: leave finetune.adapters out, they are as they were.")
        self.student.load_state_dict(values["model_state_dict"] if state.adapted is None else state.adapted)
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
        self.restore_best(values)
        self.stopwatch.load_state_dict(state.stopwatch)
        torch.set_rng_state(state.torch_rng.cpu())
        if self.context.device.type == "cuda" and state.cuda_rng is not None:
            torch.cuda.set_rng_state(state.cuda_rng.cpu(), self.context.device)
        if self.collector.load_state_dict(state.collector):
            return ""
        return "this engine cannot restore its environments"

    def _restore_teacher(self, name: str) -> None:
        """Read a teacher that :meth:`set_teacher` saved."""
        saved = self.run_dir.load_checkpoint(f"{name}_student.pt", map_location=str(self.context.device))
        frozen = make_student(self.student.cfg, self.student.num_obs, self.student.num_actions)
        frozen.load_state_dict(saved["model_state_dict"])
        self.retention.set_teacher(name, frozen.to(self.context.device), self.student_obs)
        self.frozen_here = [*(other for other in self.frozen_here if other != name), name]

    # -- the end ------------------------------------------------------------------------------------------------

    def finish(self) -> dict[str, Any]:
        """Save the last policy, measure the first, best and last one on fresh seeds, and write the summary."""
        self.run_dir.save_checkpoint("final_student.pt", self.student_checkpoint(self.epoch - 1))
        summary: dict[str, Any] = {
            "task": self.cfg.task,
            "checkpoint": self.cfg.checkpoint,
            "best_iteration": self.best_epoch + 1,
            **_evaluation_history(self.evaluations),
            "iterations": self.epoch,
            "critic_warmup_iterations": self.warmup,
            "env_steps": self.env_steps,
        }
        if self._make_eval_env is not None:
            summary |= self._measure_at_the_end()
        summary |= {"wall_seconds": self.stopwatch.wall, "cpu_seconds": self.stopwatch.cpu}
        self.run_dir.write_summary(summary)
        self._show_end(summary)
        return summary

    def _measure_at_the_end(self) -> dict[str, Any]:
        """Measure the first, the best and the last policy on the same fresh episodes."""
        episodes = self.cfg.final_eval_episodes
        figures = {}
        last = _copied(self.student)
        with self.stopwatch.stage("final_evaluation"):
            for name, file in (("start", START), ("best", BEST), ("final", "final_student.pt")):
                saved = self.run_dir.load_checkpoint(file, map_location=str(self.env.device))
                load_merged(self.student, saved["model_state_dict"])
                actor = PolicyActor(self.student, self.student_obs)
                measured = self._measure(actor, episodes, self.context.final_seed)
                figures[name] = measured.summary() | {"return_interval_95": measured.return_interval}
                figures[name] |= self._measure_old(actor, episodes, self.context.final_seed)
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

    def _show_end(self, summary: dict[str, Any]) -> None:
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
"""Losses that the console shows, by their names in TensorBoard."""


def _copied(student: Student) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


def _trained_share(student: Student) -> str:
    """Say how many parameters are trained, where some are frozen."""
    trained = [parameter.numel() for parameter in student.parameters() if parameter.requires_grad]
    return "" if len(trained) == len(list(student.parameters())) else f", {sum(trained)} of them trained"


def _evaluation_history(evaluations: list[list[float]]) -> dict[str, Any]:
    """Return the summary's entries about the evaluations: all of them, and the lowest, alone and over the first."""
    if not evaluations:
        return {"evaluations": [], "lowest_return": None, "lowest_share_of_start": None}
    values = [value for _, value in evaluations]
    start = values[0]
    share = min(values) / start if evaluations[0][0] == 0.0 and start > 0.0 else None
    return {"evaluations": evaluations, "lowest_return": min(values), "lowest_share_of_start": share}
