"""Tasks of a multi-task student, read from the file of ``--multi_task``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.config.typing_fit import MisfitError, field_hints, fit
from foundation.core.errors import UserError, reading, suggest
from foundation.core.files import load_yaml
from foundation.core.registry import refuse_untyped_names
from foundation.core.text import quoted, shorten

FORMAT = "foundation-tasks-1"
_KEYS = ("format", "tasks")
_ID = re.compile(r"[A-Za-z0-9][\w-]{0,63}")


@dataclass
class TaskEntry:
    """One task."""

    id: str
    """Names it in the console, in figures, and for ``play.py --task``; letters, digits, ``_`` and ``-``."""
    task: str
    """Gym id, or ``module:Id``."""
    teacher: str
    """Its teacher's checkpoint, relative to the file, or ``pkg.module:function``."""
    engine: str | None = None
    """As ``--engine``."""
    num_envs: int | None = None
    """Parallel environments."""
    overrides: list[str] = field(default_factory=list)
    """Further settings of this task alone, ``key=value``, such as ``env.max_episode_steps=200``."""

    def arguments(self) -> list[str]:
        """Return the task's part of a command line."""
        flags = ["--task", self.task, "--teacher_checkpoint", self.teacher]
        flags += [] if self.engine is None else ["--engine", self.engine]
        flags += [] if self.num_envs is None else ["--num_envs", str(self.num_envs)]
        return [*flags, *self.overrides]


def read_tasks(path: str | Path) -> list[TaskEntry]:
    """Read a list of tasks.

    Args:
        path: A YAML file, ``{format: foundation-tasks-1, tasks: [{id: ..., task: ..., teacher: ...}, ...]}``.

    Raises:
        UserError: If it is no such list, an id comes twice, or it names code that the user has not typed.
    """
    with reading(f"'{path}'"):
        return _read_tasks(Path(path))


def _read_tasks(path: Path) -> list[TaskEntry]:
    data = load_yaml(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"'{path}' is not a list of tasks: it must begin with 'format: {FORMAT}'.")
    for key in data:
        if key not in _KEYS:
            raise UserError(f"'{path}' has '{shorten(str(key))}'. {suggest(shorten(str(key)), _KEYS)}")
    items = data.get("tasks")
    if not isinstance(items, list) or len(items) < 2:
        raise UserError(f"'{path}': 'tasks' must be a list of two tasks or more; one needs no --multi_task.")
    refuse_untyped_names(items, f"'{path}'")
    entries = [_entry(item, f"'{path}': task {number}") for number, item in enumerate(items, 1)]
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise UserError(f"'{path}' has two tasks with the id '{entry.id}': ids must differ.")
        seen.add(entry.id)
        beside = path.parent / entry.teacher
        if beside.exists() or ":" not in entry.teacher:
            entry.teacher = str(beside)
    return entries


def _entry(item: object, where: str) -> TaskEntry:
    hints = field_hints(TaskEntry)
    if not isinstance(item, dict):
        raise UserError(f"{where} must be a mapping with id, task and teacher, it is {quoted(item)}.")
    values: dict[str, Any] = {}
    for key, value in item.items():
        name = shorten(str(key))
        if key not in hints:
            raise UserError(f"{where} has '{name}'. {suggest(name, hints)}")
        try:
            values[key] = fit(value, hints[key])
        except MisfitError as error:
            raise UserError(f"{where}: '{name}' is {quoted(value)}, it must be {error}.") from None
    for key in ("id", "task", "teacher"):
        if not values.get(key):
            raise UserError(f"{where} lacks '{key}'.")
    entry = TaskEntry(**values)
    if not _ID.fullmatch(entry.id):
        raise UserError(f"{where}: the id {quoted(entry.id)} must be letters, digits, '_' and '-'.")
    if entry.num_envs is not None and entry.num_envs < 1:
        raise UserError(f"{where}: 'num_envs' must be at least 1, it is {entry.num_envs}.")
    _check_plain(entry, where)
    return entry


def _check_plain(entry: TaskEntry, where: str) -> None:
    """Refuse values that a command line would take for flags: a file gives settings and no commands."""
    texts: Sequence[str] = [entry.task, entry.teacher, entry.engine or "", *entry.overrides]
    for text in texts:
        if text.startswith("-"):
            raise UserError(f"{where} has '{shorten(text)}': flags are for the command line.")
    for token in entry.overrides:
        if "=" not in token:
            raise UserError(f"{where}: the override '{shorten(token)}' must be key=value.")
