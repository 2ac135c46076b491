"""Terms that keep a policy from forgetting during PPO: frozen teachers, replayed data, consolidated weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.finetune_cfg import FinetuneCfg, KlDirection
from foundation.core.errors import UserError
from foundation.learning.losses.divergence import gaussian_kl
from foundation.learning.schedules import value_at
from foundation.learning.terms import Term, make_terms
from foundation.policies.actors import Policy
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput
from foundation.ppo.consolidation import Consolidation
from foundation.ppo.ppo import Transitions, gaussian_of
from foundation.ppo.replay import Replay
from foundation.students.base import Student

TaskStates = Literal["all", "new", "old"]
"""States of all environments, of those that run the new task, or of those that keep running an old one."""
TARGET_FACTOR = 2.0
"""By which the coefficient of a KL that is held to a target changes."""
TARGET_MARGIN = 1.5
"""How far the KL may be from its target before it does."""


def policy_kl(policy: PolicyOutput, teacher: PolicyOutput, direction: KlDirection) -> torch.Tensor:
    """Return the divergence of two action distributions on the same states, in closed form [nats]. Shape: (...)."""
    if policy.pre_tanh is None:
        assert policy.std is not None and teacher.std is not None
        own = policy.mean, policy.std
        other = teacher.mean, teacher.std
    elif teacher.pre_tanh is None:
        raise UserError(
            "kl_coef compares distributions of one family: the policy's actions go through tanh and the teacher's do "
            "not; retain it by --alpha with loss=mse"
        )
    else:  # tanh is a bijection: it changes no divergence
        own = gaussian_of(policy)
        other = gaussian_of(teacher)
    return gaussian_kl(other, own) if direction == "teacher_policy" else gaussian_kl(own, other)


@dataclass
class FrozenTeacher:
    """A policy that does not learn, and its memory along the rollouts."""

    name: str
    policy: Policy
    selector: ObsSelector
    weight: float = 1.0
    """Factor on its terms."""
    counts_on: TaskStates = "all"
    """States on which its terms count."""
    std: float | None = None
    """Standard deviation that it is taken to have if it is deterministic [action units]."""
    state: torch.Tensor | None = None
    """Its memory before the next rollout. Shape: (num_envs, state_size)."""

    @classmethod
    def of_student(cls, name: str, student: Student, selector: ObsSelector, weight: float = 1.0) -> FrozenTeacher:
        """Freeze a copy of a student as it is now."""
        frozen = copy.deepcopy(student).requires_grad_(False).eval()
        return cls(name, frozen, selector, weight)

    def mean_of(self, values: torch.Tensor, old_task: torch.Tensor | None) -> torch.Tensor:
        """Return the mean of a term over the states on which the teacher counts, 0 where there are none.

        Args:
            values: Shape: (...).
            old_task: True where the old task runs. Shape: (...). None: nowhere.
        """
        if self.counts_on == "all" or (old_task is None and self.counts_on == "new"):
            return values.mean()
        if old_task is None:
            return values.new_zeros(())
        counts = old_task if self.counts_on == "old" else ~old_task
        return torch.where(counts, values, 0.0).sum() / counts.sum().clamp_min(1)

    @torch.no_grad()
    def label(self, obs: torch.Tensor, resets: torch.Tensor, ended: torch.Tensor) -> PolicyOutput:
        """Return its action distribution on a rollout.

        Args:
            obs: Shape: (num_steps, num_envs, num_obs).
            resets: True where a step begins an episode. Shape: (num_steps, num_envs).
            ended: True where the rollout's last step ended an episode. Shape: (num_envs,).
        """
        state = self.state
        if state is None and self.policy.state_size:
            state = self.policy.initial_state(obs.shape[1], obs.device)
        output, state = self.policy.sequence(obs, state, resets)
        self.state = self.policy.reset_state(state, ended)
        std = output.std
        if std is None and self.std is not None:
            std = torch.full_like(output.mean, self.std)
        return PolicyOutput(output.mean, None if std is None else std.contiguous(), pre_tanh=output.pre_tanh)


@dataclass
class _Sums:
    """Sums of an iteration's terms."""

    values: dict[str, torch.Tensor] = field(default_factory=dict)
    number: int = 0

    def add(self, values: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            before = self.values.get(name)
            self.values[name] = value.detach() if before is None else before + value.detach()
        self.number += 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / max(1, self.number) for name, total in self.values.items()}


