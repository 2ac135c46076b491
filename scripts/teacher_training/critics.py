"""A critic for each teacher, so that RSL-RL's own runner loads its checkpoint and trains on from there."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from foundation.tasks.quadrotor.agents.rsl_rl_ppo_cfg import QuadcopterPointCtrlPPORunnerCfg
from foundation.tasks.quadrotor.training.bptt import PolicyStack
from foundation.tasks.quadrotor.training.critic_fit import discounted_returns, fit_critics
from teacher_training.checkpoints import STD
from teacher_training.fleet import GROUP, Fleet


@dataclass
class CriticCfg:
    """Settings of the regression, whatever method the actors were trained by."""

    hidden_dims: list[int] = field(default_factory=lambda: [64, 64])
    """Hidden layers (ELU)."""
    num_envs: int = 128
    """Environments of each teacher; many, as only other flights tell the critic more."""
    num_steps: int = 250
    """Length of the rollout, shorter than an episode: only failures end one."""
    keep: int = 50
    """Its first steps, which are learned from; the others make their returns whole."""
    updates: int = 500
    """Optimiser steps."""
    batch_size: int = 256
    """Rows of each teacher in a step."""
    at_once: int = 32
    """Teachers that are fitted side by side, which bounds the memory."""


def fit_teachers_critics(
    fleet: Fleet, policies: PolicyStack, cfg: CriticCfg, seed: int
) -> tuple[PolicyStack, torch.Tensor]:
    """Fit the value of each policy, on its own vehicle, with the noise and the discount that its checkpoint has.

    Args:
        fleet: The vehicles.
        policies: One for each.
        cfg: Settings.
        seed: Of episodes, noise and weights.

    Returns:
        The critics, and the share of the returns' variance that each explains, shape (num_policies,).
    """
    number, num_obs, num_actions = policies.num_policies, policies.weights[0].shape[1], policies.weights[-1].shape[2]
    device = policies.weights[0].device
    critics, explained = PolicyStack(number, num_obs, cfg.hidden_dims, 1).to(device), torch.zeros(number)
    gamma, std = QuadcopterPointCtrlPPORunnerCfg().algorithm.gamma, torch.full((num_actions,), STD, device=device)
    for begin in range(0, number, cfg.at_once):
        members = list(range(begin, min(number, begin + cfg.at_once)))
        env, part = fleet.make_env(cfg.num_envs, seed, members), policies.select(members)
        obs, returns = discounted_returns(env, part, GROUP, std, gamma, cfg.num_steps, cfg.keep, seed)
        fitted, shares = fit_critics(
            obs, returns, cfg.hidden_dims, len(members), cfg.updates, cfg.batch_size, seed + begin
        )
        critics.put(members, fitted, list(range(len(members))))
        explained[members] = shares.cpu()
    return critics, explained
