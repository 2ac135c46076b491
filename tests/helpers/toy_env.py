"""Environments small enough to compute by hand, with the contract of ``foundation.engines.base.VecEnv``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict

from foundation.policies.output import PolicyOutput


class CountingEnv:
    """Observations say which environment, episode and step they are; episode ``e`` of env ``i`` has a fixed length.

    ``policy`` is (env, episode, step in the episode); ``privileged`` is ``policy`` and the last action of env i. The
    reward of a step is 1 + (step in the episode), so that an episode of length L returns L (L + 1) / 2. An episode of
    ``max_episode_length`` steps ends by time-out, a shorter one terminates.

    Args:
        lengths: Lengths of the episodes of each environment, repeated for ever. Shape: (num_envs, num_episodes).
        max_episode_length: Length of an episode that ends by time-out.
    """

    num_actions = 2

    def __init__(self, lengths: Sequence[Sequence[int]], max_episode_length: int):
        self.lengths = torch.tensor(lengths)
        self.num_envs, self.max_episode_length, self.limit = len(lengths), max_episode_length, max_episode_length
        self.device = torch.device("cpu")
        self.cfg: dict[str, Any] = {}
        self.actions: list[torch.Tensor] = []
        self.seeds: list[int | None] = []
        self.reset(0)

    def reset(self, seed: int | None = None) -> TensorDict:
        self.seeds.append(seed)
        self.episode = torch.zeros(self.num_envs, dtype=torch.long)
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)
        self.last_action = torch.zeros(self.num_envs, self.num_actions)
        return self.get_observations()

    def get_observations(self) -> TensorDict:
        env = torch.arange(self.num_envs)
        policy = torch.stack([env, self.episode, self.episode_length_buf], dim=-1).float()
        groups = {"policy": policy, "privileged": torch.cat([policy, self.last_action], dim=-1)}
        return TensorDict(groups, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        self.actions.append(actions.clone())
        self.last_action = actions.clone()
        self.episode_length_buf = self.episode_length_buf + 1
        rewards = self.episode_length_buf.float()
        planned = self.lengths.gather(1, (self.episode % self.lengths.shape[1]).unsqueeze(1)).squeeze(1)
        dones = self.episode_length_buf >= planned.clamp_max(self.limit)
        time_outs = dones & (self.episode_length_buf >= self.limit)
        metrics = {"last_step": self.episode_length_buf.float().clone()}
        self.episode = self.episode + dones
        self.episode_length_buf = self.episode_length_buf * ~dones
        extras = {"time_outs": time_outs, "episode_metrics": metrics, "log": {"Metrics/two": 2.0}}
        return self.get_observations(), rewards, dones.long(), extras

    def close(self) -> None:
        """Nothing is open."""


class RegulatorEnv:
    """A two-dimensional linear system to be driven to the origin; the teacher ``a = -0.8 s`` does it well.

    s' = s + 0.5 a + 0.1 (s_2, -s_1); reward 1 - |s'|^2 + 0.5 [terminated]; an episode terminates where |s_1| > 3 and
    ends by time-out after ``max_episode_length`` steps. ``policy`` is s, ``privileged`` is (s, time in the episode).
    """

    num_actions = 2

    def __init__(self, num_envs: int, max_episode_length: int = 12):
        self.num_envs, self.max_episode_length = num_envs, max_episode_length
        self.device = torch.device("cpu")
        self.cfg: dict[str, Any] = {}
        self.generator = torch.Generator()
        self.reset(0)

    def _draw(self) -> torch.Tensor:
        return torch.rand(self.num_envs, 2, generator=self.generator) * 4.0 - 2.0

    def reset(self, seed: int | None = None) -> TensorDict:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.state = self._draw()
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)
        return self.get_observations()

    def get_observations(self) -> TensorDict:
        time = self.episode_length_buf.float().unsqueeze(-1) / self.max_episode_length
        groups = {"policy": self.state.clone(), "privileged": torch.cat([self.state, time], dim=-1)}
        return TensorDict(groups, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        s = self.state
        swirl = torch.stack([s[:, 1], -s[:, 0]], dim=-1)
        s = s + 0.5 * actions.clamp(-4.0, 4.0) + 0.1 * swirl
        self.episode_length_buf = self.episode_length_buf + 1
        terminated = s[:, 0].abs() > 3.0
        time_outs = (self.episode_length_buf >= self.max_episode_length) & ~terminated
        dones = terminated | time_outs
        rewards = 1.0 - s.square().sum(-1) + 0.5 * terminated
        self.state = torch.where(dones.unsqueeze(-1), self._draw(), s)
        self.episode_length_buf = self.episode_length_buf * ~dones
        extras = {"time_outs": time_outs, "episode_metrics": {"position_error": s.norm(dim=-1)}, "log": {}}
        return self.get_observations(), rewards, dones.long(), extras

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {
            "state": self.state.clone(),
            "episode_length_buf": self.episode_length_buf.clone(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, saved: dict[str, torch.Tensor]) -> None:
        self.state = saved["state"].clone()
        self.episode_length_buf = saved["episode_length_buf"].clone()
        self.generator.set_state(saved["generator"])

    def close(self) -> None:
        """Nothing is open."""


class Stateless:
    """A policy without memory, beside ``torch.nn.Module``."""

    state_size = 0

    def initial_state(self, num_envs: int, device: Any = None) -> None:
        return None

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> None:
        return None

    @property
    def num_parameters(self) -> int:
        """Numbers in its weights."""
        return sum(parameter.numel() for parameter in self.parameters()) if isinstance(self, torch.nn.Module) else 0


class LinearTeacher(Stateless, torch.nn.Module):
    """A teacher ``mean = obs @ gain + offset``, with a value and an optional std."""

    def __init__(self, gain: torch.Tensor, offset: float = 0.0, std: float | None = None):
        super().__init__()
        self.gain = torch.nn.Parameter(gain, requires_grad=False)
        self.offset, self.std = offset, std
        self.num_obs, self.num_actions = gain.shape

    def step(self, obs: torch.Tensor, state: torch.Tensor | None = None) -> tuple[PolicyOutput, None]:
        mean = obs @ self.gain + self.offset
        std = None if self.std is None else torch.full_like(mean, self.std)
        return PolicyOutput(mean, std, mean.sum(-1, keepdim=True)), None


class ConstantStudent(Stateless, torch.nn.Module):
    """A student that plays one action, whatever it sees."""

    def __init__(self, num_obs: int, action: Sequence[float]):
        super().__init__()
        self.num_obs, self.num_actions = num_obs, len(action)
        self.action = torch.nn.Parameter(torch.tensor(action))

    def step(self, obs: torch.Tensor, state: torch.Tensor | None = None) -> tuple[PolicyOutput, None]:
        return PolicyOutput(self.action.expand(obs.shape[0], -1)), None


class CountingPolicy:
    """A policy with memory: the number of steps since its episode began, which is also what it plays."""

    state_size = 1

    def __init__(self, num_obs: int, num_actions: int = 2):
        self.num_obs, self.num_actions = num_obs, num_actions

    def initial_state(self, num_envs: int, device: Any = None) -> torch.Tensor:
        return torch.zeros(num_envs, 1)

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        return None if state is None else torch.where(dones.bool().unsqueeze(-1), torch.zeros_like(state), state)

    def step(self, obs: torch.Tensor, state: torch.Tensor | None = None) -> tuple[PolicyOutput, torch.Tensor]:
        assert state is not None
        return PolicyOutput(state.expand(-1, self.num_actions)), state + 1.0


REGULATOR_GAIN = torch.tensor([[-0.8, 0.0], [0.0, -0.8]])
