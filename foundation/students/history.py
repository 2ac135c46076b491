"""A student that reads its last observations side by side."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch

from foundation.config.distillation_cfg import StudentCfg
from foundation.core.errors import UserError
from foundation.policies.mlp import build_mlp
from foundation.students.window import WindowCfg, WindowStudent


@dataclass
class HistoryStudentCfg(WindowCfg):
    """A multi-layer perceptron over the last few observations."""

    name: str = "history"
    """This student."""
    length: int = 8
    """Observations seen at once [steps], the newest included."""
    hidden_dims: list[int] = field(default_factory=lambda: [64, 64])
    """Sizes of the hidden layers."""
    activation: str = "elu"
    """Activation of the hidden layers, by RSL-RL's names."""


class HistoryStudent(WindowStudent):
    """A multi-layer perceptron over the last few observations."""

    cfg_class = HistoryStudentCfg

    def __init__(self, cfg: HistoryStudentCfg, num_obs: int, num_actions: int) -> None:
        """Create the layers that the config asks for."""
        if cfg.length < 1:
            raise UserError(f"student.length must be at least 1 step, not {cfg.length}.")
        num_in = cfg.length * num_obs
        super().__init__(cfg, num_obs, num_actions, cfg.hidden_dims[-1] if cfg.hidden_dims else num_in, cfg.length)
        self.body = build_mlp(num_in, cfg.hidden_dims, None, cfg.activation)

    @classmethod
    def from_cfg(cls, cfg: StudentCfg, num_obs: int, num_actions: int) -> Self:
        """Build a student from its config."""
        assert isinstance(cfg, HistoryStudentCfg)
        return cls(cfg, num_obs, num_actions)

    def window_features(self, window: torch.Tensor) -> torch.Tensor:
        """Map observations, oldest first, to features. Shape: (..., length, num_obs) to (..., num_features)."""
        return self.body(window.flatten(-2))
