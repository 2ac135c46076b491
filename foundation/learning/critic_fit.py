"""Give a deterministic policy what PPO would have: a standard deviation and a value function, fitted on rollouts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from foundation.networks.mlp import build_mlp

Policy = Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def action_spread(env, policy: Policy, group: str, steps: int) -> torch.Tensor:
    """Measure each action's standard deviation along the policy's flights. Shape: (num_actions,)."""
    obs, actions = env.reset(), []
    for _ in range(steps):
        actions.append(policy(obs[group]))
        obs, *_ = env.step(actions[-1])
    return torch.stack(actions).std((0, 1))


@torch.no_grad()
def mean_reward(env, policy: Policy, group: str, steps: int, std: torch.Tensor, seed: int) -> float:
    """Measure the reward per step under Gaussian noise of ``std`` (num_actions,), on episodes of a seed."""
    generator = torch.Generator(std.device).manual_seed(seed)
    obs, total = env.reset(seed), torch.zeros((), device=std.device)
    for _ in range(steps):
        mean = policy(obs[group])
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        obs, reward, *_ = env.step(mean + std * noise)
        total += reward.mean()
    return total.item() / steps


def fit_std(env, policy: Policy, group: str, cost: float = 0.05, steps: int = 250, seed: int = 7) -> torch.Tensor:
    """Find the noise that the policy can afford: in proportion to each action's spread, costing a share of the reward.

    Args:
        env: A VecEnv with ``reset(seed)``.
        policy: Maps the group's observations to mean actions.
        group: Observation group.
        cost: Share of the mean reward that the noise may cost.
        steps: Length of a measurement.
        seed: Of the measurements.

    Returns:
        Standard deviation per action. Shape: (num_actions,).
    """
    spread = action_spread(env, policy, group, steps)
    spread = spread / spread.mean()
    target = (1 - cost) * mean_reward(env, policy, group, steps, 0.0 * spread, seed)
    low, high = 0.0, 0.5
    for _ in range(8):
        middle = 0.5 * (low + high)
        if mean_reward(env, policy, group, steps, middle * spread, seed) > target:
            low = middle
        else:
            high = middle
    return low * spread


@torch.no_grad()
def discounted_returns(
    env, policy: Policy, group: str, std: torch.Tensor, gamma: float, steps: int, keep: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Roll out the noisy policy and sum its discounted rewards.

    Args:
        env: A VecEnv whose episodes are longer than ``steps``, so that only failures end them.
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
    generator = torch.Generator(std.device).manual_seed(seed)
    obs, observations, rewards, ends = env.reset(seed), [], [], []
    for _ in range(steps):
        x = obs[group]
        mean = policy(x)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        obs, reward, dones, _ = env.step(mean + std * noise)
        observations.append(x)
        rewards.append(reward)
        ends.append(dones)
    returns, value = [], torch.zeros_like(rewards[0])
    for reward, done in zip(reversed(rewards), reversed(ends), strict=True):
        value = reward + gamma * value * (1 - done.to(value.dtype))
        returns.append(value)
    returns.reverse()
    return torch.cat(observations[:keep]), torch.cat(returns[:keep])


def fit_critic(
    obs: torch.Tensor, returns: torch.Tensor, hidden_dims: list[int], updates: int = 1500, seed: int = 0
) -> tuple[nn.Sequential, float]:
    """Regress returns on observations.

    Args:
        obs: Shape: (num_rows, num_obs).
        returns: Shape: (num_rows,).
        hidden_dims: Of the critic (ELU).
        updates: Optimiser steps of 1024 rows.
        seed: Of weights and minibatches.

    Returns:
        The critic, in units of the returns, and the share of variance explained on a held-out tenth of the rows.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        critic = build_mlp(obs.shape[1], hidden_dims, 1, "elu")
    order = torch.randperm(len(obs), generator=generator)
    held, used = order[: len(obs) // 10], order[len(obs) // 10 :]
    mean, std = returns[used].mean(), returns[used].std()
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        rows = used[torch.randint(len(used), (1024,), generator=generator)]
        loss = nn.functional.smooth_l1_loss(critic(obs[rows])[:, 0], (returns[rows] - mean) / std)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        last = critic[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(std)
        last.bias.mul_(std).add_(mean)
        error = (critic(obs[held])[:, 0] - returns[held]).var()
    return critic, 1 - (error / returns[held].var()).item()
