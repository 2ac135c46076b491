"""A task of your own, in one file: a point on a line that is pushed to the origin. See docs/howto/own_task.md."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium
import torch
from rsl_rl.env import VecEnv
from tensordict import TensorDict

from foundation.config.agent_cfg import OnPolicyRunnerCfg


@dataclass
class PointEnvCfg:
    """What ``--num_envs``, ``--seed`` and ``--device`` set."""

    num_envs: int = 64
    seed: int = 0
    device: str = "cpu"


class PointEnv(VecEnv):
    """A point of unit mass; the action is a force."""

    def __init__(self, cfg: PointEnvCfg):
        self.cfg = cfg
        self.num_envs = cfg.num_envs
        self.num_actions = 1
        self.max_episode_length = 20
        self.device = cfg.device
        self.episode_length_buf = torch.zeros(cfg.num_envs, dtype=torch.long, device=cfg.device)
        self.state = torch.zeros(cfg.num_envs, 2, device=cfg.device)
        self.reset(cfg.seed)

    def _begin(self, ended: torch.Tensor) -> None:
        fresh = torch.rand_like(self.state) * 2.0 - 1.0
        self.state = torch.where(ended[:, None], fresh, self.state)
        self.episode_length_buf = torch.where(ended, 0, self.episode_length_buf)

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin every episode anew."""
        if seed is not None:
            torch.manual_seed(seed)
        self._begin(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        return self.get_observations()

    def get_observations(self) -> TensorDict:
        """Return position and velocity. Shape: (num_envs, 2)."""
        return TensorDict({"policy": self.state.clone()}, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Push every point for 0.1 s."""
        velocity = self.state[:, 1] + 0.1 * actions[:, 0].clamp(-1.0, 1.0)
        position = self.state[:, 0] + 0.1 * velocity
        self.state = torch.stack((position, velocity), dim=1)
        self.episode_length_buf = self.episode_length_buf + 1
        time_outs = self.episode_length_buf >= self.max_episode_length
        rewards = 1.0 - position.abs()
        self._begin(time_outs)
        return self.get_observations(), rewards, time_outs, {"time_outs": time_outs}


gymnasium.register(
    id="Point-v0",
    entry_point="own_task:PointEnv",
    kwargs={
        "torch_env_entry_point": PointEnv,
        "env_cfg_entry_point": PointEnvCfg,
        "rsl_rl_cfg_entry_point": OnPolicyRunnerCfg,
    },
)
