"""A student that convolves over time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn

from foundation.config.distillation_cfg import StudentCfg
from foundation.core.errors import UserError
from foundation.policies.mlp import build_mlp, resolve_activation
from foundation.students.window import WindowCfg, WindowStudent


@dataclass
class TCNStudentCfg(WindowCfg):
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


class TCNStudent(WindowStudent):
    """Dilated causal convolutions (Bai et al. 2018) over the last ``kernel_size ** layers`` observations.

    Only the newest output is wanted, and it depends on a tree of the dilated layers' outputs: convolutions whose
    stride is their kernel, over the window, compute that tree and nothing else; and such a convolution is a linear
    layer over ``kernel_size`` neighbours side by side.
    """

    cfg_class = TCNStudentCfg

    def __init__(self, cfg: TCNStudentCfg, num_obs: int, num_actions: int) -> None:
        """Create the layers that the config asks for."""
        if cfg.kernel_size < 2 or not cfg.channels:
            raise UserError("student.kernel_size must be at least 2 and student.channels must not be empty.")
        num_features = cfg.hidden_dims[-1] if cfg.hidden_dims else cfg.channels[-1]
        super().__init__(cfg, num_obs, num_actions, num_features, cfg.kernel_size ** len(cfg.channels))
        layers: list[nn.Module] = []
        size = num_obs
        for width in cfg.channels:
            linear = nn.Linear(cfg.kernel_size * size, width)
            layers.append(nn.Sequential(linear, resolve_activation(cfg.activation)))
            size = width
        self.kernel_size = cfg.kernel_size
        self.convolutions = nn.ModuleList(layers)
        self.body = build_mlp(size, cfg.hidden_dims, None, cfg.activation)

    @classmethod
    def from_cfg(cls, cfg: StudentCfg, num_obs: int, num_actions: int) -> Self:
        """Build a student from its config."""
        assert isinstance(cfg, TCNStudentCfg)
        return cls(cfg, num_obs, num_actions)

    def window_features(self, window: torch.Tensor) -> torch.Tensor:
        """Map observations, oldest first, to features. Shape: (..., length, num_obs) to (..., num_features)."""
        x = window.contiguous()
        for convolution in self.convolutions:
            x = convolution(x.unflatten(-2, (-1, self.kernel_size)).flatten(-2))
        return self.body(x.squeeze(-2))
