"""The parts of a fine-tuning run: actor, teachers, critic and retention terms, checked against each other."""

from __future__ import annotations

import logging

import torch

from foundation.config.finetune_cfg import FinetuneCfg
from foundation.core.errors import UserError
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.engines.joint_terms import action_joints
from foundation.engines.side_by_side import SideBySide
from foundation.policies.info import PolicyInfo
from foundation.policies.obs_groups import ObsSelector, teacher_selector
from foundation.ppo.actor import DEFAULT_STD, StartPolicy, fresh_actor, load_start, set_std, std_of_entropy
from foundation.ppo.adapters import add_adapters
from foundation.ppo.agent_checks import INPUT_SIZE
from foundation.ppo.consolidation import Consolidation, fisher_diagonal
from foundation.ppo.critic import ValueFunction
from foundation.ppo.replay import Replay
from foundation.ppo.retention import FrozenTeacher, Retention, distillation_terms, states_of
from foundation.ppo.settings import AgentSettings
from foundation.ppo.task_parts import give_part, running_column
from foundation.rollout.joints import fit_joints
from foundation.students.base import Student
from foundation.students.observations import student_selector
from foundation.teachers import TeacherPolicyWrapper

log = logging.getLogger(__name__)

WARMUP = 10
"""Iterations in which a fresh critic learns alone, where the actor comes with trained weights: the advantages that an
untrained critic computes would ruin them."""


