"""Mixture of teacher and student that acts during a collection, with exploration noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from foundation.config.distillation_cfg import CollectionCfg
from foundation.core.errors import UserError
from foundation.policies.actors import Policy
from foundation.policies.choices import draw_choices, random_choices
from foundation.policies.distribution import sample_output
from foundation.policies.output import PolicyOutput


class PolicyMixture:
    """Draw which policy acts in each environment, and add noise to its actions. Labels never carry noise.

    Args:
        teacher: Samples actions by its own ``sample``, if it has one.
        cfg: Noise, and whether the acting policy is drawn per episode or per step.
        num_envs: Number of environments.
        num_actions: Size of an action.
        seed: Seed of everything drawn here.
        device: Device of the random numbers.
        teacher_deterministic: Whether the acting teacher returns its mean.
        choices: Choices of each of the student's discrete actions; empty: there is one at most.
    """

    def __init__(
        self,
        teacher: Policy,
        cfg: CollectionCfg,
        num_envs: int,
        num_actions: int,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        teacher_deterministic: bool = True,
        choices: Sequence[int] = (),
    ):
        self.teacher = teacher
        self.cfg = cfg
        self.teacher_deterministic = teacher_deterministic
        self.choices = tuple(choices)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.everywhere = torch.ones(num_envs, dtype=torch.bool, device=device)
        self.teacher_acts = self.everywhere.clone()
        self.error_moment = torch.zeros(num_actions, num_actions, device=device)
        """Second moment of the student's action error, fitted by :meth:`fit_noise`. Shape: (num_actions,) * 2."""
        self._noise_root = torch.zeros_like(self.error_moment)

    @property
    def is_plain(self) -> bool:
        """Whether the student, where it acts alone, takes its mean action, and nothing is added to it."""
        cfg = self.cfg
        return cfg.student_deterministic and cfg.noise_std == 0.0 and cfg.epsilon == 0.0 and not self.choices

    def all_by(self, teacher: bool) -> None:
        """Let the teacher act in every environment, or the student in every one."""
        self.teacher_acts.fill_(teacher)

    def begin_episodes(self, where: torch.Tensor, beta: float) -> None:
        """Draw the acting policy of the episodes that begin ``where``, bool of shape (num_envs,)."""
        if beta in (0.0, 1.0):
            self.all_by(beta == 1.0)
        elif self.cfg.beta_per == "episode":
            self._redraw(where, beta)

    def _redraw(self, where: torch.Tensor, beta: float) -> None:
        uniform = torch.rand(where.shape, generator=self.generator, device=where.device)
        self.teacher_acts = torch.where(where, uniform < beta, self.teacher_acts)

    def actions(self, label: PolicyOutput | None, student: PolicyOutput | None, beta: float) -> torch.Tensor:
        """Return the actions to execute. Shape: (num_envs, num_actions).

        Args:
            label: The teacher's outputs. None: it acts in no environment (``beta`` 0).
            student: The student's outputs. None: it acts in no environment (``beta`` 1).
            beta: Probability that the teacher acts.
        """
        if 0.0 < beta < 1.0 and self.cfg.beta_per == "step":
            self._redraw(self.everywhere, beta)
        parts: list[torch.Tensor] = []
        if label is not None and beta > 0.0:
            parts.append(self._teacher_actions(label))
        if student is not None and beta < 1.0:
            parts.append(self._student_actions(student))
        actions = parts[0] if len(parts) == 1 else torch.where(self.teacher_acts.unsqueeze(-1), *parts)
        logits = next((out.logits for out in (label, student) if out is not None and out.logits is not None), None)
        if self.cfg.noise_std > 0.0:
            _refuse_noise(logits, "noise_std")
            actions = actions + self.cfg.noise_std * self._randn_like(actions)
        if self.cfg.epsilon > 0.0:
            uniform = torch.rand(actions.shape, generator=self.generator, device=actions.device)
            if logits is None:
                uniform = uniform * 2.0 - 1.0
            else:
                uniform = random_choices(uniform, self.choices or (logits.shape[-1],))
            explore = torch.rand(len(actions), 1, generator=self.generator, device=actions.device) < self.cfg.epsilon
            actions = torch.where(explore, uniform, actions)
        return actions

    def _teacher_actions(self, label: PolicyOutput) -> torch.Tensor:
        actions = label.mean
        if not self.teacher_deterministic and (label.std is not None or label.logits is not None):
            sample = getattr(self.teacher, "sample", None)
            if sample is not None:
                actions = sample(label, self.generator)
            elif label.std is not None:
                actions = label.mean + label.std * self._randn_like(actions)
        if self.cfg.dart_alpha > 0.0:
            _refuse_noise(label.logits, "dart_alpha")
            actions = actions + self._randn_like(actions) @ self._noise_root
        return actions

    def _student_actions(self, student: PolicyOutput) -> torch.Tensor:
        if self.cfg.student_deterministic:
            return student.mean
        if student.logits is not None:
            return draw_choices(student.logits, self.choices, self.generator)
        if student.std is None:
            raise UserError(
                "distill.collection.student_deterministic=false: this student has no standard deviation to explore "
                "with; set distill.student.stochastic=true, or explore with distill.collection.noise_std."
            )
        return sample_output(student, self.generator)

    def _randn_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=self.generator, device=tensor.device)

    @torch.no_grad()
    def fit_noise(self, errors: torch.Tensor) -> None:
        """Fit DART's noise (Laskey et al. 2017) to the student's errors.

        The noise of greatest likelihood among Gaussians around the teacher has the errors' second moment E[e e^T] as
        its covariance; it is scaled by ``collection.dart_alpha``.

        Args:
            errors: Student's mean action less the teacher's, on states that were visited. Shape: (..., num_actions).
        """
        flat = errors.reshape(-1, errors.shape[-1]).double()
        self._set_moment(flat.T @ flat / max(1, flat.shape[0]))

    def _set_moment(self, moment: torch.Tensor) -> None:
        self.error_moment.copy_(moment)
        values, vectors = torch.linalg.eigh(self.cfg.dart_alpha * self.error_moment.double())
        root = vectors * values.clamp_min(0.0).sqrt() @ vectors.T  # symmetric; a singular covariance has one too
        self._noise_root.copy_(root)

    def log(self) -> dict[str, torch.Tensor]:
        """Return scalars for TensorBoard: the root mean square of DART's noise [action units]."""
        if self.cfg.dart_alpha == 0.0:
            return {}
        return {"data_collection/dart_std": self._noise_root.square().sum(dim=1).mean().sqrt()}

    def state_dict(self) -> dict[str, Any]:
        """Return what an exact resume needs."""
        return {
            "generator": self.generator.get_state(),
            "teacher_drives": self.teacher_acts.clone(),  # the name that earlier versions saved it under
            "error_moment": self.error_moment.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.generator.set_state(state["generator"])
        if "teacher_drives" in state:
            self.teacher_acts.copy_(state["teacher_drives"])
        if "error_moment" in state:
            self._set_moment(state["error_moment"])


def _refuse_noise(logits: torch.Tensor | None, name: str) -> None:
    if logits is not None:
        raise UserError(
            f"distill.collection.{name} adds a number to the actions, and these are indices of choices: explore with "
            "distill.collection.epsilon, the share of steps with a random choice"
        )


def bound_of_labels(cfg: CollectionCfg, bound: float | None) -> float | None:
    """Return the bound that labels are clipped to; ``bound`` is that of the agent config, if it defines one."""
    if not cfg.clip_labels:
        return None
    return bound if cfg.label_bound is None else cfg.label_bound
