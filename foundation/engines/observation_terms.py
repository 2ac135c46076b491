"""Names of the columns of observation groups: the environment's own, its observation manager's, or the task's."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium.envs.registration import EnvSpec
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.deploy.description import Field
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.tasks import load_entry_point, resolve_task

logger = logging.getLogger(__name__)

LAYOUT = "layout_entry_point"
"""Where a task registers what its observations and actions are: a function that returns group -> fields."""

Layout = Mapping[str, Sequence[Field]]
"""Observation group -> its fields in order; ``actions`` -> those of the action."""


def task_layout(spec: EnvSpec) -> Layout:
    """Return what a task says about its observations and actions; nothing where it says nothing."""
    return load_entry_point(spec, LAYOUT) if LAYOUT in spec.kwargs else {}


def observation_terms(env: VecEnv, task: str, obs: TensorDict) -> dict[str, tuple[Field, ...]]:
    """Return the terms of those observation groups whose columns have names.

    Args:
        env: The environment; it, or its observation manager (Isaac Lab, mjlab), may name them.
        task: The task, which may name them for every engine.
        obs: The environment's observations: names that do not fit their sizes are left out.
    """
    declared = {**_layout_of(task), **_managed(env), **EnvCapabilities.of(env).observation_terms}
    found: dict[str, tuple[Field, ...]] = {}
    for group, fields in declared.items():
        if group not in obs.keys() or obs[group].ndim != 2:  # noqa: SIM118  # a TensorDict supports `in` for its keys() only
            continue
        total = sum(field.size for field in fields)
        if total == obs[group].shape[-1]:
            found[group] = tuple(fields)
        else:
            logger.info("group '%s' has %d columns and its terms %d: unnamed", group, obs[group].shape[-1], total)
    return found


def _layout_of(task: str) -> Layout:
    try:
        return task_layout(resolve_task(task))
    except UserError:  # a task of an engine that keeps tasks of its own
        return {}


def _managed(env: VecEnv) -> dict[str, tuple[Field, ...]]:
    """Return the terms of an observation manager: names and shapes of what it concatenates."""
    manager: Any = getattr(getattr(env, "unwrapped", env), "observation_manager", None)
    names = getattr(manager, "active_terms", None)
    shapes = getattr(manager, "group_obs_term_dim", None)
    if not isinstance(names, Mapping) or not isinstance(shapes, Mapping):
        return {}
    found: dict[str, tuple[Field, ...]] = {}
    for group, terms in names.items():
        sizes = [math.prod(shape) for shape in shapes.get(group, ())]
        if len(sizes) == len(terms):
            found[str(group)] = tuple(Field(name=str(n), size=size) for n, size in zip(terms, sizes, strict=True))
    return found


def column_names(group: str, terms: Mapping[str, Sequence[Field]], obs: TensorDict) -> list[str]:
    """Return the name and unit of each column of a group, such as ``linear_velocity_0 [m/s]``.

    Args:
        group: The group; a column of one without terms is named after it.
        terms: What :func:`observation_terms` returned.
        obs: Observations of the environment.
    """
    names: list[str] = []
    for field in terms.get(group, (Field(name=group, size=obs[group].shape[-1]),)):
        unit = f" [{field.unit}]" if field.unit else ""
        names += [f"{field.name}{'' if field.size == 1 else f'_{index}'}{unit}" for index in range(field.size)]
    return names
