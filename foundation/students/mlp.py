"""The default student: a multi-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from torch import nn

from foundation.config.distillation_cfg import ActionDistribution, StudentCfg
from foundation.students.base import NetworkCfg, Student, last_size


@dataclass
class MLPStudentCfg(NetworkCfg):
    """A multi-layer perceptron without memory."""

    name: str = "mlp"
    """This student."""
    hidden_dims: list[int] = field(default_factory=lambda: [64, 64])
    """Sizes of the hidden layers."""
    activation: str = "elu"
    """Activation of the hidden layers, by RSL-RL's names."""


class StudentPolicy(Student):
    """A multi-layer perceptron; called on observations it returns actions."""

    cfg_class = MLPStudentCfg

    def __init__(
        self,
        num_obs: int,
        num_actions: int,
        hidden_dims: Sequence[int] = (64, 64),
        activation: str = "elu",
        obs_normalization: bool = True,
        stochastic: bool = False,
        value_head: bool = False,
        state_dependent_std: bool = False,
        init_std: float = 0.5,
        num_choices: int | list[int] | None = None,
        distribution: ActionDistribution = "gaussian",
        num_estimates: int = 0,
    ) -> None:
        """Create the network.

        Args:
            num_obs: Number of observations.
            num_actions: Number of actions.
            hidden_dims: Sizes of the hidden layers.
            activation: Activation of the hidden layers, by RSL-RL's names.
            obs_normalization: Whether training fits the normaliser (it is there either way).
            stochastic: Learn a standard deviation.
            value_head: Carry a value output.
            state_dependent_std: With ``stochastic``: the standard deviation depends on the observation.
            init_std: Standard deviation before training, in action units.
            num_choices: Choices of a discrete action, or of each of several. None: the actions are continuous.
            distribution: Of continuous actions: gaussian, tanh or beta.
            num_estimates: Numbers of another observation group that it estimates and reads besides.
        """
        cfg = MLPStudentCfg(
            obs_normalization=obs_normalization,
            stochastic=stochastic,
            value_head=value_head,
            state_dependent_std=state_dependent_std,
            init_std=init_std,
            num_choices=num_choices,
            distribution=distribution,
            num_estimates=num_estimates,
            hidden_dims=[int(width) for width in hidden_dims],
            activation=activation,
        )
        super().__init__(cfg, num_obs, num_actions, last_size(cfg.hidden_dims, num_obs, cfg))
        self.add_body(num_obs, cfg.hidden_dims, activation)

    @classmethod
    def from_cfg(cls, cfg: StudentCfg, num_obs: int, num_actions: int) -> Self:
        """Build a student from its config."""
        assert isinstance(cfg, MLPStudentCfg)
        student = cls(
            num_obs,
            num_actions,
            cfg.hidden_dims,
            cfg.activation,
            cfg.obs_normalization,
            cfg.stochastic,
            cfg.value_head,
            cfg.state_dependent_std,
            cfg.init_std,
            cfg.num_choices,
            cfg.distribution,
            cfg.num_estimates,
        )
        student.cfg = cfg  # a class of another package keeps its own name and options
        return student

    def trunk(self) -> Sequence[nn.Module]:
        """Return the hidden layers in order."""
        return self.last_layers()
