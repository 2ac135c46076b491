"""One task of a multi-task student: its own input layer and head, and the trunk that all tasks share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foundation.checkpoints import foundation_student
from foundation.checkpoints.reading.loading import LoadedPolicy, Source
from foundation.core.errors import UserError, suggest
from foundation.core.files import load_checkpoint
from foundation.core.text import quoted, shorten

FORMAT = "foundation-multi-task-1"
KEYS: set[str] | None = None
"""None: files of this project may have any entries."""


def recognise(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint is in this format."""
    return checkpoint.get("format") == FORMAT


def load(checkpoint: dict[str, Any], source: Source) -> LoadedPolicy:
    """Read the student of the task that the user has named."""
    name = choose_task(checkpoint, source.overrides.head, f"'{source.path}'")
    own = checkpoint["tasks"][name]
    if not isinstance(own, dict) or not foundation_student.recognise(own):
        raise UserError(f"'{source.path}' is corrupt: its task '{shorten(name)}' has no student.")
    policy = foundation_student.load(own, source)
    return replace(policy, info=replace(policy.info, more=policy.info.more | {"head": name}))


def find_head(path: Path, task: str | None, head: str | None) -> tuple[str, str] | None:
    """Return the id and the gym id of the head that a command means, of a student of several tasks.

    Args:
        path: The checkpoint.
        task: What ``--task`` says: the id or the gym id of one of its tasks.
        head: What ``distill.teacher.head`` says, which comes first; ``--task`` is then any task to act in.

    Returns:
        None where the file is something else.
    """
    try:
        checkpoint = load_checkpoint(path)
    except UserError:  # of another kind: whoever reads the policy raises what is wrong with it
        return None
    if not recognise(checkpoint):
        return None
    name = choose_task(checkpoint, head or task, f"'{path}'")
    own = tasks_of(checkpoint, f"'{path}'")[name]
    return name, task if head and task else own


def tasks_of(checkpoint: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return the gym ids of a student's tasks, by the tasks' own ids.

    Raises:
        UserError: If the file is corrupt.
    """
    tasks = checkpoint.get("tasks")
    if not isinstance(tasks, dict) or not tasks:
        raise UserError(f"{where} is corrupt: 'tasks' is {quoted(tasks)}, it must be a mapping.")
    return {str(name): str(own.get("task")) if isinstance(own, dict) else "" for name, own in tasks.items()}


def choose_task(checkpoint: Mapping[str, Any], named: str | None, where: str) -> str:
    """Return the id of the task that a name means: an id, or the gym id of one task alone.

    Args:
        checkpoint: The file's values.
        named: What the user has typed. None: the only task.
        where: The file, for messages.

    Raises:
        UserError: Naming the tasks there are.
    """
    tasks = tasks_of(checkpoint, where)
    listed = ", ".join(name if name == task else f"{name} ({task})" for name, task in tasks.items())
    if named is None:
        if len(tasks) == 1:
            return next(iter(tasks))
        raise UserError(
            f"{where} is a student of {len(tasks)} tasks: {shorten(listed, 200)}. Name one: --task "
            f"{shorten(next(iter(tasks)))} (or distill.teacher.head)"
        )
    meant = [name for name, task in tasks.items() if named in (name, task)]
    if named in tasks:
        meant = [named]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise UserError(f"{where} has several tasks of '{named}': name one of {', '.join(meant)}")
    raise UserError(f"{where} is no student of task '{shorten(named)}'. {suggest(named, tasks)}")
