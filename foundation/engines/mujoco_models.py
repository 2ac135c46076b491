"""Perturbations of gymnasium's MuJoCo environments, through the parameters of their models."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foundation.tasks.mujoco.perturbations import QUANTITIES, check_changes, parameter_of


class MujocoModels:
    """The models of environments that run in this process.

    Args:
        envs: The environments below all wrappers.
    """

    def __init__(self, envs: Sequence[Any]):
        self._envs = list(envs)
        self._nominal = [{name: np.array(parameter_of(env.model, name)) for name in QUANTITIES} for env in envs]

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
        check_changes(values)
        for env, nominal in zip(self._envs, self._nominal, strict=True):
            for name, value in nominal.items():
                parameter_of(env.model, name)[:] = value * (1.0 + values.get(name, 0.0) / 100.0)
            set_constants(env.model, env.data)  # what follows from masses, as the effective inertia of each joint
