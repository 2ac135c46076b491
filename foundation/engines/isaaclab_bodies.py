"""Perturbations of any Isaac Lab 3.0 task, through the simulator's own parameters of the bodies in its scene."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from typing import Any

import torch

from foundation.core.errors import UserError

_PERCENT = (-40.0, -20.0, 20.0, 40.0)
QUANTITIES: dict[str, tuple[str, float, tuple[float, ...]]] = {
    "mass": ("%", 0.0, _PERCENT),
    "inertia": ("%", 0.0, _PERCENT),
    "gravity": ("%", 0.0, _PERCENT),
}
"""Name -> (unit, nominal value, values to measure at). Percentages are changes of the simulator's own value."""


class IsaacLabBodies:
    """Masses and inertias of the assets of a scene, and the gravity that acts on them.

    Args:
        env: The bare environment.
        assets: Its articulations and rigid objects.
    """

    def __init__(self, env: Any, assets: list[Any]):
        self._env = env
        self._assets = assets
        self._masses = [asset.data.body_mass.torch.clone() for asset in assets]
        self._inertias = [asset.data.body_inertia.torch.clone() for asset in assets]
        self._gravity = [float(part) for part in env.cfg.sim.gravity]
        self._set_gravity: Any = None
        self._is_varied = False

    @classmethod
    def of(cls, env: Any) -> IsaacLabBodies | None:
        """Return the bodies of an environment; None where it has none whose parameters can be set (Isaac Lab 2.3)."""
        scene = getattr(env, "scene", None)
        groups = [getattr(scene, name, None) or {} for name in ("articulations", "rigid_objects")]
        assets = [asset for group in groups for asset in group.values()]
        settable = all(hasattr(asset, name) for asset in assets for name in ("set_masses_index", "set_inertias_index"))
        return cls(env, assets) if assets and settable else None

    def perturb(self, values: Mapping[str, float]) -> None:
        """Scale masses, inertias and gravity; what is not named is nominal again.

        Args:
            values: Changes [%].
        """
        for name, percent in values.items():
            if not (math.isfinite(percent) and percent > -100.0) and not (name == "gravity" and percent == -100.0):
                raise UserError(f"--perturbation {name}={percent:g}: a change of more than -100 % is needed")
        if not values and not self._is_varied:
            return
        self._is_varied = bool(values)
        factors = {name: 1.0 + values.get(name, 0.0) / 100.0 for name in QUANTITIES}
        for asset, masses, inertias in zip(self._assets, self._masses, self._inertias, strict=True):
            asset.set_masses_index(masses=masses * factors["mass"])
            asset.set_inertias_index(inertias=inertias * factors["inertia"])
        self._write_gravity([factors["gravity"] * part for part in self._gravity])

    def _write_gravity(self, gravity: list[float]) -> None:
        """Set the gravity of every environment by Isaac Lab's own event, which knows each physics engine."""
        values = {"gravity_distribution_params": (gravity, gravity), "operation": "abs", "distribution": "uniform"}
        if self._set_gravity is None:
            event = importlib.import_module("isaaclab.envs.mdp").randomize_physics_scene_gravity
            term = importlib.import_module("isaaclab.managers").EventTermCfg(func=event, mode="reset", params=values)
            self._set_gravity = event(term, self._env)
        with torch.no_grad():
            self._set_gravity(self._env, None, **values)
