"""Simulators. A new engine is one new file here, with one subclass of :class:`foundation.engines.base.Engine`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from pathlib import Path

from foundation.core.errors import UserError, suggest
from foundation.core.registry import refuse_untyped, resolve_attribute
from foundation.engines.base import Engine, MissingPackage
from foundation.tasks import CANNOT_IMPORT, resolve_task

_ENGINE_CLASS = re.compile(r"^class \w+\((?:\w*\.)?\w*Engine\):", re.MULTILINE)


def engine_names() -> list[str]:
    """List the built-in engines: the modules of this folder whose text defines a subclass of ``Engine``."""
    files = (file for folder in __path__ for file in Path(folder).glob("*.py"))
    return sorted(file.stem for file in files if _ENGINE_CLASS.search(file.read_text(encoding="utf-8")))


def engine_class(name: str) -> type[Engine]:
    """Find an engine.

    Args:
        name: A module of this folder, or ``pkg.module:Class``.

    Returns:
        Its class. Importing it starts no simulator.
    """
    if ":" in name:
        return _foreign_class(name)
    if name not in engine_names():
        raise UserError(f"--engine {name}: unknown engine. {suggest(name, ['auto', *engine_names()])}")
    module = importlib.import_module(f"{__name__}.{name}")
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Engine) and value.__module__ == module.__name__:
            return value
    raise UserError(f"--engine {name}: {module.__file__} defines no subclass of Engine")


def _foreign_class(name: str) -> type[Engine]:
    """Import ``pkg.module:Class``."""
    value = resolve_attribute(name, "engine", typed_as="--engine")
    if not (isinstance(value, type) and issubclass(value, Engine)):
        raise UserError(f"--engine {name}: not a subclass of foundation.engines.base.Engine")
    return value


def select_engine(task: str, requested: str = "auto") -> tuple[type[Engine], str]:
    """Choose the engine for a task.

    ``auto`` takes Isaac Lab when it is importable and knows the task, else the built-in torch engine, else the first
    other engine that can run it.

    Args:
        task: Value of ``--task``.
        requested: Value of ``--engine``.

    Returns:
        The engine's class and one sentence that says why it was taken.
    """
    refuse_untyped(task, "task", "--task")  # an engine that is asked would only say that it does not know it
    if requested != "auto":
        engine = engine_class(requested)
        obstacle = engine.why_not(task)
        if isinstance(obstacle, MissingPackage):
            raise UserError(f"--task {task}: {obstacle}")
        if obstacle is not None:
            _refuse_broken_module(task, [obstacle])
            near = suggest(task.rpartition(":")[2], engine.task_names())
            raise UserError(f"--engine {requested} cannot run --task {task}: {obstacle}. {near}")
        return engine, f"engine '{requested}' was asked for"
    names = engine_names()
    order = [name for name in ("isaaclab", "torch") if name in names]
    order += [name for name in names if name not in order]
    obstacles: dict[str, str] = {}
    for name in order:
        engine = engine_class(name)
        obstacle = engine.why_not(task)
        if obstacle is None:
            # An engine that is not installed is no news at every start; one that is there and cannot run the task is.
            told = [f"{k}: {v}" for k, v in obstacles.items() if "not installed" not in v]
            skipped = f" ({'; '.join(told)})" if told else ""
            return engine, f"engine '{name}' can run {task}{skipped}"
        obstacles[name] = obstacle
    missing = [reason for reason in obstacles.values() if isinstance(reason, MissingPackage)]
    if missing:
        raise UserError(f"--task {task}: {missing[0]}")
    _refuse_broken_module(task, obstacles.values())
    known = [task_name for name in order for task_name in sorted(engine_class(name).task_names())]
    reasons = "; ".join(f"{name}: {reason}" for name, reason in obstacles.items())
    near = suggest(task.rpartition(":")[2], known, ordered=True)  # simulators' tasks before gymnasium's hundreds
    raise UserError(f"--task {task}: no engine can run it ({reasons}). {near}")


def _refuse_broken_module(task: str, obstacles: Iterable[str]) -> None:
    """Raise the error of a task's module that cannot be imported, if an engine met that error."""
    if CANNOT_IMPORT in obstacles:
        resolve_task(task)