class Retention:
    """The terms beside PPO's: ``(1 - alpha) * PPO + alpha * distillation + kl_coef * KL``, replay and EWC.

    Args:
        cfg: The run's configuration.
        teachers: The frozen teachers.
        num_iterations: Iterations in which the actor learns, the length of schedules that name none.
        label_bound: Teachers' mean actions are clipped to [-bound, bound] in the distillation term, as labels are in
            a distillation run; None: not at all.
        replay: Data of an old task.
        consolidation: Elastic weight consolidation.

    Raises:
        UserError: If a term needs what a teacher does not have.
    """

    def __init__(
        self,
        cfg: FinetuneCfg,
        teachers: Sequence[FrozenTeacher],
        num_iterations: int,
        label_bound: float | None = None,
        replay: Replay | None = None,
        consolidation: Consolidation | None = None,
    ):
        self.cfg = cfg
        self.teachers = list(teachers)
        self.num_iterations = num_iterations
        self.label_bound = label_bound
        self.replay = replay
        self.consolidation = consolidation
        self.losses = distillation_terms(cfg)
        self.alpha = 0.0
        self.kl_coef = 0.0
        self.replay_coef = 0.0
        self.kl_is_off = False
        self._adapted: float | None = None
        """The coefficient of a KL that is held to a target; None before the first change."""
        self._was_above = False
        self._sums = _Sums()
        self._iteration = 0

    def set_teacher(self, name: str, student: Student, selector: ObsSelector) -> FrozenTeacher:
        """Freeze a policy as it is now as a teacher, in the place of one of the same name.

        Args:
            name: The teacher's name.
            student: The policy, such as the one that is trained, at the end of a stage.
            selector: Its observations.
        """
        teacher = FrozenTeacher.of_student(name, student, selector, self.cfg.teacher.weights.get(name, 1.0))
        teacher.counts_on = states_of(name, self.cfg)
        self.teachers = [other for other in self.teachers if other.name != name] + [teacher]
        return teacher

    @property
    def is_on(self) -> bool:
        """Whether anything is added to PPO's loss in this iteration."""
        ewc = self.consolidation is not None
        return bool(self.alpha or self.kl_coef or self.replay_coef or ewc)

    @property
    def replaces_ppo(self) -> bool:
        """Whether PPO's own loss has no share in this iteration (see :class:`foundation.ppo.ppo.PolicyTerms`)."""
        return self.alpha == 1.0

    @property
    def needs_labels(self) -> bool:
        """Whether the teachers' outputs are read in this iteration."""
        return bool(self.alpha or self.kl_coef)

    def begin(self, iteration: int) -> None:
        """Set the coefficients of an iteration.

        Args:
            iteration: Counted from 0 among those in which the actor learns.
        """
        cfg = self.cfg
        self._iteration = iteration
        self.alpha = value_at(cfg.alpha, iteration, self.num_iterations)
        self.kl_coef = self._kl_coefficient(iteration)
        self.replay_coef = 0.0
        if self.replay is not None:
            self.replay_coef = value_at(cfg.replay.coef, iteration, self.num_iterations)
        self._sums = _Sums()

    def _kl_coefficient(self, iteration: int) -> float:
        off_after = self.cfg.kl.off_after
        if self.kl_is_off or (off_after is not None and iteration >= off_after):
            return 0.0
        if self._adapted is not None:
            return self._adapted
        start = value_at(self.cfg.kl_coef, iteration, self.num_iterations)
        return start if self.cfg.kl_decay is None else start * self.cfg.kl_decay**iteration

    def combine(self, policy_loss: torch.Tensor, batch: Transitions, output: PolicyOutput) -> torch.Tensor:
        """Return the whole loss of the policy (see :class:`foundation.ppo.ppo.PolicyTerms`)."""
        added: dict[str, torch.Tensor] = {}
        loss = policy_loss
        if self.alpha:
            added["distillation"] = self.distillation(batch, output)
            loss = (1.0 - self.alpha) * loss + self.alpha * added["distillation"]
        if self.kl_coef:
            added["teacher_kl"] = self.divergence(batch, output)
            loss = loss + self.kl_coef * added["teacher_kl"]
        if self.replay is not None and self.replay_coef:
            added["replay"] = self.replay.loss(self.distance)
            loss = loss + self.replay_coef * added["replay"]
        if self.consolidation is not None:
            added["ewc"] = self.consolidation.penalty()
            loss = loss + self.cfg.ewc.coef * added["ewc"]
        self._sums.add(added)
        return loss

    def distillation(self, batch: Transitions, output: PolicyOutput) -> torch.Tensor:
        """Return the distillation loss on a batch, averaged over the teachers by their weights."""
        total = torch.zeros((), device=output.mean.device)
        weights = 0.0
        for teacher in self.teachers:
            target = batch.targets[teacher.name]
            if self.label_bound is not None:
                target = target._replace(mean=target.mean.clamp(-self.label_bound, self.label_bound))
            total = total + teacher.weight * teacher.mean_of(self.distance(output, target), batch.old_task)
            weights += teacher.weight
        return total / max(weights, 1e-8)

    def distance(self, output: PolicyOutput, target: PolicyOutput) -> torch.Tensor:
        """Return the distillation losses, by their weights in this iteration, of each sample. Shape: (...)."""
        when = self._iteration, self.num_iterations
        parts = [
            term.weight(*when) * term.spec.function(output, target, term.params(self.cfg.loss, *when))
            for term in self.losses
        ]
        return torch.stack(parts).sum(dim=0)

    def divergence(self, batch: Transitions, output: PolicyOutput) -> torch.Tensor:
        """Return the mean KL on a batch, added up over the teachers with their weights [nats]."""
        parts = [
            teacher.weight * teacher.mean_of(self._kl_to(teacher, batch, output), batch.old_task)
            for teacher in self.teachers
        ]
        return torch.stack(parts).sum()

    def _kl_to(self, teacher: FrozenTeacher, batch: Transitions, output: PolicyOutput) -> torch.Tensor:
        return policy_kl(output, batch.targets[teacher.name], self.cfg.kl_direction)

    def end(self) -> dict[str, float]:
        """Adapt or end the KL term after an iteration's updates; return the means of the terms, and coefficients."""
        means = self._sums.means()
        used = self.kl_coef
        if "teacher_kl" in means:
            self._adapt(means["teacher_kl"])
        coefficients = {"alpha": self.alpha, "kl_coef": used, "replay_coef": self.replay_coef}
        return means | {name: value for name, value in coefficients.items() if value}

    def _adapt(self, kl: float) -> None:
        cfg = self.cfg.kl
        if cfg.off_below is not None:
            self.kl_is_off = self._was_above and kl < cfg.off_below
            self._was_above = self._was_above or kl >= cfg.off_below
        if cfg.target is not None:
            if kl > TARGET_MARGIN * cfg.target:
                self._adapted = self.kl_coef * TARGET_FACTOR
            elif kl < cfg.target / TARGET_MARGIN:
                self._adapted = self.kl_coef / TARGET_FACTOR

    def check(self) -> None:
        """Refuse terms that need a standard deviation of a teacher that has none.

        Raises:
            UserError: Naming the teacher and what to do.
        """
        by_kl = self.cfg.kl_coef != 0.0
        by_loss = self.cfg.alpha != 0.0 and any("std" in term.spec.teacher for term in self.losses)
        for teacher in self.teachers:
            if (by_kl or by_loss) and not _has_std(teacher):
                term = "kl_coef" if by_kl else f"loss={self.losses[0].name}"
                raise UserError(
                    f"{term} compares action distributions, and {teacher.name} is deterministic: set "
                    "finetune.teacher.std=0.1, the std that it is to have, or retain it by --alpha with loss=mse"
                )

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs."""
        return {
            "kl_is_off": self.kl_is_off,
            "adapted": self._adapted,
            "was_above": self._was_above,
            "memories": {teacher.name: teacher.state for teacher in self.teachers if teacher.state is not None},
            "replay": None if self.replay is None else self.replay.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.kl_is_off = bool(state["kl_is_off"])
        self._adapted = state["adapted"]
        self._was_above = bool(state["was_above"])
        for teacher in self.teachers:
            teacher.state = state["memories"].get(teacher.name)
        if self.replay is not None:
            self.replay.load_state_dict(state["replay"])


def states_of(teacher: str, cfg: FinetuneCfg) -> TaskStates:
    """Return the states on which the terms of a teacher count, by its name."""
    task = cfg.teacher.tasks.get(teacher)
    if task is None:
        return "all"
    return "new" if task == cfg.task else "old"


def _has_std(teacher: FrozenTeacher) -> bool:
    if teacher.std is not None:
        return True
    policy = teacher.policy
    if isinstance(policy, Student):
        return policy.log_std is not None
    return bool(getattr(policy, "has_std", False))


def distillation_terms(cfg: FinetuneCfg) -> list[Term]:
    """Return the terms of the distillation loss.

    Raises:
        UserError: If one of them trains anything but actions.
    """
    terms = make_terms(DistillationCfg(loss=cfg.loss))
    for term in terms:
        if not {*term.spec.student, *term.spec.teacher} <= {"mean", "std"}:
            raise UserError(
                f"loss={term.name} is not about the actions' distribution, which alone is distilled while PPO runs: "
                "use mse, huber, nll or kl"
            )
    return terms
