"""A linear robot of four joints and a foot, whose observations and actions are in any order of the joints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict

JOINTS = ("hip_left", "hip_right", "knee_left", "knee_right")
"""The order of the teacher."""
THEIRS = ("hip_left", "knee_left", "hip_right", "knee_right")
"""The order of another simulator."""
FEET = ("foot_left", "foot_right")


class JointEnv:
    """Joint i (of :data:`JOINTS`) moves as q' = q + g_i a with g = (0.1, 0.2, 0.4, 0.8): each needs its own action.

    ``policy``: joint_pos, the last action, a speed of no joint, two steps of joint_vel, the feet's contact.

    Args:
        num_envs: Number of environments.
        order: Order of the joints in observations and actions.
        feet: Order of the feet.
        named: Whether it says so.
    """

    num_actions = 4
    max_episode_length = 10
    device = torch.device("cpu")

    def __init__(
        self, num_envs: int = 3, order: Sequence[str] = JOINTS, feet: Sequence[str] = FEET, named: bool = True
    ):
        self.num_envs = num_envs
        self.cfg: dict[str, Any] = {}
        self.places = [JOINTS.index(name) for name in order]
        self.foot_places = [FEET.index(name) for name in feet]
        self.gains = torch.tensor([0.1, 0.2, 0.4, 0.8])
        if named:
            self.joint_names = tuple(order)
            self.joint_terms = {"contact": tuple(feet)}
            self.observation_terms = {
                "policy": {"joint_pos": 4, "last_action": 4, "speed": 1, "joint_vel": 8, "contact": 2}
            }
        self.reset(0)

    def reset(self, seed: int | None = None) -> TensorDict:
        generator = torch.Generator().manual_seed(seed or 0)
        self.q = torch.rand(self.num_envs, 4, generator=generator) * 2.0 - 1.0
        self.velocity = torch.rand(self.num_envs, 2, 4, generator=generator)
        self.action = torch.zeros(self.num_envs, 4)
        self.feet = torch.rand(self.num_envs, 2, generator=generator)
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)
        return self.get_observations()

    def get_observations(self) -> TensorDict:
        speed = self.q.sum(-1, keepdim=True)
        velocity = self.velocity[..., self.places].flatten(1)
        parts = [self.q[:, self.places], self.action[:, self.places], speed, velocity, self.feet[:, self.foot_places]]
        return TensorDict({"policy": torch.cat(parts, dim=-1)}, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        self.action = torch.empty_like(actions)
        self.action[:, self.places] = actions
        change = self.gains * self.action
        self.velocity = torch.stack([self.velocity[:, 1], change], dim=1)
        self.q = self.q + change
        self.episode_length_buf = self.episode_length_buf + 1
        dones = self.episode_length_buf >= self.max_episode_length
        rewards = 1.0 - self.q.square().sum(-1)
        if dones.any():
            self.reset(int(self.episode_length_buf[0]))
        return self.get_observations(), rewards, dones.long(), {"time_outs": dones}

    def close(self) -> None:
        """Nothing is open."""
