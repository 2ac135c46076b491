"""Encoder, recurrent layers, head: what the GRU and the LSTM student share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Self

from torch import nn

from foundation.config.distillation_cfg import StudentCfg
from foundation.policies.mlp import build_mlp
from foundation.policies.rnn import RecurrentCore
from foundation.students.base import NetworkCfg, Student, last_size


@dataclass
class RecurrentCfg(NetworkCfg):
    """Dense layers, then recurrent ones, then dense ones."""

    encoder_dims: list[int] = field(default_factory=lambda: [16])
    """Sizes of the dense layers before the recurrent ones; may be empty."""
    hidden_size: int = 16
    """Units in each recurrent layer."""
    num_layers: int = 1
    """Number of recurrent layers."""
    hidden_dims: list[int] = field(default_factory=list)
    """Sizes of the dense layers after the recurrent ones; may be empty."""
    activation: str = "relu"
    """Activation of the dense layers, by RSL-RL's names."""
    learn_initial_state: bool = False
    """Learn the state at an episode's start (else it is zero)."""


class RecurrentStudent(Student):
    """A student whose memory is that of recurrent layers. The defaults are RAPTOR's 16-GRU16."""

    kind: ClassVar[str]
    """``gru`` or ``lstm``."""

    def __init__(self, cfg: RecurrentCfg, num_obs: int, num_actions: int) -> None:
        """Create the layers that the config asks for."""
        super().__init__(cfg, num_obs, num_actions, last_size(cfg.hidden_dims, cfg.hidden_size, cfg))
        self.encoder = build_mlp(num_obs, cfg.encoder_dims, None, cfg.activation)
        num_in = cfg.encoder_dims[-1] if cfg.encoder_dims else num_obs
        self.core = RecurrentCore(self.kind, num_in, cfg.hidden_size, cfg.num_layers, cfg.learn_initial_state)
        self.add_body(cfg.hidden_size, cfg.hidden_dims, cfg.activation)

    @classmethod
    def from_cfg(cls, cfg: StudentCfg, num_obs: int, num_actions: int) -> Self:
        """Build a student from its config."""
        assert isinstance(cfg, RecurrentCfg)
        return cls(cfg, num_obs, num_actions)

    def trunk(self) -> Sequence[nn.Module]:
        """Return the hidden layers in order."""
        return self.encoder, self.core, *self.last_layers()
