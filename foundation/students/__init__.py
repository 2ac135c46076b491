"""Students, one file each: a module of this folder that defines a Student class; its name is the student's."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from foundation.config.distillation_cfg import StudentCfg
from foundation.config.typing_fit import MisfitError, field_hints, fit
from foundation.core.errors import UserError, suggest
from foundation.core.registry import resolve_attribute
from foundation.core.text import one_line, quoted, shorten
from foundation.students.base import SIZES, Student
from foundation.students.mlp import StudentPolicy

__all__ = [
    "Student",
    "StudentPolicy",
    "make_student",
    "student_cfg_class",
    "student_from_description",
    "student_names",
]


MADE_BY_TRAINING = ("by_task",)
"""Students that fine-tuning makes of others: checkpoints have them, and ``student=`` does not offer them."""
_MAX_STATE = 1 << 22
"""Numbers that a student of a file may remember for each environment."""


@cache
def student_names() -> tuple[str, ...]:
    """Return the names of the built-in students: the modules of this folder that define one."""
    modules = (m.name for m in pkgutil.iter_modules([str(Path(__file__).parent)]))
    named = (m for m in modules if m not in MADE_BY_TRAINING)
    return tuple(sorted(m for m in named if _defined_in(importlib.import_module(f"{__name__}.{m}"))))


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
    if name not in (*student_names(), *MADE_BY_TRAINING):
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


def student_from_description(description: dict[str, Any], weights: Mapping[str, torch.Tensor] | None = None) -> Student:
    """Build the student that ``describe()`` described.

    Args:
        description: What ``describe()`` returned, as a checkpoint carries it. A student of another package is built
            only if its module is imported already, or the user has typed its name.
        weights: Its state_dict, which is then loaded; the sizes that are described must be those of the weights,
            which is looked at before anything of these sizes is made. None: fresh weights.
    """
    numbers, options = _read_description(description)
    name = options["name"]
    cfg_class = student_cfg_class(options["name"])
    if weights is not None:
        _check_sizes(numbers | options, weights)
        _check_sizes(options.get("base") or {}, weights)
    try:
        cfg = cfg_class(**options)
        if weights is not None and ":" not in name:
            with torch.device("meta"):
                _compare_shapes(make_student(cfg, **numbers).state_dict(), weights)
        student = make_student(cfg, **numbers)
        if student.state_size > _MAX_STATE:
            raise ValueError(f"it remembers {student.state_size} numbers")
        if weights is not None:
            student.load_state_dict(weights)
    except UserError:
        raise
    except Exception as error:  # whatever a module runs into when it is made or filled with values of a file
        raise UserError(
            f"the checkpoint's description of student '{name}' cannot be built: {one_line(error, 200)}"
        ) from error
    return student


def _read_description(description: Mapping[str, Any]) -> tuple[dict[str, int], dict[str, Any]]:
    """Return the numbers of observations and actions, and the fields of the student's config, of their types."""
    options = dict(description)
    numbers = {}
    for key in ("num_obs", "num_actions"):
        numbers[key] = options.pop(key, None)
        if type(numbers[key]) is not int:
            raise UserError(f"the checkpoint's student has {key}={quoted(numbers[key])}: an integer was expected.")
    name = options.get("name")
    if not isinstance(name, str):
        raise UserError(f"the checkpoint's student has name={quoted(name)}: text was expected.")
    known = field_hints(student_cfg_class(name))
    for key, value in options.items():
        where = f"the checkpoint's student '{shorten(name)}'"
        if key not in known:
            shown = shorten(str(key))
            raise UserError(f"{where} has an unknown option '{shown}'. {suggest(shown, known)}")
        try:
            options[key] = fit(value, known[key])
        except MisfitError as error:
            raise UserError(f"{where} has {key}={quoted(value)}: it must be {error}.") from None
    return numbers, options


def _check_sizes(options: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Refuse sizes and numbers of layers that weights of these shapes cannot have."""
    widest = max((size for tensor in weights.values() for size in tensor.shape), default=0)
    for key, value in options.items():
        sizes = value if isinstance(value, list) else [value]
        if key == "num_obs" and options.get("images"):
            continue  # no weight is as wide as all pixels together
        if key in ("hidden_size", "num_layers") and options.get("memory") == "none":
            continue  # without recurrent layers they have no weights
        if key not in (*SIZES, "num_obs", "num_actions", "num_choices", "length", "kernel_size"):
            continue
        wrong = [size for size in sizes if isinstance(size, int) and size > max(widest, 1)]
        layers = int(value) if key == "num_layers" and isinstance(value, int) else len(sizes)
        if wrong or layers > len(weights):
            raise UserError(
                f"its weights do not fit its description: student.{key} is {quoted(value)} and the weights are "
                f"{len(weights)} tensors of at most {widest} columns"
            )


def _compare_shapes(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    for key in [*own, *weights]:
        wanted, found = (list(part[key].shape) if key in part else "nothing" for part in (own, weights))
        if wanted != found:
            raise UserError(
                f"its weights do not fit its description: '{shorten(str(key))}' is {found} in the weights and {wanted} "
                "by the description"
            )


def _defined_in(module: ModuleType) -> list[type[Student]]:
    """Return the students, recognised by their ``cfg_class``, that a module defines itself."""
    return [
        member
        for member in vars(module).values()
        if isinstance(member, type)
        and issubclass(member, Student)
        and member.__module__ == module.__name__
        and "cfg_class" in vars(member)
    ]
