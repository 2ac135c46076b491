"""A student that convolves over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn

from foundation.config.distillation_cfg import StudentCfg
from foundation.core.errors import UserError
from foundation.policies.layers import Layers
from foundation.policies.memory import SlidingWindow
from foundation.policies.mlp import resolve_activation
from foundation.students.base import NetworkCfg, Student, last_size


@dataclass
class TCNStudentCfg(NetworkCfg):
    """Causal convolutions whose reach grows by ``kernel_size`` with every layer, then dense layers."""

    name: str = "tcn"
    """This student."""
    channels: list[int] = field(default_factory=lambda: [32, 32, 32, 32])
    """Channels of each convolution; with the default kernel four layers see 16 steps."""
    kernel_size: int = 2
    """Taps of each convolution [steps]; layer i is dilated by kernel_size^i."""
    hidden_dims: list[int] = field(default_factory=lambda: [64])
    """Sizes of the dense layers after the convolutions."""
    activation: str = "elu"
    """Activation of all hidden layers, by RSL-RL's names."""


class TimeConvolution(nn.Sequential):
    """A convolution over time whose stride is its kernel: a linear layer over each ``kernel_size`` neighbours."""

    def __init__(self, num_in: int, num_out: int, activation: str) -> None:
        """Create the layer.

        Args:
            num_in: Numbers of ``kernel_size`` neighbours together.
            num_out: Numbers that one of them becomes.
            activation: By RSL-RL's names.
        """
        super().__init__(nn.Linear(num_in, num_out), resolve_activation(activation))
        self.num_in = num_in

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve. Shape: (..., steps * num_in / kernel_size) to (..., steps / kernel_size * num_out)."""
        return super().forward(input.unflatten(-1, (-1, self.num_in))).flatten(-2)

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        linear, activation = self
        assert isinstance(linear, nn.Linear)
        x = layers.dense(x, f"{name}.0", linear, layers.size(x) // self.num_in)
        return layers.module(activation, x, f"{name}.1")


class TCNStudent(Student):
    """Dilated causal convolutions (Bai et al. 2018) over the last ``kernel_size ** layers`` observations.

    Only the newest output is needed, and it depends on a tree of the dilated layers' outputs: convolutions whose
    stride is their kernel, over the window, compute that tree and nothing else; and such a convolution is a linear
    layer over ``kernel_size`` neighbours side by side.
    """

    cfg_class = TCNStudentCfg

    def __init__(self, cfg: TCNStudentCfg, num_obs: int, num_actions: int) -> None:
        """Create the layers that the config asks for."""
        if cfg.kernel_size < 2 or not cfg.channels:
            raise UserError("student.kernel_size must be at least 2 and student.channels must not be empty.")
        super().__init__(cfg, num_obs, num_actions, last_size(cfg.hidden_dims, cfg.channels[-1], cfg))
        self.window = SlidingWindow(num_obs, cfg.kernel_size ** len(cfg.channels))
        layers: list[nn.Module] = []
        size = num_obs
        for width in cfg.channels:
            layers.append(TimeConvolution(cfg.kernel_size * size, width, cfg.activation))
            size = width
        self.convolutions = nn.ModuleList(layers)
        self.add_body(size, cfg.hidden_dims, cfg.activation)

    @classmethod
    def from_cfg(cls, cfg: StudentCfg, num_obs: int, num_actions: int) -> Self:
        """Build a student from its config."""
        assert isinstance(cfg, TCNStudentCfg)
        return cls(cfg, num_obs, num_actions)

    def trunk(self) -> Sequence[nn.Module]:
        """Return the hidden layers in order."""
        return self.window, *self.convolutions, *self.last_layers()
