"""Actors: one small interface over teacher, student and the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from tensordict import TensorDict

from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput


class Policy(Protocol):
    """The contract of every policy module: the state is passed in and returned, one step or a sequence at a time."""

    num_obs: int
    num_actions: int

    @property
    def state_size(self) -> int:
        """Numbers that the policy remembers for each environment; 0 for one without memory."""
        ...

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the state of fresh episodes. Shape: (num_envs, state_size)."""
        ...

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return ``state``, that of the environments in ``dones`` set to an episode's start."""
        ...

    def step(self, obs: torch.Tensor, state: torch.Tensor | None) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Map observations (num_envs, num_obs) to outputs."""
        ...

    def sequence(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Map observations (num_steps, num_envs, num_obs) to outputs."""
        ...


class Actor(Protocol):
    """Acts on the environment's observation groups."""

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones``, or everywhere."""
        ...

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return actions. Shape: (num_envs, num_actions)."""
        ...


class PolicyActor:
    """A deterministic policy, teacher or student. Its memory, if any, is held here and never inside the module."""

    def __init__(self, policy: Policy, selector: ObsSelector):
        self.policy = policy
        self.selector = selector
        self.state: torch.Tensor | None = None

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones`` (num_envs,), or everywhere."""
        if dones is None:
            self.state = None
        elif self.state is not None:
            self.state = self.policy.reset_state(self.state, dones)

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return the mean actions. Shape: (num_envs, num_actions)."""
        return self.output(self.selector(obs)).mean

    def output(self, obs: torch.Tensor) -> PolicyOutput:
        """Return the outputs for observations that are selected already (num_envs, num_obs)."""
        output, self.state = self.policy.step(obs, self.current_state(obs))
        return output

    def outputs(self, obs: torch.Tensor, resets: torch.Tensor) -> PolicyOutput:
        """Return the outputs for many steps. Shapes: (num_steps, num_envs, num_obs) and (num_steps, num_envs)."""
        output, self.state = self.policy.sequence(obs, self.current_state(obs[0]), resets)
        return output

    def current_state(self, obs: torch.Tensor) -> torch.Tensor | None:
        """Return the memory before the next step; None for a policy without. Shape: (num_envs, state_size)."""
        if self.state is None and self.policy.state_size:
            self.state = self.policy.initial_state(obs.shape[0], obs.device)
        return self.state


class ZeroActor:
    """All actions zero: a floor that any policy should clear."""

    def __init__(self, num_actions: int):
        self.num_actions = num_actions

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Nothing to forget."""

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return zeros. Shape: (num_envs, num_actions)."""
        return torch.zeros(obs.batch_size[0], self.num_actions, device=obs.device)


class RandomActor:
    """Uniform actions from a generator of its own: indices, or numbers within their bounds.

    Args:
        num_actions: Size of an action.
        seed: Seed of the generator.
        device: Where it draws.
        choices: Choices of each action that is an index. None: they are numbers.
        bounds: Lowest and highest of each number; what is not finite is [-1, 1], and so are all where it is None.
    """

    def __init__(
        self,
        num_actions: int,
        seed: int,
        device: str | torch.device = "cpu",
        choices: Sequence[int] | None = None,
        bounds: Sequence[tuple[float, float]] | None = None,
    ):
        self.num_actions = num_actions
        self.generator = torch.Generator(device).manual_seed(seed)
        self.choices = None if choices is None else torch.tensor(choices, dtype=torch.float32, device=device)
        ends = torch.tensor([(-1.0, 1.0)] * num_actions if bounds is None else list(bounds), device=device)
        finite = ends.isfinite().all(dim=-1)
        self.low = torch.where(finite, ends[:, 0], -1.0)
        self.width = torch.where(finite, ends[:, 1] - ends[:, 0], 2.0)

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Nothing to forget."""

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return uniform actions. Shape: (num_envs, num_actions)."""
        shape = (obs.batch_size[0], self.num_actions)
        uniform = torch.rand(shape, generator=self.generator, device=self.generator.device)
        if self.choices is not None:
            return (uniform * self.choices).floor().minimum(self.choices - 1.0)
        return uniform * self.width + self.low


class SplitActor:
    """Several actors share one rollout: each acts in a block of consecutive environments."""

    def __init__(self, actors: Sequence[Actor], num_envs: int):
        self.actors = list(actors)
        share = num_envs // len(self.actors)
        self.blocks = [slice(i * share, (i + 1) * share) for i in range(len(self.actors))]
        self.blocks[-1] = slice(self.blocks[-1].start, num_envs)

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones`` (num_envs,), or everywhere."""
        for actor, block in zip(self.actors, self.blocks, strict=True):
            actor.reset(None if dones is None else dones[block])

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return each actor's actions for its own block. Shape: (num_envs, num_actions)."""
        return torch.cat([actor.act(obs[block]) for actor, block in zip(self.actors, self.blocks, strict=True)])
