"""An Isaac Lab environment as the ``VecEnv`` that everything else relies on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict

from foundation.engines.isaaclab_bodies import QUANTITIES, IsaacLabBodies
from foundation.engines.random_state import RandomState


class IsaacLabVecEnv:
    """Isaac Lab's ``RslRlVecEnvWrapper``, with the promises that it does not make itself.

    * ``get_observations`` is a pure read: it returns what ``reset`` or ``step`` returned (a manager-based environment
      would draw its noise again, a converted multi-agent one of Isaac Lab 2.3 has no such method).
    * ``reset(seed)`` starts every episode anew, and the same seed gives the same episodes.
    * ``extras`` is a dictionary of its own for every step, with ``time_outs`` always there.
    * Gradients are off around the simulator, and no tensor is made under inference mode.
    """

    one_per_process = True

    def __init__(self, wrapper: Any, random_state: RandomState):
        """Take over an ``RslRlVecEnvWrapper`` that has just been made."""
        self._wrapper = wrapper
        self._random = random_state
        self._env = wrapper.env
        inner = self._env.unwrapped
        self._lengths_owner = inner if hasattr(inner, "episode_length_buf") else inner.env
        """The environment that counts; a converted multi-agent one of Isaac Lab 2.3 keeps it one level down."""
        self.num_envs = int(wrapper.num_envs)
        self.num_actions = int(wrapper.num_actions)
        self.max_episode_length = int(wrapper.max_episode_length)
        self.device = wrapper.device
        self.cfg = wrapper.cfg
        self._finite_horizon = bool(getattr(self.cfg, "is_finite_horizon", False))
        self._observations: TensorDict | None = None
        self._closed = False
        self._bodies = None if getattr(inner, "perturbations", None) else IsaacLabBodies.of(self._lengths_owner)
        self.perturbations = getattr(inner, "perturbations", None) or ({} if self._bodies is None else QUANTITIES)
        """What :meth:`perturb` can vary: what the task declares, else the bodies' own parameters."""
        self.reset()

    @property
    def unwrapped(self) -> Any:
        """The bare Isaac Lab environment."""
        return self._env.unwrapped

    @property
    def episode_length_buf(self) -> torch.Tensor:
        """Steps into the current episode. Shape: (num_envs,)."""
        return self._lengths_owner.episode_length_buf

    @episode_length_buf.setter
    def episode_length_buf(self, value: torch.Tensor) -> None:
        self._lengths_owner.episode_length_buf.copy_(value)

    def __getattr__(self, name: str) -> Any:
        """Offer what a task adds to its environment, such as ``position_fields``."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._env.unwrapped, name)

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment.

        Args:
            seed: Restarts the environment's random numbers; None continues them.

        Returns:
            Observation groups.
        """
        with self._random.active():
            groups, _ = self._env.reset(seed=seed)
        return self._observe(groups)

    def perturb(self, values: Mapping[str, float]) -> None:
        """Vary the simulation from the next reset on; what is not named is nominal again.

        Args:
            values: Names of ``perturbations`` and the values that they take.
        """
        if self._bodies is not None:
            self._bodies.perturb(values)
        elif self.perturbations:
            self._env.unwrapped.perturb(values)

    def get_observations(self) -> TensorDict:
        """Return the observation groups of the last step or reset."""
        assert self._observations is not None
        return self._observations

    @torch.no_grad()
    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance every environment; those that end begin a new episode at once.

        Args:
            actions: Clipped to the agent's ``clip_actions``. Shape: (num_envs, num_actions).

        Returns:
            Observation groups, rewards (num_envs,), dones (num_envs,), extras.
        """
        with self._random.active():
            groups, rewards, dones, extras = self._wrapper.step(actions.to(self.device))
        extras = dict(extras)
        if "time_outs" in extras:
            extras["time_outs"] = extras["time_outs"].clone()  # Isaac Lab's buffer, and so are the rewards
        else:
            self._add_time_outs(extras)
        return self._observe(groups), rewards.clone(), dones, extras

    def _add_time_outs(self, extras: dict[str, Any]) -> None:
        """Serve a task of finite horizon, whose time-outs are ends like any other: nothing is bootstrapped from them.

        ``time_outs`` is then false, and reaching the end of the time is the task's ``success`` unless it has its own.
        """
        truncated = getattr(self._lengths_owner, "reset_time_outs", None)
        extras["time_outs"] = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        if isinstance(truncated, torch.Tensor):
            extras["episode_metrics"] = {"success": truncated.clone(), **extras.get("episode_metrics", {})}

    def _observe(self, groups: Any) -> TensorDict:
        self._observations = TensorDict(dict(groups.items()), batch_size=[self.num_envs], device=self.device)
        return self._observations

    def close(self) -> None:
        """Close the environment; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._wrapper.close()
