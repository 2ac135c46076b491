"""Train policies by backpropagation through a differentiable simulator: short horizons, Adam, many vehicles at once.

The policies are stacked: K of them are one batched product, each on its own share of the environments, so that one
teacher or a hundred (each for its own vehicle) are trained by the same loop. Environment ``i`` belongs to policy
``i % K``, as vehicles are given to environments.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn


class DifferentiableTask(Protocol):
    """What the trainer needs of a task. Environment ``i`` belongs to policy ``i % num_policies``."""

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
    shared: bool = False
    """All policies move by their mean gradient: policies that begin alike stay alike, and each learns from all."""
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
        alike: bool = False,
        input_scale: torch.Tensor | None = None,
    ):
        """Initialise with torch's scheme for linear layers, and the last layer small around ``bias``.

        Args:
            num_policies: K.
            num_obs: Inputs.
            hidden_dims: Hidden layers.
            num_actions: Outputs.
            bias: Initial output, e.g. the hover command. A number or shape (K, num_actions).
            seed: Seed of the weights.
            alike: All policies begin with the same weights (except ``bias`` and ``input_scale``).
            input_scale: Usual size of the inputs, by which the first layer's initial weights are divided. Shape:
                (K, num_obs).
        """
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = [num_obs, *hidden_dims, num_actions]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            last = i == len(sizes) - 2
            bound = (0.1 if last else 1.0) / math.sqrt(inputs)
            drawn = torch.rand(1 if alike else num_policies, inputs, outputs, generator=generator)
            weight = ((drawn * 2 - 1) * bound).expand(num_policies, -1, -1).clone()
            if i == 0 and input_scale is not None:
                weight /= input_scale.unsqueeze(-1)
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
        """Map observations to actions; row ``i`` by policy ``i % K``. Shape: (num_envs, num_obs)."""
        x = obs.view(-1, self.num_policies, obs.shape[-1]).transpose(0, 1)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if i < len(self.weights) - 1:
                x = torch.nn.functional.elu(x)
        return x.transpose(0, 1).reshape(obs.shape[0], -1)

    def mlp_state_dict(self, index: int = 0) -> dict[str, torch.Tensor]:
        """Return one policy as the state of ``nn.Sequential(Linear, ELU, Linear, ...)``."""
        state = {}
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            state[f"{2 * i}.weight"] = weight[index].detach().T.contiguous().clone()
            state[f"{2 * i}.bias"] = bias[index, 0].detach().clone()
        return state

    @torch.no_grad()
    def select(self, index: Sequence[int]) -> PolicyStack:
        """Copy some of the policies into a stack of their own."""
        sizes = [self.weights[0].shape[1], *(weight.shape[2] for weight in self.weights)]
        stack = PolicyStack(len(index), sizes[0], sizes[1:-1], sizes[-1]).to(self.weights[0].device)
        for mine, theirs in zip(stack.parameters(), self.parameters(), strict=True):
            mine.copy_(theirs[list(index)])
        return stack

    @torch.no_grad()
    def put(self, index: Sequence[int], policies: PolicyStack, taken: Sequence[int]) -> None:
        """Overwrite the policies ``index`` by the policies ``taken`` of another stack."""
        for mine, theirs in zip(self.parameters(), policies.parameters(), strict=True):
            mine[list(index)] = theirs[list(taken)]


class BpttTrainer:
    """Fits a stack of policies in place, one update at a time, and can resume from where it was saved."""

    def __init__(self, task: DifferentiableTask, policies: PolicyStack, cfg: BpttCfg):
        """Train ``policies`` on ``task``."""
        self.task = task
        self.policies = policies
        self.cfg = cfg
        self.optimizer = torch.optim.Adam(policies.parameters(), lr=cfg.learning_rate, betas=(0.9, 0.99))
        self.updates_done = 0

    @property
    def finished(self) -> bool:
        """Whether all updates are done."""
        return self.updates_done >= self.cfg.updates

    def update(self) -> torch.Tensor:
        """Roll out one horizon and take one optimiser step.

        Returns:
            Mean smooth reward per step of each policy. Shape: (num_policies,).
        """
        cfg = self.cfg
        task = self.task
        policies = self.policies
        share = 0.5 * (1 + math.cos(math.pi * self.updates_done / cfg.updates))
        rate = cfg.final_learning_rate + share * (cfg.learning_rate - cfg.final_learning_rate)
        self.optimizer.param_groups[0]["lr"] = rate
        task.detach()
        total = torch.zeros(task.num_envs, device=policies.weights[0].device)
        for _ in range(cfg.horizon):
            total = total + task.step(policies(task.observe()))
        self.optimizer.zero_grad(set_to_none=True)
        # The sum, so that what passes through a task's states is one environment's own gradient.
        (-(total + task.terminal_value()).sum()).backward()
        _scale_and_clip(policies, policies.num_policies / (cfg.horizon * task.num_envs), cfg)
        self.optimizer.step()
        self.updates_done += 1
        return (total.detach() / cfg.horizon).view(-1, policies.num_policies).mean(0)

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimiser and progress (the task's own state is the caller's)."""
        return {
            "policies": {name: value.clone() for name, value in self.policies.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "updates_done": self.updates_done,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.policies.load_state_dict(saved["policies"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.updates_done = saved["updates_done"]


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
    trainer = BpttTrainer(task, policies, cfg)
    for update in range(cfg.updates):
        rewards = trainer.update()
        if on_update is not None:
            on_update(update, rewards)


@torch.no_grad()
def _scale_and_clip(policies: PolicyStack, scale: float, cfg: BpttCfg) -> None:
    """Scale gradients, then clip each policy's by its own norm; one that is not finite does not move its policy."""
    grads = [p.grad for p in policies.parameters() if p.grad is not None]
    for grad in grads:
        grad.mul_(scale)
    if cfg.shared:
        for grad in grads:
            grad.copy_(grad.nan_to_num(0.0, 0.0, 0.0).mean(0, keepdim=True).expand_as(grad))
    norm = torch.stack([g.square().sum((1, 2)) for g in grads]).sum(0).sqrt()
    share = (cfg.max_grad_norm / norm.clamp(min=1e-12)).clamp(max=1.0).view(-1, 1, 1)
    for grad in grads:
        grad.mul_(share).nan_to_num_(0.0, 0.0, 0.0)
