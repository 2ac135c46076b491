"""Perturbations of gymnasium's MuJoCo environments, through the parameters of their models."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foundation.core.errors import UserError

_PERCENT = (-40.0, -20.0, 20.0, 40.0)
QUANTITIES: dict[str, tuple[str, float, tuple[float, ...]]] = {
    "mass": ("%", 0.0, _PERCENT),
    "inertia": ("%", 0.0, _PERCENT),
    "gravity": ("%", 0.0, _PERCENT),
    "friction": ("%", 0.0, (-60.0, -30.0, 30.0, 60.0)),
}
"""Name -> (unit, nominal value, values to measure at). Percentages are changes of the model's own value."""


class MujocoModels:
    """The models of environments that run in this process.

    Args:
        envs: The environments below all wrappers.
    """

    def __init__(self, envs: Sequence[Any]):
        self._envs = list(envs)
        self._nominal = [{name: np.array(_parameter(env.model, name)) for name in QUANTITIES} for env in envs]

    @classmethod
    def of(cls, envs: Sequence[Any]) -> MujocoModels | None:
        """Return the models of environments; None where one of them is not MuJoCo's."""
        inner = [getattr(env, "unwrapped", env) for env in envs]
        has_model = all(type(getattr(env, "model", None)).__name__ == "MjModel" for env in inner)
        return cls(inner) if inner and has_model else None

    def perturb(self, values: Mapping[str, float]) -> None:
        """Scale masses, inertias, gravity and sliding friction; what is not named is nominal again.

        Args:
            values: Changes [%]. They take effect from the next reset on, which restores the simulation's state.
        """
        set_constants = importlib.import_module("mujoco").mj_setConst
        for name, percent in values.items():
            if not (math.isfinite(percent) and percent > -100.0) and not (name == "gravity" and percent == -100.0):
                raise UserError(f"--perturbation {name}={percent:g}: a change of more than -100 % is needed")
        for env, nominal in zip(self._envs, self._nominal, strict=True):
            for name, value in nominal.items():
                _parameter(env.model, name)[:] = value * (1.0 + values.get(name, 0.0) / 100.0)
            set_constants(env.model, env.data)  # what follows from masses, as the effective inertia of each joint


def _parameter(model: Any, name: str) -> np.ndarray:
    """Return a view of a model's parameter."""
    if name == "gravity":
        return model.opt.gravity
    if name == "friction":
        return model.geom_friction[:, :1]
    return {"mass": model.body_mass, "inertia": model.body_inertia}[name]
