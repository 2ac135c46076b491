"""Wrapper around a user's environment: check what it returns, and supply what RSL-RL does not require of it."""

from __future__ import annotations

import inspect
import logging
import random
from typing import Any, ClassVar, NoReturn, cast

import numpy as np
import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.core.text import quoted
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.engines.other_forms import is_batch, read_observations, read_step
from foundation.engines.video import EnvWrapper

logger = logging.getLogger(__name__)

ATTRIBUTES = ("num_envs", "num_actions", "max_episode_length", "episode_length_buf", "device")
METHODS = ("get_observations", "step")
MAX_STEPS = 2**31
"""Longest episode: one whose end does not come cannot be measured [env steps]."""
OBSERVATIONS = "a TensorDict of observation groups with batch_size [num_envs]"
STEP = "(TensorDict, rewards, dones, extras)"


_UNUSABLE = (torch.float64, torch.float16, torch.bfloat16, torch.complex64, torch.complex128)
"""Observations that no float32 policy computes on; integers and booleans are read as numbers, images of float16 too."""


class CheckedEnv(EnvWrapper):
    """Hold an environment to RSL-RL's ``VecEnv``, and add ``reset(seed)`` and ``close()`` where it has none.

    Its attributes are checked when it is made, each method's result when it is called for the first time. From then on
    ``step`` is the environment's own. What has another form but one meaning (a dictionary of groups, gymnasium's five
    values, rewards of shape (num_envs, 1)) is read as ``VecEnv``, and said once.

    Args:
        env: The user's environment.
        env_cfg: What it was made from; its ``cfg`` where it has none.

    Raises:
        UserError: Names the class, the method, what it returned and what is expected.
    """

    _told: ClassVar[set[tuple[type, str]]] = set()
    """Classes and methods that were logged already; a run makes several environments."""

    def __init__(self, env: Any, env_cfg: Any = None):
        super().__init__(env)
        self._name = type(env).__name__
        self._check_attributes()
        if not hasattr(env, "cfg"):
            self.cfg = env_cfg
        longest = env.max_episode_length
        if isinstance(longest, torch.Tensor) and longest.numel() > 1:  # RSL-RL allows one for each environment
            self.max_episode_length = int(longest.max())
        self._observed: set[str] = set()
        """Methods whose observations have been checked."""
        self._sizes: dict[str, tuple[int, ...]] = {}
        """Of the observation groups that were seen first."""
        self._reset_takes_seed = self._find_reset()

    # -- attributes ------------------------------------------------------------------------------------------------

    def _check_attributes(self) -> None:
        env = self.env
        missing = [name for name in ATTRIBUTES if not hasattr(env, name)]
        missing += [f"{name}()" for name in METHODS if not callable(getattr(env, name, None))]
        if missing:
            raise UserError(
                f"{self._name} has no {', '.join(missing)}: an environment must have {', '.join(ATTRIBUTES)}, "
                f"get_observations() and step(actions), as rsl_rl.env.VecEnv"
            )
        for name in ("num_envs", "num_actions"):
            value = getattr(env, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise UserError(f"{self._name}.{name} must be a positive integer, got {_describe(value)}")
        self._check_longest(env.max_episode_length)
        try:
            torch.device(env.device)
        except (RuntimeError, TypeError):
            raise UserError(f"{self._name}.device must be a torch device, such as 'cpu', got {env.device!r}") from None
        lengths = env.episode_length_buf
        if not isinstance(lengths, torch.Tensor) or lengths.shape != (env.num_envs,):
            expected = f"a tensor of shape ({env.num_envs},) [env steps]"
            raise UserError(f"{self._name}.episode_length_buf must be {expected}, got {_describe(lengths)}")
        if lengths.is_complex() or not lengths.isfinite().all():
            raise UserError(f"{self._name}.episode_length_buf must be integers [env steps], got other numbers")
        index = EnvCapabilities.of(cast(VecEnv, env)).variant_index
        if index is not None and len(index) != env.num_envs:
            expected = f"integers, one for each environment ({env.num_envs})"
            raise UserError(f"{self._name}.variant_index must be {expected}, got {_describe(index)}")

    def _check_longest(self, longest: Any) -> None:
        if isinstance(longest, bool) or not isinstance(longest, int | float | np.number | torch.Tensor):
            raise UserError(f"{self._name}.max_episode_length must be an integer [env steps], got {_describe(longest)}")
        most = torch.as_tensor(longest).double()
        if most.numel() == 0 or not (most.isfinite() & (most >= 1)).all():
            got = longest if most.numel() == 1 else "nothing"
            if most.numel() > 1:
                got = f"as little as {most.min()}"
            raise UserError(f"{self._name}.max_episode_length must be 1 or more [env steps], got {got}")
        if (most > MAX_STEPS).any():
            raise UserError(f"{self._name}.max_episode_length must be at most {MAX_STEPS} [env steps], got {longest}")

    # -- stepping ---------------------------------------------------------------------------------------------------

    def get_observations(self) -> TensorDict:
        """Return the current observation groups, each (num_envs, ...)."""
        return self._read_observations(self.env.get_observations(), "get_observations()", OBSERVATIONS)

    def _read_observations(self, given: Any, method: str, expected: str) -> TensorDict:
        num_envs = self.env.num_envs
        obs, done = (given, []) if is_batch(given, num_envs) else read_observations(given, num_envs)
        if method not in self._observed:
            self._check_observations(obs, method, expected)
            self._observed.add(method)
            self._tell_read(method, done)
        return obs

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Advance every environment, and check what the first step returned.

        Args:
            actions: Shape: (num_envs, num_actions).

        Returns:
            Observation groups, rewards (num_envs,), dones (num_envs,), extras.
        """
        result, done = read_step(self.env.step(actions), self.env.num_envs)
        self._check_step(result)
        self._tell_read("step(actions)", done)
        self.step = self._read_step if done else self.env.step  # checked: the environment's own from here on
        return result

    def _read_step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        return read_step(self.env.step(actions), self.env.num_envs)[0]

    def _tell_read(self, method: str, done: list[str]) -> None:
        """Log once how the return value of a method is interpreted."""
        if done and (type(self.env), method) not in self._told:
            self._told.add((type(self.env), method))
            logger.warning("%s.%s: reading %s.", self._name, method, "; ".join(done))

    def _check_step(self, result: Any) -> None:
        if not isinstance(result, tuple | list) or len(result) != 4:
            advice = ""
            if isinstance(result, tuple) and len(result) == 5:
                advice = (
                    ", or (TensorDict, rewards, terminated, truncated, extras) with terminated and truncated of "
                    f"shape ({self.env.num_envs},) and dtype bool"
                )
            self._refuse("step(actions)", _describe(result), STEP + advice)
        obs, rewards, dones, extras = result
        self._check_observations(obs, "step(actions)", f"{OBSERVATIONS} first")
        self._check_per_env("rewards", rewards)
        if not rewards.is_floating_point():
            self._refuse("step(actions)", f"rewards of {rewards.dtype}", "floating point: rewards.float()")
        self._check_flags("dones", dones)
        if not isinstance(extras, dict):
            self._refuse("step(actions)", f"extras of {_describe(extras)}", "a dictionary")
        if extras.get("time_outs") is not None:
            self._check_flags("extras['time_outs']", extras["time_outs"])
        for name in ("log", "episode"):
            self._check_log(name, extras.get(name, {}))
        metrics = extras.get("episode_metrics")
        if metrics is not None and not isinstance(metrics, dict):
            self._refuse("step(actions)", f"extras['episode_metrics'] of {_describe(metrics)}", "a dictionary")
        for name, value in (metrics or {}).items():
            self._check_key("episode_metrics", name)
            self._check_per_env(f"extras['episode_metrics']['{name}']", value)

    def _check_observations(self, given: Any, method: str, expected: str) -> None:
        num_envs = self.env.num_envs
        obs: Any = given
        if not isinstance(given, TensorDict):
            if isinstance(obs, torch.Tensor):
                expected += ": TensorDict({'policy': obs}, batch_size=[self.num_envs])"
            elif isinstance(obs, dict):
                expected += f" or a dictionary of tensors of shape ({num_envs}, size), got {_describe_groups(obs)}"
            self._refuse(method, _describe(obs), expected)
        if tuple(obs.batch_size) != (num_envs,):
            got = f"a TensorDict with batch_size {list(obs.batch_size)}"
            self._refuse(method, got, f"batch_size [{num_envs}], as num_envs is {num_envs}")
        if not list(obs.keys()):
            self._refuse(method, "a TensorDict without groups", "one group or more, such as 'policy'")
        for group, value in obs.items():
            self._check_group(group, value, method)
        sizes = {str(group): tuple(value.shape) for group, value in obs.items()}
        self._sizes = self._sizes or sizes
        if sizes != self._sizes:
            self._refuse(method, f"groups {_list_sizes(sizes)}", f"{_list_sizes(self._sizes)}, as observed before")

    def _check_group(self, group: str, value: Any, method: str) -> None:
        num_envs = self.env.num_envs
        if not isinstance(value, torch.Tensor):
            self._refuse(method, f"group '{group}' of {_describe(value)}", f"a tensor ({num_envs}, size)")
        if value.ndim < 2 or value.numel() == 0:
            self._refuse(method, f"group '{group}' of {_describe(value)}", f"({num_envs}, size), as for all groups")
        if value.layout is not torch.strided:
            self._refuse(method, f"group '{group}' as a sparse tensor", f"a plain one: {group}.to_dense()")
        if value.device.type != torch.device(self.env.device).type:
            got = f"group '{group}' on {value.device}"
            self._refuse(method, got, f"it on the environment's device, {self.env.device}")
        is_half_image = value.dtype == torch.float16 and value.ndim == 4
        if value.dtype in _UNUSABLE and not is_half_image:
            self._refuse(method, f"group '{group}' of {value.dtype}", f"torch.float32: {group}.float()")

    def _check_flags(self, name: str, value: Any) -> None:
        self._check_per_env(name, value)
        if not ((value == 0) | (value == 1)).all():
            self._refuse("step(actions)", f"{name} of other values than 0 and 1", "dtype bool, or 0 and 1")

    def _check_log(self, name: str, log: Any) -> None:
        if not isinstance(log, dict):
            self._refuse("step(actions)", f"extras['{name}'] of {_describe(log)}", "a dictionary")
        for key, value in log.items():
            self._check_key(name, key)
            empty = isinstance(value, torch.Tensor) and value.numel() == 0
            if empty or not isinstance(value, int | float | np.number | torch.Tensor):
                self._refuse("step(actions)", f"extras['{name}']['{key}'] of {_describe(value)}", "a number")

    def _check_key(self, name: str, key: Any) -> None:
        if not isinstance(key, str):
            self._refuse("step(actions)", f"extras['{name}'] with the key {quoted(key)}", "names as keys")

    def _check_per_env(self, name: str, value: Any) -> None:
        num_envs = self.env.num_envs
        if not isinstance(value, torch.Tensor) or value.shape != (num_envs,):
            self._refuse("step(actions)", f"{name} of {_describe(value)}", f"a tensor of shape ({num_envs},)")
        if value.layout is not torch.strided:
            self._refuse("step(actions)", f"{name} as a sparse tensor", f"a plain one of shape ({num_envs},)")
        if value.is_complex():
            self._refuse("step(actions)", f"{name} of {value.dtype}", "floating point, or dtype bool")
        if value.device.type != torch.device(self.env.device).type:
            self._refuse(
                "step(actions)", f"{name} on {value.device}", f"them on the environment's device, {self.env.device}"
            )

    def _refuse(self, method: str, got: str, expected: str) -> NoReturn:
        raise UserError(f"{self._name}.{method} returned {got}; expected {expected}")

    # -- what RSL-RL does not ask for ----------------------------------------------------------------------------------

    def _find_reset(self) -> bool | None:
        """Return whether the environment's ``reset`` takes a seed, or None where there is none to call."""
        reset = getattr(self.env, "reset", None)
        if not callable(reset):
            return None
        try:
            parameters = inspect.signature(reset).parameters.values()
        except (TypeError, ValueError):  # a builtin has none
            return True
        if any(p.name == "seed" or p.kind is p.VAR_KEYWORD for p in parameters):
            return True
        needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        return None if needed else False

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment.

        Where the environment cannot do it, its episodes are ended by their time limit, in one step of zero actions.
        Where it takes no seed, the process's random numbers are seeded: it then repeats only what it draws from those.

        Args:
            seed: The same seed should give the same episodes; None continues the environment's random numbers.

        Returns:
            Observation groups.
        """
        if self._reset_takes_seed:
            return self._observations_of(self.env.reset(seed=seed))
        if (type(self.env), "reset(seed)") not in self._told:
            self._told.add((type(self.env), "reset(seed)"))
            how = "" if self._reset_takes_seed is not None else "its episodes are ended by episode_length_buf, and "
            logger.warning(
                "%s has no reset(seed): %sits random numbers are seeded through torch's, numpy's and Python's own "
                "generators. Episodes are the same for teacher and student only if it draws from those.",
                self._name,
                how,
            )
        if seed is not None:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
        if self._reset_takes_seed is not None:
            return self._observations_of(self.env.reset())
        return self._time_everyone_out()

    def _observations_of(self, result: Any) -> TensorDict:
        """Take the observations of what ``reset`` returned: them, ``(obs, info)`` as in gymnasium, or nothing."""
        obs: Any = result
        if isinstance(result, tuple) and len(result) == 2:
            obs = result[0]
        if obs is None:
            return self.get_observations()
        return self._read_observations(obs if is_batch(obs, self.env.num_envs) else result, "reset(seed)", OBSERVATIONS)

    def _time_everyone_out(self) -> TensorDict:
        env = self.env
        longest = int(self.max_episode_length)
        zero = torch.zeros(env.num_envs, env.num_actions, device=env.device)
        for length in (longest, longest - 1):  # whether it asks for >, >= or ==
            env.episode_length_buf = torch.full_like(env.episode_length_buf, length)
            obs, _, dones, _ = self.step(zero)
            if dones.bool().all():
                return obs
        raise UserError(
            f"{self._name} has no reset(seed), and its episodes do not end where episode_length_buf is set to "
            f"max_episode_length ({longest}): write reset(seed) -> TensorDict, which begins every episode anew"
        )

    def close(self) -> None:
        """Close the environment, if it has anything to close."""
        close = getattr(self.env, "close", None)
        if callable(close):
            close()


def _list_sizes(sizes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"'{name}' {size}" for name, size in list(sizes.items())[:8]) or "none"


def _describe_groups(groups: dict[Any, Any]) -> str:
    return ", ".join(f"'{name}': {_describe(value)}" for name, value in list(groups.items())[:8]) or "none"


def _describe(value: object) -> str:
    """Describe a value, with the shapes of its tensors."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, tuple | list):
        items = ", ".join(type(item).__name__ for item in list(value)[:8])
        return f"a {type(value).__name__} of {len(value)} ({items})"
    if value is None:
        return "None"
    return f"a {type(value).__name__}"
