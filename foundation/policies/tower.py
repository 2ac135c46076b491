"""A trained actor, and its critic where it reads the same observations, as one frozen module."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foundation.policies.distribution import Deterministic
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork
from foundation.policies.rnn import RecurrentCore


@dataclass
class Tower:
    """Normaliser, recurrent layers and dense layers of an actor or a critic."""

    num_obs: int
    """Size of the observation."""
    normalizer: ObsNormalizer | None
    """None: observations are taken as they are."""
    core: RecurrentCore | None
    """None: no memory."""
    body: nn.Sequential
    """Hidden layers."""
    head: nn.Linear
    """Last layer."""

    @property
    def hidden_dims(self) -> list[int]:
        """Sizes of the dense hidden layers."""
        return [layer.out_features for layer in self.body if isinstance(layer, nn.Linear)]

    @property
    def state_size(self) -> int:
        """Numbers remembered per env."""
        return 0 if self.core is None else self.core.state_size


class TowerModule(nn.Module):
    """Runs a :class:`Tower`."""

    def __init__(self, tower: Tower) -> None:
        """Register the tower's layers."""
        super().__init__()
        self.normalizer, self.core, self.body, self.head = tower.normalizer, tower.core, tower.body, tower.head
        self.state_size = tower.state_size

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the raw output, the last hidden layer and the next state."""
        x = obs if self.normalizer is None else self.normalizer(obs)
        if self.core is not None:
            assert state is not None
            x, state = self.core.sequence(x, state, resets) if sequence else self.core.step(x, state)
        features = self.body(x)
        return self.head(features), features, state


class ActorWithCritic(PolicyNetwork):
    """An actor, and perhaps a critic, whose memories lie side by side in one state."""

    actor: Any
    """Has ``run`` and ``state_size``."""
    critic: Any
    """Likewise; None: there is no value."""
    with_value: bool
    """Whether the critic is asked."""

    def _finish(self) -> None:
        """Freeze the networks, once they are there."""
        self.with_value = self.critic is not None
        self._sizes = (self.actor.state_size, 0 if self.critic is None else self.critic.state_size)
        self.state_size = sum(self._sizes)
        self.requires_grad_(False).eval()

    def _run_both(
        self, x: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Return the actor's raw output and last hidden layer, the value, and the next state."""
        actor_state = critic_state = value = None
        if state is not None:
            actor_state, critic_state = state.split(self._sizes, dim=-1)
        raw, features, actor_state = self.actor.run(x, actor_state, resets, sequence)
        if self.critic is not None and self.with_value:
            value, critic_state = self._value(x, features, critic_state, resets, sequence)
        if actor_state is not None or critic_state is not None:
            parts = [part for part in (actor_state, critic_state) if part is not None]
            state = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return raw, features, value, state

    def _value(
        self, x: torch.Tensor, features: torch.Tensor, state: torch.Tensor | None, *how: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the value and the critic's next state."""
        raise TypeError(f"{type(self).__name__} does not define _value")


class TeacherNetwork(ActorWithCritic):
    """A trained policy with the interface that students have: ``step`` and ``sequence`` with the state passed in."""

    def __init__(self, actor: Tower, distribution: Deterministic, critic: Tower | None = None) -> None:
        """Freeze the networks.

        Args:
            actor: Its output is what ``distribution`` reads.
            distribution: Turns it into mean and standard deviation.
            critic: Gives the value; it reads the actor's observations.
        """
        super().__init__()
        self.num_obs = actor.num_obs
        self.num_actions = actor.head.out_features // distribution.outputs_per_action
        self.actor, self.distribution = TowerModule(actor), distribution
        self.critic = None if critic is None else TowerModule(critic)
        self._finish()

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        raw, features, value, state = self._run_both(obs, state, resets, sequence)
        mean, std = self.distribution(raw)
        return PolicyOutput(mean=mean, std=std, value=value, features=features), state

    def _value(
        self, x: torch.Tensor, features: torch.Tensor, state: torch.Tensor | None, *how: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        value, _, state = self.critic.run(x, state, *how)
        return value, state
