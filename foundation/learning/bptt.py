"""Train policies by backpropagation through a differentiable simulator: short horizons, Adam, many vehicles at once.

The policies are stacked: K of them are one batched product, each on its own share of the environments, so that one
teacher or a hundred (each for its own vehicle) are trained by the same loop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn


class DifferentiableTask(Protocol):
    """What the trainer needs of a task. Environment ``i`` belongs to policy ``i // (num_envs / num_policies)``."""

    num_envs: int
    num_obs: int
    num_actions: int

    def observe(self) -> torch.Tensor:
        """Return observations, with their graph. Shape: (num_envs, num_obs)."""
        ...

    def step(self, actions: torch.Tensor) -> torch.Tensor:
        """Advance by ``actions`` (num_envs, num_actions) and return smooth rewards (num_envs,), with their graph."""
        ...

    def terminal_value(self) -> torch.Tensor:
        """Guess the smooth reward beyond the horizon from the present state. Shape: (num_envs,)."""
        ...

    def detach(self) -> None:
        """Cut the graph between the past and the future."""
        ...


@dataclass
class BpttCfg:
    """Settings of the trainer; the defaults fly the built-in task."""

    hidden_dims: list[int] = field(default_factory=lambda: [256, 256, 256])
    """Hidden layers of each policy."""
    horizon: int = 50
    """Steps between two cuts of the graph."""
    updates: int = 600
    """Optimiser steps."""
    learning_rate: float = 2e-3
    """Adam's step size at the start; it falls to ``final_learning_rate`` along a cosine."""
    final_learning_rate: float = 2e-5
    """Adam's step size at the end."""
    max_grad_norm: float = 1.0
    """Gradients of each policy are clipped to this norm."""
    seed: int = 0
    """Seed of the initial weights."""


class PolicyStack(nn.Module):
    """K multi-layer perceptrons (ELU) of the same shape, evaluated in one batched product per layer."""

    def __init__(
        self,
        num_policies: int,
        num_obs: int,
        hidden_dims: Sequence[int],
        num_actions: int,
        bias: torch.Tensor | float = 0.0,
        seed: int = 0,
    ):
        """Initialise with torch's scheme for linear layers, and the last layer small around ``bias``.

        Args:
            num_policies: K.
            num_obs: Inputs.
            hidden_dims: Hidden layers.
            num_actions: Outputs.
            bias: Initial output, e.g. the hover command. A number or shape (K, num_actions).
            seed: Seed of the weights.
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = [num_obs, *hidden_dims, num_actions]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            last = i == len(sizes) - 2
            bound = (0.1 if last else 1.0) / math.sqrt(inputs)
            weight = (torch.rand(num_policies, inputs, outputs, generator=generator) * 2 - 1) * bound
            offset = torch.zeros(num_policies, 1, outputs)
            if last:
                offset += bias.unsqueeze(1) if isinstance(bias, torch.Tensor) else bias
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(offset))

    @property
    def num_policies(self) -> int:
        """K."""
        return self.weights[0].shape[0]

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Map observations to actions, K equal shares one after the other. Shape: (num_envs, num_obs)."""
        x = obs.view(self.num_policies, -1, obs.shape[-1])
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < len(self.weights) - 1:
                x = torch.nn.functional.elu(x)
        return x.reshape(obs.shape[0], -1)

    def mlp_state_dict(self, index: int = 0) -> dict[str, torch.Tensor]:
        """Return one policy as the state of ``nn.Sequential(Linear, ELU, Linear, ...)``."""
        state = {}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            state[f"{2 * i}.weight"] = weight[index].detach().T.contiguous().clone()
            state[f"{2 * i}.bias"] = bias[index, 0].detach().clone()
        return state


def train(
    task: DifferentiableTask,
    policies: PolicyStack,
    cfg: BpttCfg,
    on_update: Callable[[int, torch.Tensor], None] | None = None,
) -> None:
    """Fit the policies in place.

    Args:
        task: The rollout.
        policies: The stack.
        cfg: Settings.
        on_update: Called with the update's number and the mean reward per step of each policy (num_policies,).
    """
    optimizer = torch.optim.Adam(policies.parameters(), lr=cfg.learning_rate, betas=(0.9, 0.99))
    for update in range(cfg.updates):
        share = 0.5 * (1 + math.cos(math.pi * update / cfg.updates))
        optimizer.param_groups[0]["lr"] = cfg.final_learning_rate + share * (
            cfg.learning_rate - cfg.final_learning_rate
        )
        task.detach()
        total = torch.zeros(task.num_envs, device=policies.weights[0].device)
        for _ in range(cfg.horizon):
            total = total + task.step(policies(task.observe()))
        rewards = (total / cfg.horizon).view(policies.num_policies, -1).mean(1)
        optimizer.zero_grad(set_to_none=True)
        objective = rewards + (task.terminal_value() / cfg.horizon).view(policies.num_policies, -1).mean(1)
        (-objective.sum()).backward()
        _clip(policies, cfg.max_grad_norm)
        optimizer.step()
        if on_update is not None:
            on_update(update, rewards.detach())


@torch.no_grad()
def _clip(policies: PolicyStack, max_norm: float) -> None:
    """Clip the gradient of each policy by its own norm; one with a gradient that is not finite is not moved."""
    grads = [p.grad for p in policies.parameters() if p.grad is not None]
    norm = torch.stack([g.square().sum((1, 2)) for g in grads]).sum(0).sqrt()
    scale = (max_norm / norm.clamp(min=1e-12)).clamp(max=1.0).view(-1, 1, 1)
    for grad in grads:
        grad.mul_(scale).nan_to_num_(0.0, 0.0, 0.0)
