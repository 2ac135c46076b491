"""A policy of another library: dense and recurrent layers in either order, any distribution, and a value."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foundation.policies.distribution import Deterministic
from foundation.policies.output import PolicyOutput
from foundation.policies.rnn import RecurrentCore
from foundation.policies.teacher_outputs import Choices
from foundation.policies.tower import ActorWithCritic


class Trunk(nn.Module):
    """Dense layers, recurrent layers, dense layers, and a last linear one; all but the last may be missing."""

    def __init__(
        self,
        encoder: nn.Sequential,
        body: nn.Sequential,
        head: nn.Linear,
        core: RecurrentCore | None = None,
        core_norm: nn.LayerNorm | None = None,
        skip_core_input: bool = False,
        skip_core_output: bool = False,
    ) -> None:
        """Register the layers.

        Args:
            encoder: Before the recurrent layers.
            body: After them.
            head: The last one.
            core: The recurrent ones.
            core_norm: Applied to what they give.
            skip_core_input: Whether the observations are appended to what they read.
            skip_core_output: Whether the observations are appended to what they give.
        """
        super().__init__()
        self.encoder, self.core, self.core_norm, self.body, self.head = encoder, core, core_norm, body, head
        self.skip_core_input, self.skip_core_output = skip_core_input, skip_core_output
        self.state_size = 0 if core is None else core.state_size

    @property
    def hidden_dims(self) -> list[int]:
        """Sizes of the dense hidden layers."""
        return [layer.out_features for layer in (*self.encoder, *self.body) if isinstance(layer, nn.Linear)]

    @property
    def num_inputs(self) -> int:
        """Size of what the first dense layer reads; without memory that is the observation."""
        first = next(layer for layer in (*self.encoder, *self.body, self.head) if isinstance(layer, nn.Linear))
        return first.in_features

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the raw output, the last hidden layer and the next state."""
        x = self.encoder(obs)
        if self.core is not None:
            assert state is not None
            if self.skip_core_input:
                x = torch.cat([x, obs], dim=-1)
            x, state = self.core.sequence(x, state, resets) if sequence else self.core.step(x, state)
            if self.core_norm is not None:
                x = self.core_norm(x)
            if self.skip_core_output:
                x = torch.cat([x, obs], dim=-1)
        features = self.body(x)
        return self.head(features), features, state


class Critic(nn.Module):
    """The value: layers of its own or a head on the actor's features, and what brings it back to returns."""

    def __init__(self, layers: Trunk | nn.Linear, scaler: nn.Module | None = None) -> None:
        """Register the layers; a linear layer reads the actor's features."""
        super().__init__()
        self.trunk, self.head = (layers, None) if isinstance(layers, Trunk) else (None, layers)
        self.scaler = scaler
        self.state_size = 0 if self.trunk is None else self.trunk.state_size

    def run(
        self,
        obs: torch.Tensor,
        features: torch.Tensor,
        state: torch.Tensor | None,
        resets: torch.Tensor | None,
        sequence: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the value, shape (..., 1), and the next state."""
        if self.trunk is not None:
            value, _, state = self.trunk.run(obs, state, resets, sequence)
        else:
            assert self.head is not None
            value = self.head(features)
        return value if self.scaler is None else self.scaler(value), state


class ActorCriticNetwork(ActorWithCritic):
    """A trained policy with the interface that students have: ``step`` and ``sequence`` with the state passed in."""

    def __init__(
        self,
        num_obs: int,
        scaler: nn.Module | None,
        actor: Trunk,
        distribution: Deterministic,
        critic: Critic | None = None,
    ) -> None:
        """Freeze the networks.

        Args:
            num_obs: Number of observations.
            scaler: Normalises the observations of actor and critic.
            actor: Its output is what ``distribution`` reads.
            distribution: Turns it into actions.
            critic: Gives the value.
        """
        super().__init__()
        self.num_obs, self.normalizer, self.actor = num_obs, scaler, actor
        self.distribution, self.critic = distribution, critic
        discrete = isinstance(distribution, Choices)
        self.num_choices: int | None = actor.head.out_features if discrete else None
        self.num_actions = 1 if discrete else actor.head.out_features // distribution.outputs_per_action
        self._finish()

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        x = obs if self.normalizer is None else self.normalizer(obs)
        raw, features, value, state = self._run_both(x, state, resets, sequence)
        mean, std = self.distribution(raw)
        logits = raw if self.num_choices is not None else None
        return PolicyOutput(mean=mean, std=std, value=value, logits=logits, features=features), state

    def _value(
        self, x: torch.Tensor, features: torch.Tensor, state: torch.Tensor | None, *how: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.critic.run(x, features, state, *how)
