"""Students, one file each: a module of this folder that defines a Student class is one, by the module's name."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from foundation.config.distillation_cfg import StudentCfg
from foundation.core.errors import UserError, suggest
from foundation.core.registry import resolve_attribute
from foundation.students.base import Student
from foundation.students.mlp import StudentPolicy

__all__ = [
    "Student",
    "StudentPolicy",
    "make_student",
    "student_cfg_class",
    "student_from_description",
    "student_names",
]


@cache
def student_names() -> tuple[str, ...]:
    """Return the names of the built-in students: the modules of this folder that define one."""
    modules = (m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]))
    return tuple(sorted(m for m in modules if _defined_in(importlib.import_module(f"{__name__}.{m}"))))


def student_class(name: str) -> type[Student]:
    """Return the class of a student.

    Args:
        name: A module of this folder, or ``"pkg.module:Class"``.
    """
    if ":" in name:
        found = resolve_attribute(name, "student", typed_as="student=")
        if not (isinstance(found, type) and issubclass(found, Student)):
            raise UserError(f"student '{name}' is not a class derived from foundation.students.Student.")
        return found
    if name not in student_names():
        raise UserError(f"unknown student '{name[:80]}'. {suggest(name, student_names())} Or give 'pkg.module:Class'.")
    return _defined_in(importlib.import_module(f"{__name__}.{name}"))[0]


def student_cfg_class(name: str) -> type[StudentCfg]:
    """Return the config class of a student, for a built-in name or ``"pkg.module:Class"``."""
    return student_class(name).cfg_class


def make_student(cfg: StudentCfg, num_obs: int, num_actions: int) -> Student:
    """Build the student that a config names.

    Args:
        cfg: An instance of the class that :func:`student_cfg_class` returns, or a plain :class:`StudentCfg`, whose
            values then go with that student's defaults.
        num_obs: Number of observations.
        num_actions: Number of actions.
    """
    kind = student_class(cfg.name)
    if not isinstance(cfg, kind.cfg_class):
        cfg = kind.cfg_class(**{f.name: getattr(cfg, f.name) for f in fields(StudentCfg)})
    return kind.from_cfg(cfg, num_obs, num_actions)


def student_from_description(description: dict[str, Any]) -> Student:
    """Build the student that ``describe()`` described, with fresh weights.

    Args:
        description: What ``describe()`` returned, as a checkpoint carries it. A student of another package is built
            only if its module is imported already, or the user has typed its name.
    """
    options = dict(description)
    try:
        name, num_obs, num_actions = str(options["name"]), int(options.pop("num_obs")), int(options.pop("num_actions"))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the checkpoint's description of its student lacks or spoils {error}.") from error
    cfg_class = student_cfg_class(name)
    known = {f.name for f in fields(cfg_class)}
    for key in options:
        if key not in known:
            raise UserError(f"the checkpoint's student '{name}' has an unknown option '{key}'. {suggest(key, known)}")
    try:
        return make_student(cfg_class(**options), num_obs, num_actions)
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"the checkpoint's description of student '{name}' cannot be built: {error}") from error


def _defined_in(module: ModuleType) -> list[type[Student]]:
    """Return the students, told by their ``cfg_class``, that a module defines itself."""
    return [
        member
        for member in vars(module).values()
        if isinstance(member, type)
        and issubclass(member, Student)
        and member.__module__ == module.__name__
        and "cfg_class" in vars(member)
    ]
