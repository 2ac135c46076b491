"""A trained actor, and its critic where it reads the same observations, as one frozen module."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from foundation.networks.distribution import Deterministic
from foundation.networks.normalizer import ObsNormalizer
from foundation.networks.output import PolicyOutput
from foundation.networks.policy_network import PolicyNetwork
from foundation.networks.rnn import RecurrentCore


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


class TeacherNetwork(PolicyNetwork):
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
        self.with_value = critic is not None
        self._sizes = (actor.state_size, 0 if critic is None else critic.state_size)
        self.state_size = sum(self._sizes)
        self.requires_grad_(False).eval()

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        actor_state = critic_state = None
        if self.state_size:
            assert state is not None
            actor_state, critic_state = state.split(self._sizes, dim=-1)
        raw, features, actor_state = self.actor.run(obs, actor_state, resets, sequence)
        value = None
        if self.critic is not None and self.with_value:
            value, _, critic_state = self.critic.run(obs, critic_state, resets, sequence)
        mean, std = self.distribution(raw)
        if self.state_size:
            parts = [part for part in (actor_state, critic_state) if part is not None]
            state = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return PolicyOutput(mean=mean, std=std, value=value, features=features), state
