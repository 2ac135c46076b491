"""The interface that students and teachers share: one step, many steps, or mean actions; the state is passed in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import nn

from foundation.core.errors import UserError, suggest
from foundation.policies.distribution import sample_output
from foundation.policies.layers import Layers
from foundation.policies.memory import EpisodeState, Taps
from foundation.policies.output import PolicyOutput, map_output


def as_float(obs: torch.Tensor) -> torch.Tensor:
    """Return observations as layers read them: bytes and half precision, as from cameras, become float32."""
    return obs if obs.is_floating_point() and obs.dtype != torch.float16 else obs.float()


class PolicyNetwork(EpisodeState):
    """Base of the policies. A subclass sets the sizes and defines ``run``, from which the other methods follow."""

    num_obs: int
    """Number of observations."""
    num_actions: int
    """Number of actions."""
    with_value: bool = True
    """Whether to compute the value, if the policy has a critic."""
    tapped: tuple[str, ...] = ()
    """Layers whose concatenated outputs are ``features``. Empty: the last hidden layer."""

    def named_layers(self) -> dict[str, nn.Module]:
        """Return the hidden layers that can be tapped, by their names in :meth:`layers`."""
        return {}

    def tap(self, names: Sequence[str], key: str) -> None:
        """Make ``features`` the concatenated outputs of named layers.

        Args:
            names: Names out of :meth:`named_layers`.
            key: The config key that the user has set, for messages.

        Raises:
            UserError: If a layer does not exist; names the nearest ones.
        """
        known = self.named_layers()
        if names and not known:
            raise UserError(f"{key}: the layers of a {type(self).__name__} have no names; only its last one is known.")
        for name in names:
            if name not in known:
                raise UserError(f"{key}: there is no layer '{name}'. {suggest(name, known, ordered=True)}")
        self.tapped = tuple(names)

    @torch.no_grad()
    def tapped_sizes(self) -> list[int]:
        """Return the sizes of the tapped layers' outputs, in order, found by one step on zeros."""
        names = self.tapped
        device = next(self.parameters()).device
        sizes = []
        try:
            for name in names:
                self.tapped = (name,)
                features = self.step(torch.zeros(1, self.num_obs, device=device))[0].features
                assert features is not None
                sizes.append(features.shape[-1])
        finally:
            self.tapped = names
        return sizes

    def make_taps(self) -> Taps | None:
        """Return hooks that record the tapped layers' outputs during one run; None if no layer is tapped."""
        if not self.tapped:
            return None
        known = self.named_layers()
        return Taps([known[name] for name in self.tapped])

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many.

        Args:
            obs: Shape: (num_envs, num_obs), with ``sequence`` (num_steps, num_envs, num_obs).
            state: State before the first step. Shape: (num_envs, state_size). None: the policy has no memory.
            resets: True where a step begins an episode. Shape: (num_steps, num_envs). None: nowhere.
            sequence: Whether there is a dimension of steps.

        Returns:
            The output and the state after the last step.
        """
        raise TypeError(f"{type(self).__name__} does not define run")

    @cached_property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def sample(self, output: PolicyOutput, generator: torch.Generator | None = None) -> torch.Tensor:
        """Draw actions from an output's distribution, or take the mean where it has none. Shape: (..., num_actions)."""
        return sample_output(output, generator)

    def list_layers(self, layers: Layers) -> None:
        """Append the policy's layers and name the values that are its outputs; what :meth:`layers` returns."""
        raise UserError(f"the layers of a {type(self).__name__} are not known, so that it can only be run.")

    def layers(self) -> Layers:
        """Return the policy as typed layers, with its weights, for exporters (:mod:`foundation.policies.layers`)."""
        layers = Layers(self.num_obs)
        self.list_layers(layers)
        return layers

    def step(self, obs: torch.Tensor, state: torch.Tensor | None = None) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step.

        Args:
            obs: Shape: (num_envs, num_obs).
            state: Shape: (num_envs, state_size). None: an episode's start.

        Returns:
            The output and the next state.
        """
        return self.run(as_float(obs), self._state_before(obs, state), None, sequence=False)

    def sequence(
        self, obs: torch.Tensor, state: torch.Tensor | None = None, resets: torch.Tensor | None = None
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for many steps; the same as :meth:`step` repeated.

        Args:
            obs: Shape: (num_steps, num_envs, num_obs).
            state: State before the first step. Shape: (num_envs, state_size). None: an episode's start.
            resets: True where a step begins an episode. Shape: (num_steps, num_envs). None: nowhere.

        Returns:
            The output and the state after the last step.
        """
        return self.run(as_float(obs), self._state_before(obs, state), resets, sequence=True)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Return mean actions, with memory those of an episode's first step. Shape: (num_envs, num_actions)."""
        return self.step(obs)[0].mean

    def run_steps(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for many steps one after the other, for a ``run`` that has no faster way. Shapes as there."""
        outputs: list[PolicyOutput] = []
        for index in range(obs.shape[0]):
            state = state if resets is None else self.reset_state(state, resets[index])
            output, state = self.run(obs[index], state, None, sequence=False)
            outputs.append(output)
        return map_output(lambda *parts: torch.stack(parts), *outputs), state

    def _state_before(self, obs: torch.Tensor, state: torch.Tensor | None) -> torch.Tensor | None:
        if state is None and self.state_size:
            return self.initial_state(obs.shape[-2], obs.device)
        return state
