"""A trained policy: normaliser, dense and recurrent layers in either order, any distribution, and perhaps a value."""

from __future__ import annotations

import torch
from torch import nn

from foundation.policies.distribution import Deterministic
from foundation.policies.layers import OBS, Layers
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork
from foundation.policies.rnn import RecurrentCore
from foundation.policies.teacher_outputs import Choices, ShapedActions


class Trunk(nn.Module):
    """The layers of an actor or a critic, by name; all but the last may be missing."""

    def __init__(
        self,
        body: nn.Sequential,
        head: nn.Linear,
        *,
        normalizer: nn.Module | None = None,
        encoder: nn.Sequential | None = None,
        core: RecurrentCore | None = None,
        core_norm: nn.LayerNorm | None = None,
        skip_core_input: bool = False,
        skip_core_output: bool = False,
    ) -> None:
        """Register the layers.

        Args:
            body: Dense layers after the recurrent ones; all of them where there are none.
            head: The last layer.
            normalizer: Of the observations, before everything else.
            encoder: Dense layers before the recurrent ones.
            core: The recurrent layers.
            core_norm: Applied to what they give.
            skip_core_input: Whether the observations are appended to what they read.
            skip_core_output: Whether the observations are appended to what they give.
        """
        super().__init__()
        self.normalizer, self.core, self.body, self.head = normalizer, core, body, head
        self.encoder = nn.Sequential() if encoder is None else encoder
        self.core_norm = core_norm
        self.skip_core_input, self.skip_core_output = skip_core_input, skip_core_output
        self.state_size = 0 if core is None else core.state_size

    @property
    def hidden_dims(self) -> list[int]:
        """Sizes of the dense hidden layers."""
        return [layer.out_features for layer in (*self.encoder, *self.body) if isinstance(layer, nn.Linear)]

    @property
    def num_obs(self) -> int:
        """Size of the observation: of what the first layer reads."""
        if self.core is not None and not len(self.encoder):
            return self.core.rnn.input_size
        first = next(layer for layer in (*self.encoder, *self.body, self.head) if isinstance(layer, nn.Linear))
        return first.in_features

    @property
    def is_plain(self) -> bool:
        """Whether it is RSL-RL's: its normaliser, then recurrent layers, then dense ones, and nothing else."""
        known = self.normalizer is None or isinstance(self.normalizer, ObsNormalizer)
        skips = self.skip_core_input or self.skip_core_output
        return known and not len(self.encoder) and self.core_norm is None and not skips

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the raw output, the last hidden layer and the next state."""
        given = obs if self.normalizer is None else self.normalizer(obs)
        x = self.encoder(given)
        if self.core is not None:
            assert state is not None
            if self.skip_core_input:
                x = torch.cat([x, given], dim=-1)
            x, state = self.core.sequence(x, state, resets) if sequence else self.core.step(x, state)
            if self.core_norm is not None:
                x = self.core_norm(x)
            if self.skip_core_output:
                x = torch.cat([x, given], dim=-1)
        features = self.body(x)
        return self.head(features), features, state

    def list_layers(self, layers: Layers, x: str, name: str) -> tuple[str, str]:
        """Append the layers; return the names of the raw output and of the last hidden layer."""
        given = x if self.normalizer is None else layers.module(self.normalizer, x, f"{name}.normalizer")
        x = layers.module(self.encoder, given, f"{name}.encoder")
        if self.core is not None:
            if self.skip_core_input:
                x = layers.concatenate((x, given), f"{name}.core.input")
            x = layers.module(self.core, x, f"{name}.core")
            if self.core_norm is not None:
                x = layers.module(self.core_norm, x, f"{name}.core_norm")
            if self.skip_core_output:
                x = layers.concatenate((x, given), f"{name}.core.output")
        features = layers.module(self.body, x, f"{name}.body")
        return layers.module(self.head, features, f"{name}.head"), features


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

    def list_layers(self, layers: Layers, x: str, features: str) -> str:
        """Append the layers; return the name of the value."""
        if self.trunk is not None:
            value = self.trunk.list_layers(layers, x, "critic")[0]
        else:
            assert self.head is not None
            value = layers.module(self.head, features, "critic.head")
        return value if self.scaler is None else layers.module(self.scaler, value, "critic.scaler")


class ActorCritic(PolicyNetwork):
    """A frozen policy of any library, with its value where it has one; their memories lie side by side in one state."""

    def __init__(
        self,
        actor: Trunk,
        distribution: Deterministic,
        critic: Critic | None = None,
        normalizer: nn.Module | None = None,
    ) -> None:
        """Freeze the networks.

        Args:
            actor: Its output is what ``distribution`` reads.
            distribution: Turns it into actions.
            critic: Gives the value; it reads the actor's observations.
            normalizer: Of the observations of both.
        """
        super().__init__()
        self.num_obs, self.normalizer, self.actor = actor.num_obs, normalizer, actor
        self.distribution, self.critic = distribution, critic
        discrete = isinstance(distribution, Choices)
        self.num_choices: int | None = actor.head.out_features if discrete else None
        self.num_actions = 1 if discrete else actor.head.out_features // distribution.outputs_per_action
        self.with_value = critic is not None
        """Whether the critic is asked."""
        self._sizes = (actor.state_size, 0 if critic is None else critic.state_size)
        self.state_size = sum(self._sizes)
        self.requires_grad_(False).eval()

    @property
    def is_plain(self) -> bool:
        """Whether actor and critic are of RSL-RL's kind, each with its own normaliser, and the actions as they are."""
        own_value = self.critic is None or (self.critic.trunk is not None and self.critic.scaler is None)
        trunks = [self.actor] + ([] if self.critic is None or self.critic.trunk is None else [self.critic.trunk])
        shaped = isinstance(self.distribution, Choices | ShapedActions)
        return self.normalizer is None and own_value and not shaped and all(trunk.is_plain for trunk in trunks)

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        x = obs if self.normalizer is None else self.normalizer(obs)
        actor_state = critic_state = value = None
        if state is not None:
            actor_state, critic_state = state.split(self._sizes, dim=-1)
        raw, features, actor_state = self.actor.run(x, actor_state, resets, sequence)
        if self.critic is not None and self.with_value:
            value, critic_state = self.critic.run(x, features, critic_state, resets, sequence)
        if actor_state is not None or critic_state is not None:
            parts = [part for part in (actor_state, critic_state) if part is not None]
            state = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        mean, std = self.distribution(raw)
        logits = raw if self.num_choices is not None else None
        return PolicyOutput(mean=mean, std=std, value=value, logits=logits, features=features), state

    def list_layers(self, layers: Layers, x: str = OBS) -> None:
        """Append the layers of actor and critic, which read the value ``x``."""
        x = x if self.normalizer is None else layers.module(self.normalizer, x, "normalizer")
        raw, features = self.actor.list_layers(layers, x, "actor")
        layers.outputs["features"] = features
        layers.set_moments(self.distribution.list_layers(layers, raw))
        if self.num_choices is not None:
            layers.outputs["logits"] = raw
        if self.critic is not None:
            layers.outputs["value"] = self.critic.list_layers(layers, x, features)
