"""Convert what environments of other libraries, and of older RSL-RL, return to the forms of ``VecEnv``.

Only what has one meaning is read; everything else comes back as it was, for the check to name it. Nothing here raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase

_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def read_observations(given: object, num_envs: int, extras: object = None) -> tuple[Any, list[str]]:
    """Read observation groups.

    Args:
        given: What a method returned for them: a TensorDict, a mapping of tensors, ``(obs, extras)``, or the policy's
            tensor with the groups in ``extras["observations"]``, as RSL-RL had it before 3.0.
        num_envs: Number of environments, the first dimension of every group.
        extras: The extras that came beside them.

    Returns:
        The groups, or ``given`` where it has no single meaning; and what was done, in words.
    """
    if isinstance(given, tuple) and len(given) == 2 and (given[1] is None or isinstance(given[1], Mapping)):
        groups, done = read_observations(given[0], num_envs, given[1])
        whole = is_batch(groups, num_envs)
        return (groups, ["(obs, extras) as obs", *done]) if whole else (given, [])
    if isinstance(given, torch.Tensor) and isinstance(extras, Mapping):
        groups = extras.get("observations")
        if isinstance(groups, Mapping) and _all_per_env(groups, num_envs) and _per_env(given, num_envs):
            named = {"policy": given, **groups}
            if torch.equal(named["policy"], given):
                return TensorDict(named, batch_size=[num_envs]), ["obs and extras['observations'] as a TensorDict"]
    if isinstance(given, Mapping | TensorDictBase) and not is_batch(given, num_envs):
        groups = dict(given.items())
        if _all_per_env(groups, num_envs):
            kind = "a TensorDict without batch_size" if isinstance(given, TensorDictBase) else "a dictionary"
            return TensorDict(groups, batch_size=[num_envs]), [f"{kind} as a TensorDict with batch_size [{num_envs}]"]
    return given, []


def read_step(given: object, num_envs: int) -> tuple[Any, list[str]]:
    """Read what ``step`` returned.

    Args:
        given: ``(obs, rewards, dones, extras)`` or gymnasium's ``(obs, rewards, terminated, truncated, extras)``; each
            value of the environments may have a second dimension of 1.
        num_envs: Number of environments.

    Returns:
        ``(obs, rewards, dones, extras)``, or ``given`` where it has no single meaning; and what was done, in words.
    """
    if not isinstance(given, tuple | list):
        return given, []
    done: list[str] = []
    values = list(given)
    if len(values) == 5 and all(_is_flag(value, num_envs) for value in values[2:4]) and isinstance(values[4], Mapping):
        terminated, truncated = (_squeezed(value, num_envs).bool() for value in values[2:4])
        extras = {"time_outs": truncated, **values[4]}
        values = [*values[:2], terminated | truncated, extras]
        done.append("terminated | truncated as dones, truncated as extras['time_outs']")
    if len(values) != 4:
        return given, []
    obs, rewards, dones, extras = values
    obs, read = read_observations(obs, num_envs, extras)
    done += read
    narrow = {"rewards": rewards, "dones": dones}
    flat = {name: _squeezed(value, num_envs) for name, value in narrow.items()}
    done += [f"{name} of shape ({num_envs}, 1) as ({num_envs},)" for name in flat if flat[name] is not narrow[name]]
    if isinstance(flat["rewards"], torch.Tensor) and flat["rewards"].dtype in _WHOLE:
        done.append(f"rewards of {flat['rewards'].dtype} as torch.float32")
        flat["rewards"] = flat["rewards"].float()
    if isinstance(extras, Mapping):
        extras, read = _read_extras(extras, num_envs)
        done += read
    return (obs, flat["rewards"], flat["dones"], extras), done


def _read_extras(given: Mapping[str, Any], num_envs: int) -> tuple[Mapping[str, Any], list[str]]:
    extras = dict(given)
    done: list[str] = []
    if "time_outs" in extras:
        extras["time_outs"] = _squeezed(given["time_outs"], num_envs)
        if extras["time_outs"] is not given["time_outs"]:
            done.append(f"extras['time_outs'] of shape ({num_envs}, 1) as ({num_envs},)")
    metrics = extras.get("episode_metrics")
    if isinstance(metrics, dict):
        extras["episode_metrics"] = {name: _squeezed(value, num_envs) for name, value in metrics.items()}
        changed = [name for name, value in metrics.items() if extras["episode_metrics"][name] is not value]
        done += [f"extras['episode_metrics']['{name}'] of shape ({num_envs}, 1) as ({num_envs},)" for name in changed]
    return (extras, done) if done else (given, [])


def is_batch(obs: object, num_envs: int) -> bool:
    """Return whether these are observation groups as ``VecEnv`` has them."""
    return isinstance(obs, TensorDict) and tuple(obs.batch_size) == (num_envs,)


def _per_env(value: object, num_envs: int) -> bool:
    return isinstance(value, torch.Tensor) and value.ndim > 1 and len(value) == num_envs


def _all_per_env(groups: Mapping[Any, Any], num_envs: int) -> bool:
    return bool(groups) and all(isinstance(k, str) and _per_env(value, num_envs) for k, value in groups.items())


def _is_flag(value: object, num_envs: int) -> bool:
    """Return whether this is one yes or no for each environment. Rewards and other numbers with a fraction are not."""
    shapes = ((num_envs,), (num_envs, 1))
    return isinstance(value, torch.Tensor) and tuple(value.shape) in shapes and not value.is_floating_point()


def _squeezed(value: object, num_envs: int) -> Any:
    """Take a second dimension of 1 away."""
    return value.squeeze(-1) if isinstance(value, torch.Tensor) and tuple(value.shape) == (num_envs, 1) else value
