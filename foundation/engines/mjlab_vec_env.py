"""A mjlab environment as the ``VecEnv`` that everything else relies on."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict

from foundation.config.env_state import EnvState
from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.engines.random_state import RandomState

_COMPARED_STEPS = 8
"""Steps on which graphs are compared with single kernels; in their midst, episodes of every second environment end."""


class MjlabVecEnv:
    """mjlab's ``ManagerBasedRlEnv`` with the promises of :class:`foundation.engines.base.VecEnv`.

    It is made with ``auto_reset`` off, so that the last observations of an episode are seen: where one has ended,
    ``extras["final_observations"]`` has them (valid where done), and what a step returns is the new episode's first.
    ``time_outs`` are truncations that are no terminations. Every result is the step's own; actions that are NaN or
    infinite, on which MuJoCo Warp goes on with finite rewards, are refused.

    Args:
        env: The environment, just made.
        random_state: The random numbers that it draws.
    """

    one_per_process = True

    def __init__(self, env: Any, random_state: RandomState):
        self._env = env
        self._random = random_state
        self.cfg = env.cfg
        self.num_envs = int(env.num_envs)
        self.num_actions = int(env.action_manager.total_action_dim)
        self.device = torch.device(env.device)
        self.step_dt = float(env.step_dt)
        self._observations: TensorDict
        self._closed = False
        self.reset()

    @property
    def unwrapped(self) -> Any:
        """The bare environment."""
        return self._env

    @property
    def max_episode_length(self) -> int:
        """Steps of the longest episode, which a change of ``cfg.episode_length_s`` changes."""
        return int(self._env.max_episode_length)

    @property
    def episode_length_buf(self) -> torch.Tensor:
        """Steps into the current episodes. Shape: (num_envs,)."""
        return self._env.episode_length_buf

    @episode_length_buf.setter
    def episode_length_buf(self, value: torch.Tensor) -> None:
        self._env.episode_length_buf.copy_(value)

    def __getattr__(self, name: str) -> Any:
        """Offer what a task adds to its environment, such as ``position_fields``."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._env, name)

    def use_graphs(self, wanted: bool) -> None:
        """Replay the simulator's kernels as graphs on the CPU, or launch them one by one as mjlab does there."""
        simulation = self._env.sim
        simulation.use_cuda_graph = wanted
        simulation.create_graph()

    def env_state(self) -> EnvState:
        """Return how far the curriculum has come."""
        terrain = self._leveled_terrain()
        levels = None if terrain is None else tuple(terrain.terrain_levels.tolist())
        return EnvState(int(self._env.common_step_counter), levels)

    def load_env_state(self, state: EnvState) -> None:
        """Go on with the curriculum from there, with a new episode in every environment."""
        self._env.common_step_counter = state.common_step_counter
        terrain = self._leveled_terrain()
        levels = state.levels_of(self.num_envs)
        if terrain is not None and levels is not None:
            _set_levels(terrain, torch.tensor(levels, device=self.device).clamp(max=terrain.max_terrain_level - 1))
        self.reset()

    def _leveled_terrain(self) -> Any:
        """Return the terrain if it has levels, which only a generated one has; else None."""
        terrain = self._env.scene.terrain
        return terrain if getattr(terrain, "terrain_origins", None) is not None else None

    @contextlib.contextmanager
    def _levels_kept(self) -> Iterator[None]:
        """Let a reset of all environments change no level of terrain: it ends no episode to judge a robot by.

        The terms of the curriculum that follow the env steps are brought up to date nevertheless.
        """
        terrain = self._leveled_terrain()
        if terrain is None:
            yield
            return
        levels = terrain.terrain_levels.clone()
        manager = self._env.curriculum_manager
        manager.compute()
        _set_levels(terrain, levels)
        manager.compute = lambda env_ids=None: None  # hides the method, which the reset calls
        try:
            yield
        finally:
            del manager.compute

    @torch.no_grad()
    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment.

        Args:
            seed: Restarts the environment's random numbers; None goes on with them.

        Returns:
            Observation groups.
        """
        quiet = contextlib.redirect_stdout(io.StringIO())  # it prints every seed
        with self._random.active(), quiet, self._levels_kept():
            groups, _ = self._env.reset(seed=seed)
            self._observations = self._tensors(_copied(groups))
        return self._observations

    def get_observations(self) -> TensorDict:
        """Return the observation groups of the last step or reset."""
        return self._observations

    @torch.no_grad()
    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance every environment; those that end begin a new episode at once.

        Args:
            actions: Shape: (num_envs, num_actions).

        Returns:
            Observation groups, rewards (num_envs,), dones (num_envs,), extras.
        """
        self._refuse_not_finite(actions)
        with self._random.active():
            groups, rewards, terminated, truncated, info = self._env.step(actions.to(self.device))
            observed = _copied(groups)
            extras: dict[str, Any] = {"log": dict(info.get("log") or {})}
            dones = terminated | truncated
            rewards = rewards.clone()
            timed_out = truncated & ~terminated
            if dones.any():
                extras["final_observations"] = self._tensors(observed)
                observed = self._begin_anew(dones, observed)
                extras["log"] |= self._env.extras["log"]  # of the episodes that have ended
        if self.cfg.is_finite_horizon:  # its time-outs are ends like any other: nothing is bootstrapped from them
            extras["episode_metrics"] = {"success": timed_out}
            timed_out = torch.zeros_like(timed_out)
        extras["time_outs"] = timed_out
        self._observations = self._tensors(observed)
        return self._observations, rewards, dones, extras

    def _refuse_not_finite(self, actions: torch.Tensor) -> None:
        finite = torch.isfinite(actions)
        if not finite.all():
            env, action = (~finite).nonzero()[0].tolist()
            raise UserError(
                f"step(actions): action {action} of environment {env} is {actions[env, action].item()}: the policy's "
                "weights or its observations are not finite"
            )

    def _begin_anew(self, dones: torch.Tensor, observed: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Reset the environments whose episode has ended; return what is observed then, by group."""
        ended = dones.nonzero().squeeze(-1)
        self._env.recorder_manager.record_pre_reset(ended)  # called by mjlab only where it resets by itself
        groups, _ = self._env.reset(env_ids=ended)
        first = _copied(groups)
        # The others keep what they have seen: reset() has computed it again, with other noise.
        return {name: torch.where(_like(dones, group), first[name], group) for name, group in observed.items()}

    def _tensors(self, groups: dict[str, torch.Tensor]) -> TensorDict:
        return TensorDict(groups, batch_size=[self.num_envs], device=self.device)

    def render(self) -> np.ndarray:
        """Return the image of the first environments, uint8 of shape (height, width, 3)."""
        try:
            image = self._env.render()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"--video: mjlab cannot draw here ({one_line(error)})") from error
        if image is None:
            raise UserError("the environment was made without rendering: give --video")
        return image

    def close(self) -> None:
        """Close the environment; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._env.close()


def _set_levels(terrain: Any, levels: torch.Tensor) -> None:
    """Give each environment a level of terrain, and the origin of that level. Shape of levels: (num_envs,)."""
    terrain.terrain_levels[:] = levels
    terrain.env_origins[:] = terrain.terrain_origins[terrain.terrain_levels, terrain.terrain_types]


def _copied(groups: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Copy observation groups; a group of single terms becomes one group ``group.term`` for each."""
    flat: dict[str, torch.Tensor] = {}
    for name, group in groups.items():
        if isinstance(group, Mapping):
            flat |= {f"{name}.{term}": value.clone() for term, value in group.items()}
        else:
            flat[name] = group.clone()
    return flat


def _like(flags: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Give flags the dimensions of a group. Shape: (num_envs, 1, ...)."""
    return flags.reshape(-1, *[1] * (group.ndim - 1))


def graphs_agree(build: Callable[[], MjlabVecEnv]) -> bool:
    """Return whether a task's steps have the same bits with the simulator's kernels in graphs and launched one by one.

    Args:
        build: Makes an environment of the task, which is closed afterwards.
    """
    runs = []
    for graphs in (False, True):
        env = build()
        try:
            env.use_graphs(graphs)
            runs.append(_trace(env))
        finally:
            env.close()
    return all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def _trace(env: MjlabVecEnv) -> list[Any]:
    """Return what some steps give, with ends of episodes among them."""
    generator = torch.Generator().manual_seed(0)
    results = list(env.reset(0).values())
    for step in range(_COMPARED_STEPS):
        if step == _COMPARED_STEPS // 2:
            lengths = env.episode_length_buf.clone()
            lengths[::2] = env.max_episode_length - 1
            env.episode_length_buf = lengths
        actions = torch.rand(env.num_envs, env.num_actions, generator=generator) * 2.0 - 1.0
        obs, rewards, dones, _ = env.step(actions)
        results += [*obs.values(), rewards, dones]
    return results
