"""A regulator that is seen: its two-dimensional state is where a bright dot is in an image."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from toy_env import RegulatorEnv, Stateless

from foundation.policies.output import PolicyOutput

SIDE = 12
"""Height and width of the image [pixels]."""


class DotEnv(RegulatorEnv):
    """The regulator; the group ``camera`` is an image of its state as bytes, (1, 12, 12), ``policy`` its state.

    The state from -3 to 3 in each direction is the whole image; the dot is a Gaussian of 1.2 pixels. ``speed`` is the
    time in the episode, which says nothing about where to go.
    """

    dtype = torch.uint8
    side = SIDE

    def get_observations(self) -> TensorDict:
        place = (self.state.clamp(-3.0, 3.0) / 3.0 + 1.0) * 0.5 * (self.side - 1)
        axis = torch.arange(self.side)
        rows = (-0.5 * ((axis - place[:, :1]) / 1.2).square()).exp()
        columns = (-0.5 * ((axis - place[:, 1:]) / 1.2).square()).exp()
        image = (rows.unsqueeze(2) * columns.unsqueeze(1)).unsqueeze(1)
        image = (image * 255.0).round().to(torch.uint8) if self.dtype == torch.uint8 else image.to(self.dtype)
        time = self.episode_length_buf.float().unsqueeze(-1) / self.max_episode_length
        groups = {"policy": self.state.clone(), "time": time, "camera": image}
        return TensorDict(groups, batch_size=[self.num_envs])


class HalfDotEnv(DotEnv):
    """The same, its image numbers from 0 to 1 of float16."""

    dtype = torch.float16


class DotTeacher(Stateless, torch.nn.Module):
    """Reads the state and drives it to the origin."""

    num_obs, num_actions = 2, 2

    def step(self, obs: torch.Tensor, state: torch.Tensor | None = None) -> tuple[PolicyOutput, None]:
        return PolicyOutput(-0.8 * obs), None
