"""A student that reads its last observations, concatenated.

It remembers them normalised; before an episode's start they are zero, the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from torch import nn

from foundation.config.derived_cfg import LONGEST
from foundation.config.distillation_cfg import StudentCfg
from foundation.core.errors import UserError
from foundation.policies.memory import SlidingWindow
from foundation.students.base import NetworkCfg, Student, last_size


@dataclass
class HistoryStudentCfg(NetworkCfg):
    """A multi-layer perceptron over the last few observations."""

    name: str = "history"
    """This student."""
    length: int = 8
    """Observations seen at once [steps], the newest included."""
    hidden_dims: list[int] = field(default_factory=lambda: [64, 64])
    """Sizes of the hidden layers."""
    activation: str = "elu"
    """Activation of the hidden layers, by RSL-RL's names."""


class HistoryStudent(Student):
    """A multi-layer perceptron over the last few observations."""

    cfg_class = HistoryStudentCfg

    def __init__(self, cfg: HistoryStudentCfg, num_obs: int, num_actions: int) -> None:
        """Create the layers that the config asks for."""
        if not 1 <= cfg.length <= LONGEST:
            raise UserError(f"student.length must be from 1 to {LONGEST} steps, not {cfg.length}.")
        num_in = cfg.length * num_obs
        super().__init__(cfg, num_obs, num_actions, last_size(cfg.hidden_dims, num_in, cfg))
        self.window = SlidingWindow(num_obs, cfg.length)
        self.add_body(num_in, cfg.hidden_dims, cfg.activation)

    @classmethod
    def from_cfg(cls, cfg: StudentCfg, num_obs: int, num_actions: int) -> Self:
        """Build a student from its config."""
        assert isinstance(cfg, HistoryStudentCfg)
        return cls(cfg, num_obs, num_actions)

    def trunk(self) -> Sequence[nn.Module]:
        """Return the hidden layers in order."""
        return self.window, *self.last_layers()
