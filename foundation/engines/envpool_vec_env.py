"""envpool's environments, C++ threads that step many at once, as a gymnasium ``VectorEnv``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from foundation.core.errors import UserError
from foundation.core.text import one_line

ATARI = "ALE/"
"""Namespace of gymnasium's Atari ids, which envpool leaves out."""


class EnvpoolVectorEnv(VectorEnv):
    """A pool that begins a new episode in the step that ends one.

    envpool itself would do so in a step of its own, whose action it ignores: here the environments that have ended are
    reset by their numbers at once.

    Args:
        task: Gymnasium's id; ``ALE/Pong-v5`` is envpool's ``Pong-v5``.
        num_envs: Number of environments.
        max_episode_steps: Time limit [env steps]; None: envpool's own.
        render_fps: Env steps a second in a video, by gymnasium's environment of the same id; None: not known.
        options: envpool's own settings.

    Raises:
        UserError: If envpool is missing, or has no such task or setting.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        task: str,
        num_envs: int,
        max_episode_steps: int | None,
        render_fps: float | None,
        options: dict[str, Any],
    ):
        self._package = _import_envpool()
        self._task = task.removeprefix(ATARI)
        self._options = (
            dict(options) if max_episode_steps is None else options | {"max_episode_steps": max_episode_steps}
        )
        self.num_envs = num_envs
        if self._task not in self._package.list_all_envs():
            raise UserError(f"env.vectorization=envpool: envpool has no {self._task}; use sync")
        self._pool = self._make(list(range(num_envs)))
        self.single_observation_space = self._pool.observation_space
        self.single_action_space = self._pool.action_space
        self.metadata = self.metadata | ({} if render_fps is None else {"render_fps": render_fps})  # pyright: ignore

    def _make(self, seeds: Sequence[int]) -> Any:
        try:
            return self._package.make(
                self._task, env_type="gymnasium", num_envs=self.num_envs, seed=list(seeds), **self._options
            )
        except (TypeError, ValueError, AssertionError, RuntimeError) as failure:
            given = ", ".join(f"{name}={value}" for name, value in self._options.items())
            raise UserError(
                f"env.vectorization=envpool: {self._task} cannot be made with {given}: {one_line(failure)}"
            ) from failure

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin new episodes everywhere; seeds, one for each, make the pool anew, which cannot be seeded later."""
        if isinstance(seed, Sequence):
            self._pool.close()
            self._pool = self._make([int(number or 0) for number in seed])
        obs, info = self._pool.reset()
        return obs[np.argsort(info["env_id"])], {}

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Step every environment; observations are those of new episodes where one has ended."""
        obs, rewards, terminated, truncated, info = self._pool.step(actions.astype(self._action_type, copy=False))
        order = np.argsort(info["env_id"])
        obs, rewards, terminated, truncated = (part[order] for part in (obs, rewards, terminated, truncated))
        ended = terminated | truncated
        if not ended.any():
            return obs, rewards, terminated, truncated, {}
        begun, of = self._pool.reset(np.flatnonzero(ended).astype(np.int32))
        final = obs
        obs = obs.copy()
        obs[of["env_id"]] = begun
        return obs, rewards, terminated, truncated, {"final_obs": final}

    @property
    def _action_type(self) -> np.dtype[Any]:
        dtype = np.dtype(self.single_action_space.dtype)
        return np.dtype(np.int32) if dtype.kind in "iu" else dtype

    def close_extras(self, **kwargs: Any) -> None:
        """Stop its threads."""
        self._pool.close()


def _import_envpool() -> Any:
    try:
        return importlib.import_module("envpool")
    except ModuleNotFoundError as failure:
        raise UserError(
            "env.vectorization=envpool: the Python package 'envpool' is not installed: pip install envpool, or use sync"
        ) from failure
    except Exception as failure:  # its import reads files of games, which a broken installation lacks
        raise UserError(
            f"env.vectorization=envpool: envpool cannot be imported ({one_line(failure)}); use sync"
        ) from failure
