"""A student of your own: ``student=own_student:SkipStudent distill.student.width=64``, run in this folder."""

from dataclasses import dataclass

import torch
from torch import nn

from foundation.students.base import NetworkCfg, Student


@dataclass
class SkipStudentCfg(NetworkCfg):
    """One hidden layer beside the observations."""

    width: int = 32
    """Units of the hidden layer."""


class SkipStudent(Student):
    """Reads its observations twice: as they are, and through one hidden layer."""

    cfg_class = SkipStudentCfg

    def __init__(self, cfg: SkipStudentCfg, num_obs: int, num_actions: int):
        super().__init__(cfg, num_obs, num_actions, num_features=num_obs + cfg.width)
        self.hidden = nn.Linear(num_obs, cfg.width)

    @classmethod
    def from_cfg(cls, cfg: SkipStudentCfg, num_obs: int, num_actions: int) -> "SkipStudent":
        """Build a student from its config."""
        return cls(cfg, num_obs, num_actions)

    def features_step(self, obs: torch.Tensor, state: None) -> tuple[torch.Tensor, None]:
        """Map normalised observations to features. Shape: (..., num_obs) -> (..., num_obs + width)."""
        return torch.cat([obs, torch.tanh(self.hidden(obs))], dim=-1), None

    def features_sequence(self, obs: torch.Tensor, state: None, resets: torch.Tensor | None):
        """Map a sequence of them; without memory this is the same."""
        return self.features_step(obs, state)
