"""A trained policy: layers in a row, dense, recurrent or for images, any distribution, and perhaps a value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import nn

from foundation.policies.choices import num_choices_of
from foundation.policies.distribution import Choices, Deterministic, ShapedActions
from foundation.policies.image_encoders import ImageEncoders
from foundation.policies.layers import OBS, Layers
from foundation.policies.memory import MemoryLayer, Skip, Taps, initial_state_of, reset_state_of, run_layers
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork
from foundation.policies.rnn import RecurrentCore


class Trunk(nn.Module):
    """The layers of an actor or a critic in order; the last linear one is its head."""

    def __init__(self, layers: Iterable[nn.Module], normalizer: nn.Module | None = None) -> None:
        """Register the layers.

        Args:
            layers: Linear layers, activations, layers with memory, :class:`Skip`, encoders of images.
            normalizer: Of the observations, before all of them.
        """
        super().__init__()
        self.normalizer = normalizer
        self.layers = nn.ModuleList(layers)
        self._head = max(index for index, layer in enumerate(self.layers) if isinstance(layer, nn.Linear))
        self.state_size = sum(layer.state_size for layer in self.layers if isinstance(layer, MemoryLayer))

    @property
    def head(self) -> nn.Linear:
        """The last linear layer."""
        head = self.layers[self._head]
        assert isinstance(head, nn.Linear)
        return head

    @property
    def core(self) -> RecurrentCore | None:
        """The first recurrent layers, if there are any."""
        return next((layer for layer in self.layers if isinstance(layer, RecurrentCore)), None)

    @property
    def encodes_before_core(self) -> bool:
        """Whether there are dense layers before the recurrent ones."""
        kinds = [type(layer) for layer in self.layers if isinstance(layer, RecurrentCore | nn.Linear)]
        return self.core is not None and kinds[0] is nn.Linear

    @property
    def hidden_dims(self) -> list[int]:
        """Sizes of the dense hidden layers."""
        dense = [layer.out_features for layer in self.layers if isinstance(layer, nn.Linear)]
        return dense[:-1]

    @property
    def num_obs(self) -> int:
        """Size of the observation: of what the first layer reads."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                return layer.in_features
            if isinstance(layer, RecurrentCore):
                return layer.rnn.input_size
            if isinstance(layer, ImageEncoders):
                return layer.num_obs
        raise TypeError("a policy has at least one linear layer")

    @property
    def num_out(self) -> int:
        """Size of the raw output."""
        sized = [layer for layer in self.layers if isinstance(layer, nn.Linear | RecurrentCore)]
        return sized[-1].out_features if isinstance(sized[-1], nn.Linear) else sized[-1].hidden_size

    @property
    def is_plain(self) -> bool:
        """Whether it is RSL-RL's: its normaliser, then recurrent layers, then dense ones, and nothing else."""
        layers = list(self.layers)
        if isinstance(layers[0], RecurrentCore) and layers[0].initial is None:
            layers = layers[1:]
        dense = len(layers) % 2 == 1 and all(isinstance(layer, nn.Linear) for layer in layers[::2])
        others = (nn.Linear, MemoryLayer, Skip, nn.LayerNorm)
        between = not any(isinstance(layer, others) for layer in layers[1::2])
        return dense and between and (self.normalizer is None or isinstance(self.normalizer, ObsNormalizer))

    def run(
        self,
        obs: torch.Tensor,
        state: torch.Tensor | None,
        resets: torch.Tensor | None,
        sequence: bool,
        taps: Taps | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return the raw output, the last hidden layer and the next state."""
        x = obs if self.normalizer is None else self.normalizer(obs)
        return run_layers(self.layers, x, state, resets, sequence, self._head, taps)

    def list_layers(self, layers: Layers, x: str, name: str) -> tuple[str, str]:
        """Append the layers; return the names of the raw output and of the last hidden layer."""
        given = x if self.normalizer is None else layers.module(self.normalizer, x, f"{name}.normalizer")
        x = features = given
        for index, layer in enumerate(self.layers):
            if index == self._head:
                features = x
            if isinstance(layer, Skip):
                x = layers.concatenate((x, given), f"{name}.{index}")
            else:
                x = layers.module(layer, x, f"{name}.{index}")
        return x, features


class Critic(nn.Module):
    """The value: layers of its own or a head on the actor's features, and what brings it back to returns."""

    def __init__(self, layers: Trunk | nn.Linear, scaler: nn.Module | None = None) -> None:
        """Register the layers; a linear layer reads the actor's features."""
        super().__init__()
        self.trunk = layers if isinstance(layers, Trunk) else None
        self.head = None if isinstance(layers, Trunk) else layers
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
    """A frozen policy of any library, with its value where it has one; their memories are concatenated in one state."""

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
        self.num_obs = actor.num_obs
        self.normalizer = normalizer
        self.actor = actor
        self.distribution = distribution
        self.critic = critic
        sizes = (distribution.sizes or (actor.num_out,)) if isinstance(distribution, Choices) else ()
        self.num_choices = num_choices_of(sizes)
        self.num_actions = len(sizes) or actor.num_out // distribution.outputs_per_action
        self.with_value = critic is not None
        """Whether the critic is asked."""
        self._sizes = (actor.state_size, 0 if critic is None else critic.state_size)
        self.state_size = sum(self._sizes)
        self._remembering = [
            layer for trunk in self._trunks() for layer in trunk.layers if isinstance(layer, MemoryLayer)
        ]
        self.requires_grad_(False).eval()

    @property
    def is_plain(self) -> bool:
        """Whether actor and critic are of RSL-RL's kind, each with its own normaliser, and the actions as they are."""
        own_value = self.critic is None or (self.critic.trunk is not None and self.critic.scaler is None)
        shaped = isinstance(self.distribution, Choices | ShapedActions)
        return self.normalizer is None and own_value and not shaped and all(part.is_plain for part in self._trunks())

    @property
    def images(self) -> ImageEncoders | None:
        """The encoders of the images that the actor reads, if it reads any."""
        first = self.actor.layers[0]
        return first if isinstance(first, ImageEncoders) else None

    def bind(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Learn the sizes of the images, which are not in a checkpoint.

        Args:
            shapes: Channels, height and width of each image group.
        """
        if self.images is not None:
            self.images.bind(shapes, self.actor.head.weight.device)
            self.num_obs = self.images.num_obs

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the state at an episode's start. Shape: (num_envs, state_size), None without memory."""
        return initial_state_of(self._remembering, num_envs, device)

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return the state with the envs in ``dones`` at an episode's start. Shape: (num_envs, state_size)."""
        return None if state is None else reset_state_of(self._remembering, state, dones)

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        x = obs if self.normalizer is None else self.normalizer(obs)
        actor_state = critic_state = value = None
        if state is not None:
            actor_state, critic_state = state.split(self._sizes, dim=-1)
        taps = self.make_taps()
        raw, features, actor_state = self.actor.run(x, actor_state, resets, sequence, taps)
        if self.critic is not None and self.with_value:
            value, critic_state = self.critic.run(x, features, critic_state, resets, sequence)
        if actor_state is not None or critic_state is not None:
            parts = [part for part in (actor_state, critic_state) if part is not None]
            state = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        mean, std = self.distribution(raw)
        logits = raw if self.num_choices is not None else None
        features = features if taps is None else taps.side_by_side()
        family = self.distribution.family(raw)
        return PolicyOutput(mean=mean, std=std, value=value, logits=logits, features=features, **family), state

    def named_layers(self) -> dict[str, nn.Module]:
        """Return the actor's layers before its head, as ``actor.0``, ``actor.1`` and so on."""
        head = self.actor.head
        found = {}
        for index, layer in enumerate(self.actor.layers):
            if layer is head:
                break
            found[f"actor.{index}"] = layer
        return found

    @cached_property
    def num_parameters(self) -> int:
        """Numbers in the actor's weights."""
        return sum(parameter.numel() for parameter in self.actor.parameters())

    def sample(self, output: PolicyOutput, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions from an output's distribution. Shape: (..., num_actions)."""
        if output.logits is not None and isinstance(self.distribution, Choices):
            return self.distribution.draw(output.logits, generator)
        return self.distribution.sample(output.mean, output.std, generator)

    def list_layers(self, layers: Layers) -> None:
        """Append the layers of actor and critic."""
        x = OBS if self.normalizer is None else layers.module(self.normalizer, OBS, "normalizer")
        raw, layers.outputs["features"] = self.actor.list_layers(layers, x, "actor")
        layers.set_moments(self.distribution.list_layers(layers, raw))
        if self.num_choices is not None:
            layers.outputs["logits"] = raw
        if self.critic is not None:
            layers.outputs["value"] = self.critic.list_layers(layers, x, layers.outputs["features"])

    def _trunks(self) -> list[Trunk]:
        critic = None if self.critic is None else self.critic.trunk
        return [self.actor] if critic is None else [self.actor, critic]
