"""Two environments as one: most of its environments run one task, and the others keep running another one."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.engines.base import VecEnv, saves_state
from foundation.engines.video import EnvWrapper


class SideBySide(EnvWrapper):
    """The environments of two tasks in one tensor; what it declares beside them is the first one's.

    Those of the second are spread evenly, so that a minibatch of neighbouring environments has both tasks.

    Args:
        first: The task that is learned.
        second: The other task, with the same actions and the first one's observation groups.

    Raises:
        UserError: If groups, sizes or actions differ.
    """

    def __init__(self, first: VecEnv, second: VecEnv):
        super().__init__(first)
        self.second = second
        self.device = first.device
        self.num_envs = first.num_envs + second.num_envs
        self.max_episode_length = max(int(first.max_episode_length), int(second.max_episode_length))
        if first.num_actions != second.num_actions:
            raise UserError(
                f"the old task has {second.num_actions} actions and the new one {first.num_actions}: they cannot be "
                "one policy's"
            )
        ours = _sizes(first.get_observations())
        theirs = _sizes(second.get_observations())
        self.groups = [name for name in ours if ours[name] == theirs.get(name)]
        """The observation groups that both have, of the same size."""
        if not self.groups:
            raise UserError(f"the tasks share no observation group: the new one has {ours}, the old one {theirs}")
        self.is_second = torch.zeros(self.num_envs, dtype=torch.bool, device=torch.device(self.device))
        """True where the second task runs. Shape: (num_envs,)."""
        places = (torch.arange(second.num_envs) * self.num_envs) // second.num_envs
        self.is_second[places.to(self.is_second.device)] = True
        self._first_places = (~self.is_second).nonzero().squeeze(-1)
        self._second_places = self.is_second.nonzero().squeeze(-1)

    def _joined(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Return values of both tasks' environments, in order. Shape: (num_envs, ...)."""
        out = first.new_empty((self.num_envs, *first.shape[1:]))
        out[self._first_places] = first
        out[self._second_places] = second.to(out)
        return out

    def _join(self, first: TensorDict, second: TensorDict) -> TensorDict:
        values = {name: self._joined(first[name], second[name]) for name in self.groups}
        return TensorDict(values, batch_size=[self.num_envs], device=torch.device(self.device))

    @property
    def episode_length_buf(self) -> torch.Tensor:
        """Steps of the current episodes. Shape: (num_envs,)."""
        return self._joined(self.env.episode_length_buf, self.second.episode_length_buf)

    @episode_length_buf.setter
    def episode_length_buf(self, value: torch.Tensor) -> None:
        for env, places in ((self.env, self._first_places), (self.second, self._second_places)):
            env.episode_length_buf = value[places].clamp_max(int(env.max_episode_length) - 1)

    def get_observations(self) -> TensorDict:
        """Return the groups that both tasks have."""
        return self._join(self.env.get_observations(), self.second.get_observations())

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment."""
        return self._join(self.env.reset(seed), self.second.reset(seed))

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance every environment. Shape of actions: (num_envs, num_actions)."""
        first = self.env.step(actions[self._first_places])
        second = self.second.step(actions[self._second_places])
        extras: dict[str, Any] = {"log": dict(first[3].get("log") or {})}
        extras["log"] |= {f"old_task/{name}": value for name, value in (second[3].get("log") or {}).items()}
        if first[3].get("time_outs") is not None and second[3].get("time_outs") is not None:
            extras["time_outs"] = self._joined(first[3]["time_outs"], second[3]["time_outs"])
        metrics = [own[3].get("episode_metrics") or {} for own in (first, second)]
        common = {name: self._joined(metrics[0][name], metrics[1][name]) for name in metrics[0] if name in metrics[1]}
        if common:
            extras["episode_metrics"] = common
        return (
            self._join(first[0], second[0]),
            self._joined(first[1], second[1]),
            self._joined(first[2], second[2]),
            extras,
        )

    @property
    def state_dict(self) -> Any:
        """Return what saves the episodes in progress; None where one of the tasks cannot be saved."""
        return self._save if saves_state(self.env) and saves_state(self.second) else None

    @property
    def load_state_dict(self) -> Any:
        """Return what restores the episodes in progress; None where one of the tasks cannot."""
        return self._load if saves_state(self.env) and saves_state(self.second) else None

    def _save(self) -> dict[str, Any]:
        return {"first": self.env.state_dict(), "second": self.second.state_dict()}  # pyright: ignore  # they save

    def _load(self, state: dict[str, Any]) -> None:
        self.env.load_state_dict(state["first"])
        self.second.load_state_dict(state["second"])  # pyright: ignore  # they save

    def close(self) -> None:
        """Close both; a second call does nothing."""
        self.env.close()
        self.second.close()


def _sizes(obs: TensorDict) -> dict[str, tuple[int, ...]]:
    return {str(name): tuple(obs[name].shape[1:]) for name in obs.keys()}  # noqa: SIM118  # a TensorDict's
