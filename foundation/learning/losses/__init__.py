"""Distillation losses: pure functions of the student's output and the teacher's targets, one value per sample.

Each module of this folder holds a loss, or a family of them; masks and weights are the learner's business. A function
under :func:`loss` in a module added here can be chosen by its name; one of a user's own package by
``"pkg.module:function"``.
"""

from __future__ import annotations

import importlib
import pkgutil

from foundation.learning.losses.spec import (
    LOSSES,
    LossFunction,
    LossParams,
    LossSpec,
    check_choices,
    check_main_loss,
    loss,
    loss_spec,
    with_labels,
    with_own_params,
)

__all__ = [
    "LOSSES",
    "LossFunction",
    "LossParams",
    "LossSpec",
    "check_choices",
    "check_main_loss",
    "loss",
    "loss_spec",
    "with_labels",
    "with_own_params",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def __getattr__(name: str) -> LossFunction:
    """Return a loss by its name, so that ``foundation.learning.losses:kl`` is an address as any other."""
    if name in LOSSES:
        return LOSSES[name].function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