class FinetuneSetup:
    """Makes what a fine-tuning run begins with, from its config, the task's agent config and the environment.

    Args:
        env: The environment to collect in.
        cfg: The run's configuration.
        agent: What the task's agent config says.
        device: Where policies run.

    Raises:
        UserError: If policy, teachers and environment do not fit each other.
    """

    student: Student
    """The actor."""
    student_obs: ObsSelector
    fits_normalizer: bool
    """Whether the actor's normaliser follows the rollouts; one that came with trained weights is kept."""
    critic: ValueFunction
    critic_obs: ObsSelector
    warmup: int
    """Iterations in which the critic learns alone."""

    def __init__(self, env: VecEnv, cfg: FinetuneCfg, agent: AgentSettings, device: torch.device):
        self.env = env
        self.cfg = cfg
        self.agent = agent
        self.device = device
        self._make_actor()
        self._refuse_discrete_task()
        self.teachers = self._load_teachers()
        self._choose_std()
        self._make_critic()

    def _make_actor(self) -> None:
        """Read the policy to start from, or build one, and choose its observation groups."""
        cfg = self.cfg
        obs = self.env.get_observations()
        start: StartPolicy | None = None
        groups = cfg.actor.obs_groups
        columns = cfg.actor.obs_slice
        if cfg.checkpoint is not None:
            start = load_start(cfg.checkpoint)
            groups = groups or start.info.obs_groups
            columns = columns or start.info.obs_slice
        groups = list(groups or self.agent.actor_groups)
        if start is None:
            cfg.student.obs_groups = groups
            cfg.student.obs_slice = columns
            self.student_obs = student_selector(cfg.student, obs)
        else:
            self.student_obs = ObsSelector(groups, columns, start.info.image_groups)
        wanted = None if start is None else start.student.num_obs
        num_obs = self.student_obs.check(obs, "policy", wanted, key="finetune.actor.obs_groups")
        actor = fresh_actor(cfg.student, num_obs, self.env.num_actions) if start is None else start.student
        if actor.num_actions != self.env.num_actions:
            raise UserError(
                f"'{cfg.checkpoint}' has {actor.num_actions} actions but the task '{cfg.task}' takes "
                f"{self.env.num_actions}: it was trained on another task"
            )
        if start is not None:
            self._refuse_other_joints(start.info)
        self.student = give_part(actor.to(self.device), self._running_task, cfg)
        if cfg.adapters.rank is not None:
            add_adapters(self.student, cfg.adapters, cfg.seed)
        self._has_std = start is not None and start.had_std
        self.fits_normalizer = start is None and cfg.student.obs_normalization

    def _running_task(self) -> int:
        """Return the column of the actor's observations that is 1 while this task runs."""
        env = self.env.env if isinstance(self.env, SideBySide) else self.env
        return running_column(env, self.cfg.task or "", self.student_obs, self.cfg.task_columns)

    def _refuse_other_joints(self, info: PolicyInfo) -> None:
        """Refuse a policy whose weights are in another order of joints: it is trained on, and not only run."""
        here = [name for name in action_joints(self.env) if name]
        theirs = [name for name in info.joint_order or () if name in here]
        if info.joint_order and here and theirs != here:
            raise UserError(
                f"'{info.path}' has its joints in another order than the task '{self.cfg.task}': distil it into a "
                "student of this task first (distillation.py --teacher_checkpoint), and fine-tune that"
            )

    def _refuse_discrete_task(self) -> None:
        if EnvCapabilities.of(self.env).action_choices is not None:
            raise UserError(f"the task '{self.cfg.task}' takes discrete actions; fine-tuning needs continuous ones")

    def _load_teachers(self) -> dict[str, TeacherPolicyWrapper]:
        """Read the teachers that were named."""
        cfg = self.cfg.teacher
        device = self.device
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
        """Return the observation groups that a teacher reads.

        Those that the user named; otherwise the first of the checkpoint's, the task's actor's and this run's actor's
        that have the teacher's number of observations.
        """
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
            return self._with_joints(name, teacher, selector)
        selector = teacher_selector(teacher, obs, asked or named[0], columns)
        selector.check(obs, "teacher", teacher.num_obs, key=f"finetune.teacher.groups.{name}")
        return self._with_joints(name, teacher, selector)

    def _with_joints(self, name: str, teacher: TeacherPolicyWrapper, selector: ObsSelector) -> ObsSelector:
        """Return the selector, once the teacher's joints are in this environment's order."""
        known = teacher.joints is not None
        for line in fit_joints(teacher, self.env, self.cfg.task or "", selector.groups, selector.obs_slice):
            if not known:
                log.info("teacher '%s': %s", name, line)
        return selector

    @torch.no_grad()
    def _choose_std(self) -> None:
        """Set the initial standard deviation of the actions.

        In order of precedence: the user's, the checkpoint's own, that of the first teacher that has one, the default.
        """
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
        elif with_std := next(((name, t) for name, t in self.teachers.items() if t.has_std), None):
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
        log.info("Standard deviation of the actions at the start: %.3f (%s)", float(std.mean()), why)

    def _make_critic(self) -> None:
        """Build a value function, or copy the first teacher's, and choose its observations and its warm-up."""
        cfg = self.cfg.critic
        obs = self.env.get_observations()
        if cfg.init == "teacher":
            name, teacher = next(iter(self.teachers.items()))
            self.critic_obs = self._selector_of(name, teacher)
            critic = ValueFunction.of_teacher(teacher)
            self.critic_obs.check(obs, "critic", critic.num_obs, key="finetune.critic.obs_groups")
        else:
            groups = cfg.obs_groups or self.agent.critic_groups or list(self.student_obs.groups)
            self.critic_obs = ObsSelector(groups)
            num_obs = self.critic_obs.check(obs, "critic", key="finetune.critic.obs_groups")
            dims = self.agent.critic_dims if cfg.hidden_dims is None else cfg.hidden_dims
            critic = ValueFunction.fresh(
                num_obs,
                [num_obs if size == INPUT_SIZE else size for size in dims],
                cfg.activation or self.agent.critic_activation,
                cfg.obs_normalization,
                cfg.memory,
                cfg.hidden_size,
            )
        self.critic = critic.to(self.device)
        warmup = cfg.warmup_iterations
        if warmup is None:
            warmup = WARMUP if cfg.init == "fresh" and self.cfg.checkpoint is not None else 0
            warmup = min(warmup, self.cfg.max_iterations - 1)
        self.warmup = warmup

    def make_retention(self, seed: int) -> Retention:
        """Build the terms that keep the actor from forgetting.

        Args:
            seed: Seed of the transitions that the Fisher information is estimated on.
        """
        cfg = self.cfg
        frozen = []
        for name, teacher in self.teachers.items() if cfg.wants_teacher() else ():
            weight = cfg.teacher.weights.get(name, 1.0)
            selector = self._selector_of(name, teacher)
            frozen.append(FrozenTeacher(name, teacher, selector, weight, states_of(name, cfg), cfg.teacher.std))
        replay = None
        if cfg.replay_datasets():
            replay = Replay(cfg, self.student, distillation_terms(cfg), self.device)
        consolidation = None
        if cfg.ewc.coef > 0.0 and replay is not None:
            fisher = fisher_diagonal(self.student, replay, cfg.ewc.samples, seed)
            consolidation = Consolidation(self.student, fisher)
        # Schedules of the terms run over the iterations in which the actor learns, not over the critic's warm-up.
        actor_iterations = max(1, cfg.max_iterations - self.warmup)
        return Retention(cfg, frozen, actor_iterations, self.agent.clip_actions, replay, consolidation)
