"""The tasks of this project. Importing this package registers their gym ids; a new task is one new file or folder here.

A task's module registers itself with :func:`gymnasium.register` and the keyword arguments of Isaac Lab
(``env_cfg_entry_point``, ``rsl_rl_cfg_entry_point``, ...), beside one entry point per engine that can run it
(``torch_env_entry_point``).
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import gymnasium
from gymnasium.envs.registration import EnvSpec

from foundation.core.errors import UserError, suggest
from foundation.core.registry import resolve_attribute, resolve_module

CANNOT_IMPORT = "cannot import its module"
_LAUNCHING: ContextVar[str | None] = ContextVar("launching_engine", default=None)


@contextmanager
def launching(engine: str) -> Iterator[None]:
    """Set the engine that loads configurations inside the ``with`` block."""
    token = _LAUNCHING.set(engine)
    try:
        yield
    finally:
        _LAUNCHING.reset(token)


def launching_engine() -> str:
    """Name the engine that is loading a configuration.

    A task's entry points ask it, because a gym id is registered once while each engine has its own configuration.
    Outside :func:`launching` it is ``isaaclab`` where Isaac Lab is already running in this process, else ``torch``.
    """
    return _LAUNCHING.get() or ("isaaclab" if "isaaclab.sim" in sys.modules else "torch")


def why_not_registered(task: str, entry_point: str) -> str | None:
    """Return in a few words why an engine does not have a task, or None if it has.

    Args:
        task: A gym id or ``module:Id``.
        entry_point: The keyword argument that the engine needs.
    """
    try:
        spec = resolve_task(task)
    except UserError as error:
        broken = isinstance(error.__cause__, ImportError | SyntaxError)
        return CANNOT_IMPORT if broken else "does not know it"
    return None if entry_point in spec.kwargs else f"'{spec.id}' has no '{entry_point}'"


def resolve_task(task: str) -> EnvSpec:
    """Find a registered task.

    Args:
        task: A gym id, or ``module:Id``, whose module is imported first so that it can register (or replace) the id.

    Returns:
        Its gym specification.
    """
    module, _, name = task.rpartition(":")
    if module:
        resolve_module(task, "task", typed_as="--task")
    spec = gymnasium.registry.get(name)
    if spec is None:
        ids = [key for key, entry in gymnasium.registry.items() if "env_cfg_entry_point" in entry.kwargs]
        raise UserError(f"--task {task}: unknown task '{name}'. {suggest(name, ids)}")
    return spec


def load_entry_point(spec: EnvSpec, key: str) -> Any:
    """Resolve an entry point of a task and call it.

    Args:
        spec: The task.
        key: Such as ``rsl_rl_cfg_entry_point``.

    Returns:
        What the class or function returned; a fresh object every time.
    """
    target = spec.kwargs.get(key)
    if target is None:
        raise UserError(f"task '{spec.id}' has no '{key}'{_what_to_register(spec, key)}")
    if isinstance(target, str):
        target = resolve_attribute(target, f"task '{spec.id}': its {key}", trusted=True)
    return target() if callable(target) else target


def _what_to_register(spec: EnvSpec, key: str) -> str:
    """Return what to do about an entry point that a task lacks: choose another agent's, or add it."""
    others = ("env_cfg_entry_point", "torch_env_entry_point")
    agents = [name for name in spec.kwargs if name.endswith("_cfg_entry_point") and name not in others]
    if agents and key not in others:
        return f" (--agent). {suggest(key, agents)}"
    what = "the config of its environment" if key in others else "the agent's config, which training needs"
    return f": add {what} to gymnasium.register(..., kwargs={{'{key}': 'module:Class'}})"


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
