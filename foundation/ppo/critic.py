"""The value function of PPO: fresh, or a teacher's own."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from foundation.core.errors import UserError
from foundation.policies.actor_critic import ActorCritic, Trunk
from foundation.policies.memory import EpisodeState, MemoryLayer, initial_state_of, reset_state_of
from foundation.policies.mlp import build_mlp
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.policy_network import as_float
from foundation.policies.rnn import RecurrentCore
from foundation.teachers import TeacherPolicyWrapper


class ValueFunction(EpisodeState):
    """Layers of any kind whose output is one number; their memory is passed in and returned."""

    def __init__(self, trunk: Trunk, scaler: nn.Module | None = None, shared_normalizer: nn.Module | None = None):
        """Register the layers, which are trained.

        Args:
            trunk: Ends with one output.
            scaler: Brings the output to the scale of returns.
            shared_normalizer: Of the observations, before the trunk's own.
        """
        super().__init__()
        self.trunk = trunk
        self.scaler = scaler
        self.shared_normalizer = shared_normalizer
        self.num_obs = trunk.num_obs
        self.state_size = trunk.state_size
        self._remembering = [layer for layer in trunk.layers if isinstance(layer, MemoryLayer)]
        self.fits_normalizer = isinstance(trunk.normalizer, ObsNormalizer)
        """Whether :meth:`fit_normalizer` does anything; a teacher's normaliser is left as it is."""

    @classmethod
    def fresh(
        cls,
        num_obs: int,
        hidden_dims: Sequence[int],
        activation: str,
        normalize: bool,
        memory: str = "none",
        hidden_size: int = 64,
    ) -> ValueFunction:
        """Build layers of random weights: dense ones, after recurrent ones where that is asked, as RSL-RL has them.

        Args:
            num_obs: Number of observations.
            hidden_dims: Sizes of the hidden dense layers.
            activation: Theirs, by RSL-RL's names.
            normalize: Whether observations are normalised.
            memory: none, gru or lstm.
            hidden_size: Units of the recurrent layer.
        """
        normalizer = ObsNormalizer(num_obs) if normalize else None
        if memory == "none":
            return cls(Trunk(build_mlp(num_obs, hidden_dims, 1, activation), normalizer))
        dense = build_mlp(hidden_size, hidden_dims, 1, activation)
        return cls(Trunk([RecurrentCore(memory, num_obs, hidden_size), *dense], normalizer))

    @classmethod
    def of_teacher(cls, teacher: TeacherPolicyWrapper) -> ValueFunction:
        """Copy a teacher's critic, to be trained further.

        Raises:
            UserError: If it has none of its own.
        """
        policy = teacher.policy
        critic = policy.critic if isinstance(policy, ActorCritic) else None
        if not isinstance(policy, ActorCritic) or critic is None or critic.trunk is None:
            why = "has no critic" if critic is None else "has a critic that shares the actor's layers"
            raise UserError(f"finetune.critic.init=teacher: teacher '{teacher.info.path}' {why}: use fresh")
        if teacher.joints is not None:
            raise UserError(
                "finetune.critic.init=teacher: its critic reads joints in another order than here: use fresh"
            )
        own = copy.deepcopy(critic)
        assert own.trunk is not None
        value = cls(own.trunk, own.scaler, copy.deepcopy(policy.normalizer))
        value.requires_grad_(True)
        value.fits_normalizer = False
        return value

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the memory at an episode's start. Shape: (num_envs, state_size), None without memory."""
        return initial_state_of(self._remembering, num_envs, device)

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return the memory with the envs in ``dones`` at an episode's start."""
        return None if state is None else reset_state_of(self._remembering, state, dones)

    def step(self, obs: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the values, shape (num_envs,), and the next memory. Shape of obs: (num_envs, num_obs)."""
        return self._run(obs, state, None, sequence=False)

    def sequence(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the values of many steps. Shape of obs: (num_steps, num_envs, num_obs)."""
        return self._run(obs, state, resets, sequence=True)

    def _run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        obs = as_float(obs)
        if state is None and self.state_size:
            state = self.initial_state(obs.shape[-2], obs.device)
        x = obs if self.shared_normalizer is None else self.shared_normalizer(obs)
        value, _, state = self.trunk.run(x, state, resets, sequence)
        return (value if self.scaler is None else self.scaler(value)).squeeze(-1), state

    def fit_normalizer(self, obs: torch.Tensor) -> None:
        """Take more observations into a fresh critic's normaliser. Shape: (..., num_obs)."""
        if self.fits_normalizer and isinstance(self.trunk.normalizer, ObsNormalizer):
            self.trunk.normalizer.update(as_float(obs))
