"""A policy that its own runtime runs, with the interface that students have: its memory is passed in and returned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import PolicyNetwork

TOLERANCE = 1e-5
"""Largest difference of an action between environments run in one batch and one by one."""
COUNTERS = ("time_step", "timestep", "time_steps", "timesteps", "step", "step_count", "counter", "t")
"""Names of inputs that count an episode's steps, from 0."""


@dataclass
class Memory:
    """One state tensor of a policy, without the environment dimension."""

    name: str
    """Its name in the file."""
    initial: torch.Tensor
    """Its value at an episode's start."""
    axis: int | None = None
    """Index of the environment dimension in its own runtime. None: it has none."""
    counts: bool = False
    """Whether it is a step counter that is fed in, not an output of the policy."""
    dtype: torch.dtype = field(default=torch.float32)
    """The type that its own runtime takes."""

    def outward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the state as the runtime takes it. Shape: (num_envs, ...) to the runtime's own."""
        rows = rows.reshape(-1, *self.initial.shape).to(self.dtype)
        return rows[0] if self.axis is None else rows.movedim(0, self.axis)

    def inward(self, value: torch.Tensor) -> torch.Tensor:
        """Return the runtime's state with environments first. Shape: (num_envs, size)."""
        rows = value.unsqueeze(0) if self.axis is None else value.movedim(self.axis, 0)
        return rows.reshape(rows.shape[0], -1).float()


class ForeignNetwork(PolicyNetwork):
    """Base of the runtimes: a subclass defines ``call``, which acts in some environments."""

    def __init__(self, inputs: Mapping[str, int], memories: Sequence[Memory]) -> None:
        """Store the sizes; ``prepare`` determines the rest.

        Args:
            inputs: Input name -> number of observations, in the order in which they are concatenated.
            memories: The states carried from step to step.
        """
        super().__init__()
        self.inputs = dict(inputs)
        self.memories = list(memories)
        self.num_obs = sum(self.inputs.values())
        self.num_parameters = 0
        """Parameters in total."""
        self.batched = False
        """Whether the environments can be run in one batch."""
        self._sizes = [memory.initial.numel() for memory in self.memories]
        self.state_size = sum(self._sizes)

    def call(self, obs: torch.Tensor, before: list[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run the policy.

        Args:
            obs: Shape: (num_envs, num_obs); num_envs is 1 unless ``batched``.
            before: State of each memory. Shapes: (num_envs, size).

        Returns:
            Actions, shape (num_envs, num_actions), and the new state of each memory.
        """
        raise TypeError(f"{type(self).__name__} does not define call")

    def how(self) -> str:
        """Return one line on how the policy is run."""
        rows = "all environments together" if self.batched else "one environment after the other (slow)"
        kept = [memory.name for memory in self.memories if not memory.counts]
        fed = [memory.name for memory in self.memories if memory.counts]
        memory = f"its memory is {', '.join(kept)}" if kept else "it has no memory"
        if len(self.inputs) > 1:
            memory = f"it reads {' + '.join(f'{name} {size}' for name, size in self.inputs.items())}; {memory}"
        return f"{rows}; {memory}" + (f"; {', '.join(fed)} is fed the step of the episode" if fed else "")

    def groups(self) -> list[str] | None:
        """Return the names of its inputs where there are several: an environment may name its groups so."""
        return list(self.inputs) if len(self.inputs) > 1 else None

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the state at an episode's start. Shape: (num_envs, state_size), None without memory."""
        if not self.memories:
            return None
        flat = torch.cat([memory.initial.reshape(-1).float() for memory in self.memories])
        return flat.to(device or "cpu").expand(num_envs, -1).clone()

    def run(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None, sequence: bool
    ) -> tuple[PolicyOutput, torch.Tensor | None]:
        """Act for one step or for many."""
        if not sequence:
            mean, state = self._step(obs, state)
            return PolicyOutput(mean=mean), state
        if self.memories:
            return self.run_steps(obs, state, resets)
        mean, _ = self._step(obs.flatten(0, 1), None)
        return PolicyOutput(mean=mean.unflatten(0, obs.shape[:2])), state

    @torch.no_grad()
    def _step(self, obs: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        rows = [obs] if self.batched else list(obs.split(1))
        states: list[torch.Tensor | None] = [None] * len(rows)
        if state is not None:
            states = [state] if self.batched else list(state.split(1))
        actions: list[torch.Tensor] = []
        after: list[torch.Tensor] = []
        for own, kept in zip(rows, states, strict=True):
            before = [] if kept is None else list(kept.split(self._sizes, dim=-1))
            action, left = self.call(own, before)
            actions.append(action.to(obs.device).float())
            if kept is not None:
                advanced = [b + 1 if m.counts else a for m, a, b in zip(self.memories, left, before, strict=True)]
                after.append(torch.cat([part.to(obs.device) for part in advanced], dim=-1))
        return torch.cat(actions), torch.cat(after) if after else state

    # -- how it can be run ----------------------------------------------------------------------------------------

    def prepare(self) -> str | None:
        """Determine the number of actions and whether the environments can be run in one batch.

        Returns:
            What makes the policy unusable; None if nothing does.
        """
        generator = torch.Generator().manual_seed(0)
        obs = 0.5 * torch.randn(4, 3, self.num_obs, generator=generator)
        self.batched = False
        first = self._trial(obs)
        if first.dim() != 3 or not first.shape[-1]:
            return "does not give one vector of actions for each environment"
        if not torch.isfinite(first).all():
            return "gives actions that are not finite"
        if not torch.equal(first, self._trial(obs)):
            return "gives other actions for the same observations: it draws them, or remembers where it cannot be seen"
        self.num_actions = first.shape[-1]
        self.batched = True
        try:
            together = self._trial(obs)
        except Exception:  # each runtime has its own error for a batch that it cannot take
            self.batched = False
        else:
            self.batched = together.shape == first.shape and bool((together - first).abs().max() <= TOLERANCE)
        return None

    def _trial(self, obs: torch.Tensor) -> torch.Tensor:
        """Act for some steps from an episode's start. Shape: (num_steps, num_envs, num_actions)."""
        return self.run(obs, self.initial_state(obs.shape[1]), None, sequence=True)[0].mean


def rows_of(value: torch.Tensor, num_rows: int) -> torch.Tensor:
    """Return actions with environments first, also where the runtime drops that dimension. Shape: (num_envs, ...)."""
    if value.dim() == 0 or value.numel() % num_rows:
        raise ValueError(f"it gives an action of shape {list(value.shape)} for {num_rows} environments")
    if value.dim() > 1 and value.shape[0] != num_rows and math.prod(value.shape[:-1]) != num_rows:
        raise ValueError(f"it gives an action of shape {list(value.shape)} for {num_rows} environments")
    return value.reshape(num_rows, -1)
