"""Teachers of a run as a path names them: one file, several, a glob, a folder, or a manifest with their vehicles."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foundation.core.errors import UserError, reading, suggest
from foundation.core.files import atomic_write_bytes, load_yaml
from foundation.core.pointers import refuse_pointer
from foundation.core.text import quoted, shorten

FORMAT = "foundation-teachers-1"
MANIFEST = "teachers.yaml"
OK = "ok"
FAILED = "failed"

_CHECKPOINTS = ("*.pt", "*.pth", "*.h5", "*.zip")
_OF_ONE_RUN = re.compile(
    r"(model_\d+|best_model|checkpoint_\w+|best_student|final_student|agent_\d+|best_agent)\.pt"
    r"|(\w+_\d+_steps|best_model)\.zip"
)
"""Checkpoints that RSL-RL, we, skrl and Stable-Baselines3 leave of one policy."""
_KEYS = ("format", "task", "teachers")
_ENTRY_KEYS = ("name", "checkpoint", "vehicle", "mean_return", "terminated", "status")


@dataclass
class TeacherEntry:
    """One teacher of a set."""

    name: str
    """Unique in its set; shown in logs and figures."""
    checkpoint: Path
    """Its weights."""
    vehicle: Path | None = None
    """The vehicle that it flies (l2f's JSON form). None: the task's."""
    mean_return: float | None = None
    """Mean return at the end of its training."""
    terminated: float | None = None
    """Share of its episodes that ended by a limit."""
    status: str = OK
    """``ok`` or ``failed``: whether its training reached what it had to."""
    task: str | None = None
    """Gym id of the task that it was trained on, where its manifest says it."""


def read_manifest(path: str | Path) -> list[TeacherEntry]:
    """Read a manifest (see :func:`_read_manifest`); links in a circle and names too long are one line too."""
    with reading(f"'{path}'"):
        return _read_manifest(path)


def _read_manifest(path: str | Path) -> list[TeacherEntry]:
    """Read ``teachers.yaml``, whose paths are relative to it.

    Args:
        path: The manifest.

    Raises:
        UserError: If it is no manifest, a file that it names is not there, or a teacher comes twice.
    """
    path = Path(path)
    data = load_yaml(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"'{path}' is not a manifest of teachers: it must say 'format: {FORMAT}'.")
    for key in data:
        if key not in _KEYS:
            raise UserError(f"'{path}' has '{shorten(str(key))}'. {suggest(shorten(str(key)), _KEYS)}")
    teachers = data.get("teachers")
    task = data.get("task")
    if not isinstance(teachers, list) or not teachers:
        raise UserError(f"'{path}': 'teachers' must be a list with at least one teacher.")
    if task is not None and not isinstance(task, str):
        raise UserError(f"'{path}': 'task' must be a gym id, it is {quoted(task)}.")
    entries = [_entry(item, number, path) for number, item in enumerate(teachers)]
    for entry in entries:
        entry.task = task
    _check_names(entries, path)
    _check_vehicles(entries, f"'{path}'")
    _refuse_twice(entries, f"'{path}'")
    for entry in entries:
        _check_files(entry, path)
    return entries


def _entry(item: object, number: int, path: Path) -> TeacherEntry:
    where = f"'{path}': teacher {number}"
    if not isinstance(item, dict) or not isinstance(item.get("checkpoint"), str):
        raise UserError(f"{where} must be a mapping with 'checkpoint' (and {', '.join(_ENTRY_KEYS[2:])}).")
    unknown = [key for key in item if key not in _ENTRY_KEYS]
    if unknown:
        raise UserError(
            f"{where} has '{shorten(str(unknown[0]))}'; what a teacher may have is {', '.join(_ENTRY_KEYS)}."
        )
    name = item.get("name")
    vehicle = item.get("vehicle")
    status = item.get("status", OK)
    if name is not None and (isinstance(name, bool) or not isinstance(name, str | int)):
        raise UserError(f"{where}: 'name' must be text, it is {quoted(name)}.")
    if status not in (OK, FAILED):
        raise UserError(f"{where} has status {quoted(status)}; it is '{OK}' or '{FAILED}'.")
    if vehicle is not None and not isinstance(vehicle, str):
        raise UserError(f"{where}: 'vehicle' must be a path, it is {quoted(vehicle)}.")
    numbers = {}
    for key in ("mean_return", "terminated"):
        value = item.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UserError(f"{where}: '{key}' must be a number, it is {quoted(value)}.")
        numbers[key] = None if value is None else float(value)
    return TeacherEntry(
        name=str(name or Path(item["checkpoint"]).stem),
        checkpoint=path.parent / item["checkpoint"],
        vehicle=None if vehicle is None else path.parent / vehicle,
        status=status,
        **numbers,
    )


def _check_files(entry: TeacherEntry, path: Path) -> None:
    """Refuse a teacher whose files are not there, unless its training has failed."""
    if entry.status != OK:
        return
    for what, file in (("checkpoint", entry.checkpoint), ("vehicle", entry.vehicle)):
        if file is None:
            continue
        refuse_pointer(file)
        if not file.is_file():
            raise UserError(f"'{path}': teacher '{entry.name}' names the {what} '{file}', which is not there.")


def _check_names(entries: list[TeacherEntry], path: Path) -> None:
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise UserError(f"'{path}' has two teachers named '{entry.name}': names must differ.")
        seen.add(entry.name)


def _check_vehicles(entries: Sequence[TeacherEntry], where: str) -> None:
    """Refuse vehicles for some teachers only: environments would be given to teachers that do not fly them."""
    odd = [entry for entry in entries if entry.vehicle is None]
    if 0 < len(odd) < len(entries):
        raise UserError(f"{where}: teacher '{odd[0].name}' has no vehicle, others have: give all of them one, or none.")


def _refuse_twice(entries: Sequence[TeacherEntry], where: str) -> None:
    """Refuse a checkpoint that comes twice for the same vehicle: it would silently be two teachers."""
    seen: set[tuple[Path, Path | None]] = set()
    for entry in entries:
        key = entry.checkpoint.resolve(), None if entry.vehicle is None else entry.vehicle.resolve()
        if key in seen:
            flown = "" if entry.vehicle is None else f" for the vehicle '{entry.vehicle}'"
            raise UserError(f"{where} names the teacher '{entry.checkpoint}' twice{flown}: leave it out once.")
        seen.add(key)


def write_manifest(path: str | Path, entries: Sequence[TeacherEntry], task: str) -> None:
    """Write ``teachers.yaml`` in one piece, with paths relative to it.

    Args:
        path: The manifest.
        entries: The teachers, in the order of their environments.
        task: Gym id of the task that they were trained on.
    """
    path = Path(path)
    teachers = []
    for entry in entries:
        item: dict[str, Any] = {"name": entry.name, "checkpoint": _relative(entry.checkpoint, path.parent)}
        if entry.vehicle is not None:
            item["vehicle"] = _relative(entry.vehicle, path.parent)
        item |= {k: getattr(entry, k) for k in ("mean_return", "terminated") if getattr(entry, k) is not None}
        teachers.append(item | {"status": entry.status})
    text = yaml.safe_dump({"format": FORMAT, "task": task, "teachers": teachers}, sort_keys=False, width=1000)
    atomic_write_bytes(path, text.encode())


def _relative(file: Path, folder: Path) -> str:
    return Path(os.path.relpath(file.resolve(), folder.resolve())).as_posix()


def find_teachers(spec: str | Sequence[str]) -> list[TeacherEntry]:
    """Find the teachers that ``--teacher_checkpoint`` means.

    Args:
        spec: Files, globs, folders (with ``teachers.yaml``, or else their checkpoints) or manifests; each may be
            several, separated by commas.

    Returns:
        The teachers in order, with unique names.

    Raises:
        UserError: If nothing is there, a file comes twice, only some have a vehicle, or a folder is one of a training
            run, whose checkpoints are one teacher's.
    """
    parts = [spec] if isinstance(spec, str) else list(spec)
    entries: list[TeacherEntry] = []
    with reading("--teacher_checkpoint"):  # a name that is longer than a file's can be
        # An empty one, such as a variable that is not set, would be the current folder.
        for part in filter(None, parts):
            pieces = [part] if Path(part).exists() else [piece for piece in str(part).split(",") if piece]
            for piece in pieces:
                entries += _found(piece)
    if not entries:
        raise UserError("--teacher_checkpoint names no teacher: give a checkpoint, a folder, a glob or a manifest.")
    with reading("--teacher_checkpoint"):  # links in a circle
        _check_vehicles(entries, "--teacher_checkpoint")
        _refuse_twice(entries, "--teacher_checkpoint")
        return _with_unique_names(entries)


def is_one_file(spec: str | Sequence[str]) -> bool:
    """Return whether a specification is the path of a single checkpoint (which may not exist)."""
    parts = [spec] if isinstance(spec, str) else list(spec)
    if len(parts) != 1:
        return False
    path = Path(parts[0])
    if path.is_dir() or path.suffix in (".yaml", ".yml"):
        return False
    return path.exists() or not ("," in parts[0] or glob.has_magic(parts[0]))


def _found(piece: str) -> list[TeacherEntry]:
    path = Path(piece)
    if path.is_dir():
        return read_manifest(path / MANIFEST) if (path / MANIFEST).is_file() else _of_folder(path)
    if path.suffix in (".yaml", ".yml"):
        return read_manifest(path)
    if glob.has_magic(piece) and not path.exists():
        files = _of_those_there(Path(match) for match in sorted(glob.glob(piece, recursive=True)))
        if not files:
            raise UserError(f"--teacher_checkpoint: nothing matches '{piece}'.")
        return [TeacherEntry(file.stem, file) for file in files]
    return [TeacherEntry(path.stem, path)]


def _of_folder(folder: Path) -> list[TeacherEntry]:
    files = _of_those_there(sorted(file for pattern in _CHECKPOINTS for file in folder.glob(pattern)))
    if not files:
        patterns = ", ".join(_CHECKPOINTS)
        raise UserError(f"--teacher_checkpoint: the folder '{folder}' has no {MANIFEST} and no {patterns}.")
    if all(_OF_ONE_RUN.fullmatch(file.name) for file in files):
        raise UserError(
            f"--teacher_checkpoint: '{folder}' is the folder of one training run: name one of its checkpoints, such "
            f"as {files[-1].name}, or all of them by '{folder}/*{files[-1].suffix}'."
        )
    return [TeacherEntry(file.stem, file) for file in files]


def _of_those_there(paths: Iterable[Path]) -> list[Path]:
    """Return the files among paths; a link to nothing is a teacher that would be lost without a word."""
    files: list[Path] = []
    for path in paths:
        refuse_pointer(path)
        if path.is_file():
            files.append(path)
    return files


def _with_unique_names(entries: list[TeacherEntry]) -> list[TeacherEntry]:
    """Put the folder's name before names that occur twice, and a number behind those that still do."""
    for qualify in (lambda entry, number: f"{entry.checkpoint.resolve().parent.name}_{entry.name}", _numbered):
        counts: dict[str, int] = {}
        for entry in entries:
            counts[entry.name] = counts.get(entry.name, 0) + 1
        for number, entry in enumerate(entries):
            if counts[entry.name] > 1:
                entry.name = qualify(entry, number)
    return entries


def _numbered(entry: TeacherEntry, number: int) -> str:
    return f"{entry.name}_{number}"
