"""The vehicles of a training: environments for them, and what is measured on and corrected in their policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg, SceneCfg, SimCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv
from foundation.tasks.quadrotor.training.bptt import PolicyStack

GROUP = "policy"
ARRIVED = 0.3
"""Share of the position limit within which a vehicle that rests is counted as arrived."""


@dataclass
class Fleet:
    """Vehicles, and where they are simulated."""

    files: list[Path]
    device: str = "cpu"

    def make_env(self, envs_each: int, seed: int, only: Sequence[int] | None = None) -> QuadcopterPointCtrlEnv:
        """Build environments; number ``i`` flies vehicle ``i % number``.

        Args:
            envs_each: Environments of each vehicle.
            seed: Of the environments.
            only: Numbers of the vehicles; all by default.
        """
        files = self.files if only is None else [self.files[i] for i in only]
        cfg = QuadcopterPointCtrlEnvCfg(
            scene=SceneCfg(envs_each * len(files)),
            sim=SimCfg(device=self.device),
            seed=seed,
            vehicles=[str(file) for file in files],
        )
        return QuadcopterPointCtrlEnv(cfg)


@dataclass
class Score:
    """What a stack of policies is worth, each on its own vehicle. Tensors of shape (num_policies,)."""

    mean_return: torch.Tensor
    terminated: torch.Tensor
    """Share of the episodes that passed a limit."""
    position_error: torch.Tensor
    """Mean distance in an episode's last second [m]."""

    def better_than(self, other: Score) -> torch.Tensor:
        """Say which policies return more, anything being more than NaN. Shape: (num_policies,)."""
        return ~self.mean_return.isnan() & ~(self.mean_return <= other.mean_return)


@torch.no_grad()
def measure(fleet: Fleet, policies: PolicyStack, episodes: int, seed: int, only: Sequence[int] | None = None) -> Score:
    """Fly one whole episode in each of ``episodes`` environments of every vehicle."""
    env = fleet.make_env(episodes, seed, only)
    total, error, terminated = (torch.zeros(env.num_envs, device=env.device) for _ in range(3))
    flying = torch.ones_like(total)
    obs = env.get_observations()
    for _ in range(env.max_episode_length):
        obs, reward, dones, extras = env.step(policies(obs[GROUP]))
        total += torch.where(flying > 0, reward, 0.0)
        ended = flying * dones
        error += torch.where(ended > 0, extras["episode_metrics"]["position_error"], 0.0)
        terminated += ended * ~extras["time_outs"]
        flying -= ended
    rows = (total, terminated, error)
    return Score(*(row.view(-1, policies.num_policies).mean(0).cpu() for row in rows))


@torch.no_grad()
def resting_offset(
    fleet: Fleet, policies: PolicyStack, episodes: int, seed: int, only: Sequence[int] | None = None
) -> torch.Tensor:
    """Measure where each policy comes to rest in the mean over its episodes, body frame. Shape: (num_policies, 3)."""
    env = fleet.make_env(episodes, seed, only)
    window = round(1.0 / env.step_dt)
    rest = torch.zeros(env.num_envs, 3, device=env.device)
    obs = env.get_observations()[GROUP]
    for step in range(env.max_episode_length - 1):
        if step >= env.max_episode_length - window:
            rest += obs[:, :3] / (window - 1)
        obs = env.step(policies(obs))[0][GROUP]
    arrived = (rest.norm(dim=1) < ARRIVED * env.limits[0]).to(rest.dtype).view(-1, policies.num_policies, 1)
    sums = (rest.view(-1, policies.num_policies, 3) * arrived).sum(0)
    return sums / arrived.sum(0).clamp(min=1.0)


@torch.no_grad()
def remove_offset(
    fleet: Fleet,
    policies: PolicyStack,
    episodes: int,
    seed: int,
    only: Sequence[int] | None = None,
    rounds: int = 2,
) -> None:
    """Shift each policy's first layer by the position that it comes to rest at."""
    for number in range(rounds):
        offset = resting_offset(fleet, policies, episodes, seed + number, only)
        policies.biases[0] += torch.einsum("ki,kio->ko", offset, policies.weights[0][:, :3]).unsqueeze(1)


def initial_policies(env: QuadcopterPointCtrlEnv, number: int, hidden_dims: Sequence[int], seed: int) -> PolicyStack:
    """Build policies that hover blindly and see every input at about its usual size, all with the same weights."""
    vehicles = env.vehicles.select(torch.arange(number, device=env.device))
    hover = (2.0 * vehicles.hover_speed - 1.0).clamp(-0.9, 0.9).cpu()
    scale = torch.ones(number, 26)
    scale[:, 0:3] = 0.5 * env.limits[0, :number].cpu().unsqueeze(1)
    scale[:, 15:18] = 5.0
    policies = PolicyStack(
        number, 26, hidden_dims, 4, hover.unsqueeze(1).expand(-1, 4), seed, alike=True, input_scale=scale
    )
    return policies.to(env.device)
