"""A gymnasium vector environment as the ``VecEnv`` that everything else relies on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium import error
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from gymnasium.wrappers import TimeLimit
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.engines.envpool_vec_env import EnvpoolVectorEnv
from foundation.engines.gymnasium_cfg import INSTALL, GymnasiumEnvCfg
from foundation.engines.gymnasium_spaces import Observations, make_actions
from foundation.engines.mujoco_models import QUANTITIES, MujocoModels

LEAST_HEIGHT = 336
"""About the height that small frames are enlarged to in videos [pixels]."""


class GymnasiumVecEnv:
    """A gymnasium ``VectorEnv`` with the promises of :class:`foundation.engines.base.VecEnv`.

    Whatever the autoreset mode, a step returns the observations of the new episodes where one has ended, and
    ``extras["final_observations"]`` has the last ones of the old (valid where done; absent where no episode ended).
    ``time_outs`` are truncations that are no terminations. ``success`` is the task's ``is_success``, else a return of
    at least the registered ``reward_threshold``, else a time-out.

    Args:
        vector: The vector environment, just made.
        spec: The task.
        cfg: What it was made from.
        max_episode_length: Time limit [env steps].
    """

    def __init__(self, vector: VectorEnv, spec: EnvSpec, cfg: GymnasiumEnvCfg, max_episode_length: int):
        self._vector = vector
        self._spec = spec
        self.cfg = cfg
        self.num_envs = int(vector.num_envs)
        self.device = torch.device(cfg.sim.device)
        self.max_episode_length = int(max_episode_length)
        self._closed = False
        self._mode = _autoreset_mode(vector, spec)
        self._observations = Observations(vector.single_observation_space, spec.id)
        self._actions = make_actions(vector.single_action_space, spec.id, cfg.actions)
        self.num_actions = self._actions.size
        self.action_choices = self._actions.choices
        self.action_range = self._actions.range
        self.solved_return = None if spec.reward_threshold is None else float(spec.reward_threshold)
        rate = vector.metadata.get("render_fps")
        self.step_dt = 1.0 / rate if rate else None
        self.metadata = dict(vector.metadata)
        here = list(vector.envs) if isinstance(vector, SyncVectorEnv) else []
        self._limits = [_time_limit(env) for env in here]
        self._models = MujocoModels.of(here)
        self.perturbations = QUANTITIES if self._models is not None else {}
        self._lengths = torch.zeros(self.num_envs, dtype=torch.long, device=self.device)
        self._returns = np.zeros(self.num_envs)
        self._obs: TensorDict
        self._infos: Mapping[str, Any] = {}
        self.reset(cfg.seed)
        has_limit = spec.max_episode_steps is not None or cfg.max_episode_steps is not None
        self._knows_success = has_limit or self.solved_return is not None or "is_success" in self._infos

    @property
    def episode_length_buf(self) -> torch.Tensor:
        """Steps into the current episodes. Shape: (num_envs,).

        Assigning moves the time limits where gymnasium keeps them (``TimeLimit``). A simulator's own limit, as Atari's,
        stays, and the assignment does nothing.
        """
        return self._lengths

    @episode_length_buf.setter
    def episode_length_buf(self, value: torch.Tensor) -> None:
        steps = value.tolist()
        if isinstance(self._vector, AsyncVectorEnv):
            self._vector.set_attr("_elapsed_steps", [int(step) for step in steps])
        elif self._limits and all(limit is not None for limit in self._limits):
            for limit, step in zip(self._limits, steps, strict=True):
                cast(TimeLimit, limit)._elapsed_steps = int(step)
        else:
            return
        self._lengths = value.to(self.device, torch.long, copy=True)

    def get_observations(self) -> TensorDict:
        """Return the observation groups of the last step or reset."""
        return self._obs

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment.

        Args:
            seed: Environment i is seeded by the i-th number that ``numpy.random.SeedSequence(seed)`` generates, so that
                neighbouring seeds share no episodes. None continues the environments' random numbers.

        Returns:
            Observation groups.
        """
        obs, self._infos = self._vector.reset(seed=None if seed is None else self._seeds(seed))
        self._lengths = torch.zeros_like(self._lengths)
        self._returns[:] = 0.0
        return self._keep(self._observations(obs))

    def perturb(self, values: Mapping[str, float]) -> None:
        """Vary the models of MuJoCo's environments from the next reset on; what is not named is nominal again."""
        if self._models is not None:
            self._models.perturb(values)

    def _seeds(self, seed: int) -> Any:
        """Return one seed for each environment, in the form that the vector environment takes."""
        takes_each = isinstance(self._vector, SyncVectorEnv | AsyncVectorEnv | EnvpoolVectorEnv)
        if not takes_each and not _is_atari(self._vector):
            return seed
        numbers = seeds_of(seed, self.num_envs)
        return np.array(numbers) if _is_atari(self._vector) else numbers

    @torch.no_grad()
    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance every environment; those that end begin a new episode at once.

        Args:
            actions: Indices of choices, or continuous actions (see ``env.actions``). Shape: (num_envs, num_actions).

        Returns:
            Observation groups, rewards (num_envs,), dones (num_envs,), extras.
        """
        obs, rewards, terminated, truncated, infos = self._vector.step(self._actions(actions))
        ended = np.asarray(terminated | truncated, dtype=bool)
        time_outs = np.asarray(truncated & ~terminated, dtype=bool)
        self._returns += rewards
        success = self._success(infos, time_outs)
        groups = self._observations(obs)
        extras: dict[str, Any] = {}
        if self._knows_success:
            extras["episode_metrics"] = {"success": self._tensor(success)}
        if self._knows_success or time_outs.any():
            extras["time_outs"] = self._tensor(time_outs)
        if ended.any():
            if self._mode is AutoresetMode.SAME_STEP:
                final = self._final_of(infos["final_obs"], groups, ended)
            else:
                final = groups
                reset_obs, _ = self._vector.reset(options={"reset_mask": ended.copy()})
                groups = self._observations(reset_obs)
            extras["final_observations"] = self._tensors(final)
            self._returns[ended] = 0.0
        dones = self._tensor(ended)
        self._lengths = (self._lengths + 1) * ~dones
        return self._keep(groups), self._tensor(np.asarray(rewards, dtype=np.float32)), dones, extras

    def _success(self, infos: Mapping[str, Any], time_outs: np.ndarray) -> np.ndarray:
        """Return whether an episode that ends now has succeeded. Shape: (num_envs,)."""
        last = infos.get("final_info") if self._mode is AutoresetMode.SAME_STEP else infos
        flags = last.get("is_success") if isinstance(last, Mapping) else None
        if isinstance(flags, np.ndarray) and flags.shape == (self.num_envs,):
            return flags.astype(bool)
        if self.solved_return is not None:
            return self._returns >= self.solved_return - 1e-6
        return time_outs

    def _final_of(self, final_obs: Any, groups: dict[str, np.ndarray], ended: np.ndarray) -> dict[str, np.ndarray]:
        """Put the last observations of the episodes that ended beside those of the others."""
        last = final_obs[ended]
        if last.dtype == object:
            space = self._vector.single_observation_space
            last = concatenate(space, tuple(last), create_empty_array(space, n=len(last), fn=np.zeros))
        final = {name: group.copy() for name, group in groups.items()}
        for name, group in self._observations(last).items():
            final[name][ended] = group
        return final

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _tensors(self, groups: Mapping[str, np.ndarray]) -> TensorDict:
        tensors = {name: self._tensor(group) for name, group in groups.items()}
        return TensorDict(tensors, batch_size=[self.num_envs], device=self.device)

    def _keep(self, groups: Mapping[str, np.ndarray]) -> TensorDict:
        self._obs = self._tensors(groups)
        return self._obs

    def render(self) -> np.ndarray:
        """Return the image of the first environment, uint8 of shape (height, width, 3).

        ``AtariVectorEnv`` draws nothing: its image is the newest frame of the observation, enlarged.
        """
        if _is_atari(self._vector):
            return self._newest_frame()
        if self._vector.render_mode is None:
            raise UserError(f"{self._spec.id} was made without rendering: give --video")
        try:
            if isinstance(self._vector, SyncVectorEnv):
                image = self._vector.envs[0].render()
            else:
                frames = self._vector.render()
                image = None if frames is None else frames[0]
        except error.DependencyNotInstalled as failure:
            raise UserError(f"--video: {one_line(failure)}; {INSTALL} has what drawing needs") from failure
        except (NotImplementedError, AttributeError) as failure:
            other = "; env.vectorization=sync draws" if not isinstance(self._vector, SyncVectorEnv) else ""
            raise UserError(f"--video: {self._spec.id} cannot be drawn ({one_line(failure)}){other}") from failure
        image = np.asarray(image)
        if image.dtype != np.uint8 and image.dtype.kind == "f":  # colours from 0 to 1
            image = (image.clip(0.0, 1.0) * 255).astype(np.uint8)
        return image

    def _newest_frame(self) -> np.ndarray:
        shape = cast(tuple[int, ...], self._vector.single_observation_space.shape)
        frame = self._obs["policy"][0].cpu().numpy().reshape(shape)[-1]
        if frame.ndim == 2:  # grey
            frame = np.stack([frame] * 3, axis=-1)
        factor = max(1, round(LEAST_HEIGHT / len(frame)))
        return frame.repeat(factor, axis=0).repeat(factor, axis=1)

    def close(self) -> None:
        """Close the environments; a second time does nothing."""
        if not self._closed:
            self._closed = True
            self._vector.close()


def seeds_of(seed: int, num_envs: int) -> list[int]:
    """Return independent seeds for environments; the first of them are the same for any number of environments."""
    return [int(word) >> 1 for word in np.random.SeedSequence(seed).generate_state(num_envs)]


def _is_atari(vector: VectorEnv) -> bool:
    return type(vector).__module__.partition(".")[0] == "ale_py"


def _autoreset_mode(vector: VectorEnv, spec: EnvSpec) -> AutoresetMode:
    """Return how a vector environment begins new episodes.

    Raises:
        UserError: If it does so in a step of its own, and cannot be asked to reset some of its environments instead.
    """
    mode = vector.metadata.get("autoreset_mode")
    if not isinstance(mode, AutoresetMode):
        raise UserError(
            f"the vector environment of {spec.id} does not declare its autoreset mode: use env.vectorization=sync"
        )
    knows_masks = isinstance(vector, SyncVectorEnv | AsyncVectorEnv) or _is_atari(vector)
    if mode is not AutoresetMode.SAME_STEP and not knows_masks:
        raise UserError(
            f"the vector environment of {spec.id} begins a new episode in a step whose action it ignores, and which "
            "would be learned from: use env.vectorization=sync"
        )
    return mode


def _time_limit(env: gymnasium.Env) -> TimeLimit | None:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, TimeLimit):
            return env
        env = env.env
    return None
