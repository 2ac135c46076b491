"""Parameters of a MuJoCo model that can be varied, to measure how robust a policy is."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from foundation.core.errors import UserError
from foundation.tasks.mujoco.package import import_mujoco

_PERCENT = (-40.0, -20.0, 20.0, 40.0)
QUANTITIES: dict[str, tuple[str, float, tuple[float, ...]]] = {
    "mass": ("%", 0.0, _PERCENT),
    "inertia": ("%", 0.0, _PERCENT),
    "gravity": ("%", 0.0, _PERCENT),
    "friction": ("%", 0.0, (-60.0, -30.0, 30.0, 60.0)),
}
"""Name -> (unit, nominal value, values to measure at). Percentages are changes of the model's own value."""


def check_changes(values: Mapping[str, float]) -> None:
    """Refuse changes that no model can have [%]."""
    for name, percent in values.items():
        if not (math.isfinite(percent) and percent > -100.0) and not (name == "gravity" and percent == -100.0):
            raise UserError(f"--perturbation {name}={percent:g}: a change of more than -100 % is needed")


def parameter_of(model: Any, name: str) -> np.ndarray:
    """Return a view of a model's parameter: one of :data:`QUANTITIES`."""
    if name == "gravity":
        return model.opt.gravity
    if name == "friction":
        return model.geom_friction[:, :1]
    return {"mass": model.body_mass, "inertia": model.body_inertia}[name]


def varied(model: Any, values: Mapping[str, float]) -> Any:
    """Return a copy of a model with masses, inertias, gravity and sliding friction scaled.

    Args:
        model: ``mujoco.MjModel``.
        values: Changes [%]; what is not named stays.
    """
    mujoco = import_mujoco()
    changed = copy.copy(model)
    for name, percent in values.items():
        parameter_of(changed, name)[:] *= 1.0 + percent / 100.0
    mujoco.mj_setConst(changed, mujoco.MjData(changed))  # what follows from masses
    return changed
