"""Fit to a deterministic policy, on rollouts, what PPO would have learned beside it: a std and a value function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn

from foundation.engines.base import VecEnv
from foundation.tasks.quadrotor.training.bptt import PolicyStack

Policy = Callable[[torch.Tensor], torch.Tensor]
_MIN_SCALE = 0.05
"""Least standard deviation that an observation is divided by: an input that hardly varies is not blown up."""
_MIN_SPREAD = 1e-6
"""Least standard deviation that returns are divided by."""


class _Step(NamedTuple):
    """One env step of every environment."""

    obs: torch.Tensor
    actions: torch.Tensor
    rewards: torch.Tensor
    dones: torch.Tensor


@torch.no_grad()
def _roll_out(
    env: VecEnv, policy: Policy, group: str, steps: int, std: torch.Tensor | None = None, seed: int | None = None
) -> list[_Step]:
    """Reset the environment and let the policy act, under Gaussian noise of ``std`` (num_actions,) if it is given."""
    generator = None if std is None or seed is None else torch.Generator(std.device).manual_seed(seed)
    out: list[_Step] = []
    groups = env.reset(seed)
    for _ in range(steps):
        obs = groups[group]
        actions = policy(obs)
        if std is not None:
            actions = actions + std * torch.randn(actions.shape, generator=generator, device=actions.device)
        groups, rewards, dones, _ = env.step(actions)
        out.append(_Step(obs, actions, rewards, dones))
    return out


def action_spread(env: VecEnv, policy: Policy, group: str, steps: int) -> torch.Tensor:
    """Measure each action's standard deviation along the policy's flights. Shape: (num_actions,)."""
    return torch.stack([step.actions for step in _roll_out(env, policy, group, steps)]).std((0, 1))


def mean_reward(env: VecEnv, policy: Policy, group: str, steps: int, std: torch.Tensor, seed: int) -> float:
    """Measure the reward per step under Gaussian noise of ``std`` (num_actions,), on episodes of a seed."""
    return float(sum(step.rewards.mean() for step in _roll_out(env, policy, group, steps, std, seed))) / steps


def fit_std(
    env: VecEnv, policy: Policy, group: str, cost: float = 0.05, steps: int = 250, seed: int = 7
) -> torch.Tensor:
    """Find the noise that the policy can afford: in proportion to each action's spread, costing a share of the reward.

    Args:
        env: The environment.
        policy: Maps the group's observations to mean actions.
        group: Observation group.
        cost: Share of the mean reward's size that the noise may cost.
        steps: Length of a measurement.
        seed: Of the measurements.

    Returns:
        Standard deviation per action. Shape: (num_actions,).
    """
    spread = action_spread(env, policy, group, steps)
    spread = spread / spread.mean()
    undisturbed = mean_reward(env, policy, group, steps, 0.0 * spread, seed)
    target = undisturbed - cost * abs(undisturbed)
    low = 0.0
    high = 0.5
    for _ in range(8):
        middle = 0.5 * (low + high)
        if mean_reward(env, policy, group, steps, middle * spread, seed) > target:
            low = middle
        else:
            high = middle
    return low * spread


def discounted_returns(
    env: VecEnv, policy: Policy, group: str, std: torch.Tensor, gamma: float, steps: int, keep: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Roll out the noisy policy and sum its discounted rewards.

    Args:
        env: An environment whose episodes are longer than ``steps``, so that only failures end them.
        policy: Maps the group's observations to mean actions.
        group: Observation group.
        std: Of the actions. Shape: (num_actions,).
        gamma: Discount per step.
        steps: Length of the rollout.
        keep: How many of the first steps to return; the others make their returns whole.
        seed: Of the rollout.

    Returns:
        Observations (keep * num_envs, num_obs) and returns (keep * num_envs,).
    """
    rollout = _roll_out(env, policy, group, steps, std, seed)
    returns: list[torch.Tensor] = []
    value = torch.zeros_like(rollout[0].rewards)
    for step in reversed(rollout):
        value = step.rewards + gamma * value * (1 - step.dones.to(value.dtype))
        returns.append(value)
    returns.reverse()
    return torch.cat([step.obs for step in rollout[:keep]]), torch.cat(returns[:keep])


def fit_critics(
    obs: torch.Tensor,
    returns: torch.Tensor,
    hidden_dims: Sequence[int],
    num_policies: int = 1,
    updates: int = 1500,
    batch_size: int = 1024,
    seed: int = 0,
) -> tuple[PolicyStack, torch.Tensor]:
    """Regress each policy's returns on its observations; row ``i`` belongs to policy ``i % num_policies``.

    Args:
        obs: Shape: (num_rows, num_obs).
        returns: Shape: (num_rows,).
        hidden_dims: Of each critic (ELU).
        num_policies: K.
        updates: Optimiser steps.
        batch_size: Rows of each policy in a step.
        seed: Of weights and minibatches.

    Returns:
        The critics, in units of the returns, and for each the share of variance explained on a held-out tenth of its
        rows, shape (num_policies,).
    """
    generator = torch.Generator().manual_seed(seed)
    x = obs.view(-1, num_policies, obs.shape[1])
    y = returns.view(-1, num_policies)
    order = torch.randperm(len(x), generator=generator).to(x.device)
    held = order[: len(x) // 10]
    used = order[len(x) // 10 :]
    center = x[used].mean(0)
    scale = x[used].std(0).clamp(min=_MIN_SCALE)
    level = y[used].mean(0)
    spread = y[used].std(0).clamp(min=_MIN_SPREAD)
    critics = PolicyStack(num_policies, obs.shape[1], hidden_dims, 1, seed=seed).to(x.device)
    optimizer = torch.optim.Adam(critics.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        rows = used[torch.randint(len(used), (batch_size,), generator=generator).to(x.device)]
        values = critics(((x[rows] - center) / scale).flatten(0, 1)).view_as(y[rows])
        error = nn.functional.smooth_l1_loss(values, (y[rows] - level) / spread, reduction="none")
        optimizer.zero_grad(set_to_none=True)
        error.mean(0).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        _fold(critics, center, scale, level, spread)
        left = y[held] - critics(x[held].flatten(0, 1)).view_as(y[held])
    return critics, 1 - left.var(0) / y[held].var(0)


def _fold(
    critics: PolicyStack, center: torch.Tensor, scale: torch.Tensor, level: torch.Tensor, spread: torch.Tensor
) -> None:
    """Let networks of standardised numbers take and give plain ones. Shapes: (K, num_obs) twice, (K,) twice."""
    critics.weights[0] /= scale.unsqueeze(-1)
    critics.biases[0] -= center.unsqueeze(1) @ critics.weights[0]
    critics.weights[-1] *= spread.view(-1, 1, 1)
    critics.biases[-1].mul_(spread.view(-1, 1, 1)).add_(level.view(-1, 1, 1))
