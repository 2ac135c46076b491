"""A student of your own: ``student=own_student:NormedStudent distill.student.width=64``, run in this folder."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from foundation.students.base import NetworkCfg, Student


@dataclass
class NormedStudentCfg(NetworkCfg):
    """One hidden layer with layer normalisation."""

    width: int = 32
    """Units of the hidden layer."""


class NormedStudent(Student):
    """A perceptron whose hidden layer is normalised (Ba, Kiros, Hinton 2016)."""

    cfg_class = NormedStudentCfg

    def __init__(self, cfg: NormedStudentCfg, num_obs: int, num_actions: int):
        super().__init__(cfg, num_obs, num_actions, num_features=cfg.width)
        self.body = nn.Sequential(nn.Linear(num_obs, cfg.width), nn.LayerNorm(cfg.width), nn.Tanh())

    @classmethod
    def from_cfg(cls, cfg: NormedStudentCfg, num_obs: int, num_actions: int) -> "NormedStudent":
        """Build a student from its config."""
        return cls(cfg, num_obs, num_actions)

    def trunk(self) -> Sequence[nn.Module]:
        """Return the hidden layers in order."""
        return (self.body,)
