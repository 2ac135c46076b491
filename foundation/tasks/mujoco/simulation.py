"""Many copies of a MuJoCo model, advanced together by MuJoCo's own threads (``mujoco.rollout``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foundation.core.errors import UserError
from foundation.tasks.mujoco.package import import_mujoco
from foundation.tasks.mujoco.perturbations import check_changes, varied


class BatchedSimulation:
    """States of many environments, each with one of several variants of a model.

    A variant differs in parameters, such as masses and frictions, and never in sizes. Between two calls of :meth:`step`
    an environment is its state and its variant alone: the constraint solver starts afresh at each call, so that a state
    that is saved and restored goes on bit for bit, whatever the number of threads.

    Args:
        models: The variants, ``mujoco.MjModel`` of equal sizes.
        num_envs: Number of environments.
        num_threads: Threads that share a step's environments.
    """

    def __init__(self, models: Sequence[Any], num_envs: int, num_threads: int = 1):
        mujoco = import_mujoco()
        rollout = import_mujoco("mujoco.rollout")
        if not models:
            raise UserError("a simulation needs at least one model")
        self._nominal = tuple(models)
        self.models = self._nominal
        """The variants, as varied by :meth:`vary`."""
        self.model = models[0]
        self._check_sizes()
        self.num_envs = num_envs
        self.num_threads = num_threads
        self._data = [mujoco.MjData(self.model) for _ in range(num_threads)]
        self._pool = rollout.Rollout(nthread=num_threads if num_threads > 1 else 0)
        spec = mujoco.mjtState.mjSTATE_FULLPHYSICS
        initial = np.empty(mujoco.mj_stateSize(self.model, spec))
        mujoco.mj_getState(self.model, self._data[0], initial, spec)
        self._initial = initial
        self.state = np.tile(initial, (num_envs, 1))
        """MuJoCo's full physics state: time, positions, velocities, activations. Shape: (num_envs, state_size)."""
        self.variant = np.zeros(num_envs, dtype=np.int64)
        """Index of each environment's variant. Shape: (num_envs,)."""
        self.sensors = np.zeros((num_envs, 1, self.model.nsensordata))
        """Sensors in each physics step of the last :meth:`step`: what they measured where that physics step began.
        Shape: (num_envs, num_substeps, nsensordata)."""

    def _check_sizes(self) -> None:
        expected = _sizes(self.model)
        for number, model in enumerate(self.models):
            if _sizes(model) != expected:
                raise UserError(
                    f"variants of a model must have equal sizes: model {number} has {_sizes(model)}, model 0 {expected}"
                )

    @property
    def qpos(self) -> np.ndarray:
        """View of the generalised positions. Shape: (num_envs, nq)."""
        return self.state[:, 1 : 1 + self.model.nq]

    @property
    def qvel(self) -> np.ndarray:
        """View of the generalised velocities. Shape: (num_envs, nv)."""
        start = 1 + self.model.nq
        return self.state[:, start : start + self.model.nv]

    def vary(self, values: Mapping[str, float]) -> None:
        """Scale parameters of all variants; what is not named is nominal again.

        Args:
            values: Changes of :data:`foundation.tasks.mujoco.perturbations.QUANTITIES` [%].
        """
        check_changes(values)
        self.models = tuple(varied(model, values) for model in self._nominal) if values else self._nominal

    def begin(self, where: np.ndarray, qpos: np.ndarray, qvel: np.ndarray, variant: np.ndarray) -> None:
        """Put environments into new states, with activations at rest and the time at 0.

        Args:
            where: Which, bool. Shape: (num_envs,).
            qpos: Positions of all; those elsewhere are not used. Shape: (num_envs, nq).
            qvel: Velocities of all. Shape: (num_envs, nv).
            variant: Variants of all. Shape: (num_envs,).
        """
        self.state = np.where(where[:, None], self._initial, self.state)
        self.qpos[where] = qpos[where]
        self.qvel[where] = qvel[where]
        self.variant = np.where(where, variant, self.variant)

    def step(self, control: np.ndarray, num_substeps: int) -> None:
        """Advance every environment by some physics steps under a constant control.

        Args:
            control: Controls of the actuators; those that are not finite are taken as 0, as MuJoCo itself does with
                a warning that it writes to a file in the working folder. Shape: (num_envs, nu).
            num_substeps: Physics steps.
        """
        control = np.where(np.isfinite(control), control, 0.0)
        models = [self.models[index] for index in self.variant.tolist()]
        states, sensors = self._pool.rollout(models, self._data, self.state, control[:, None], nstep=num_substeps)
        self.state = states[:, -1].copy()
        self.sensors = sensors

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        self._pool.close()


def _sizes(model: Any) -> dict[str, int]:
    """Return what variants of a model have in common."""
    return {name: int(getattr(model, name)) for name in ("nq", "nv", "na", "nu", "nsensordata", "nbody", "ngeom")}
