"""The dynamics of the real ``l2f`` package behind the same call as ``QuadrotorDynamics``: an independent judge.

``l2f`` is rl-tools' simulator in C++ (float32, CPU). What it needs to know of a vehicle goes through its JSON form with
all digits; what it prints itself has six decimals, which would make the inertia 0.000009.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from typing import Any

import numpy as np
import torch

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.sim.vehicle_json import to_dict
from foundation.tasks.quadrotor.sim.vehicle_params import VehicleParams

MISSING = "the package 'l2f' is not installed: pip install -e '.[raptor]' in the clone's folder"
_FIELDS = (("position", 3), ("linear_velocity", 3), ("angular_velocity", 3), ("orientation", 4), ("rpm", 4))
_SIZES = tuple(2**power for power in range(13, -1, -1))
"""Numbers of environments that the package was compiled for."""


def l2f_is_installed() -> bool:
    """Return whether the ``l2f`` package can be imported."""
    return importlib.util.find_spec("l2f") is not None


class L2fDynamics:
    """Fleets of ``l2f``; stateless, as the state is handed in and out at every step."""

    def __init__(self, vehicles: VehicleParams, dt: float):
        """Write the vehicles' parameters into the package.

        Args:
            vehicles: One per environment, four rotors each.
            dt: Length of a step [s].

        Raises:
            UserError: If the package is missing, or cannot do what the vehicles ask for.
        """
        if not l2f_is_installed():
            raise UserError(f"--engine l2f: {MISSING}")
        if bool((vehicles.torque_std != 0).any() | (vehicles.torque_mean != 0).any()):
            raise UserError("--engine l2f: a vehicle has 'disturbances.random_torque', which this engine does not draw")
        vehicles = vehicles.to("cpu", torch.float64)
        self._gravity = vehicles.gravity
        self._mass = vehicles.mass
        self.num_envs = vehicles.num_vehicles
        self._force = torch.zeros(3, self.num_envs, dtype=torch.float64)
        self._blocks: list[_Block] = []
        begin = 0
        for size in _SIZES:
            while self.num_envs - begin >= size:
                self._blocks.append(_Block(vehicles, begin, size, dt))
                begin += size

    def push(self, force: torch.Tensor) -> None:
        """Apply constant outer forces from now on, as a change of each environment's gravity by force over mass.

        Args:
            force: World frame [N]. Shape: (3, num_envs).
        """
        force = force.to("cpu", torch.float64)
        changed = (force != self._force).any(0).nonzero().flatten().tolist()
        gravity = self._gravity + force / self._mass
        for env in changed:
            block = next(b for b in self._blocks if env < b.begin + b.size)
            block.set_gravity(env - block.begin, gravity[:, env].tolist())
        self._force = force.clone()

    def step(self, state: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Advance by one time step.

        Args:
            state: Packed as in ``foundation.tasks.quadrotor.sim.quadrotor``. Shape: (17, num_envs).
            actions: Motor commands in [-1, 1]. Shape: (4, num_envs).

        Returns:
            The next packed state, on the device of ``state``. Shape: (17, num_envs).
        """
        host = _env_rows(state)
        commands = _env_rows(actions)
        following = np.concatenate([block.step(host, commands) for block in self._blocks])
        return torch.from_numpy(following).T.contiguous().to(state.device, state.dtype)


class _Block:
    """As many environments as one of the package's compiled sizes."""

    def __init__(self, vehicles: VehicleParams, begin: int, size: int, dt: float):
        l2f = importlib.import_module("l2f")  # it has no types
        self.begin = begin
        self.size = size
        self._library = l2f
        self._vector = l2f.vector_selector[size]
        self._device, self._rng, self._env = l2f.Device(), self._vector.VectorRng(), self._vector.VectorEnvironment()
        self._params = self._vector.VectorParameters()
        self._states = [self._vector.VectorState() for _ in range(2)]
        self._vector.initialize_rng(self._device, self._rng, 0)
        self._vector.initialize_environment(self._device, self._env)
        self._vector.initial_parameters(self._device, self._env, self._params)
        for states in self._states:
            self._vector.initial_state(self._device, self._env, self._params, states)
        self._rows = [_rows(states) for states in self._states]
        self._parameters = list(self._params.parameters)
        self._form = l2f.Environment()
        base = json.loads(l2f.parameters_to_json(self._device, self._form, self._parameters[0]))
        base["integration"]["dt"] = dt
        self._data = [self._json(base, vehicles, begin + i) for i in range(size)]
        for i in range(size):
            self._write(i)

    @staticmethod
    def _json(base: dict[str, Any], vehicles: VehicleParams, index: int) -> dict[str, Any]:
        """Return a vehicle in the package's form; what it draws by itself is off."""
        quiet = {f"random_{kind}": {"mean": 0.0, "std": 0.0} for kind in ("force", "torque")}
        dynamics = {**base["dynamics"], **to_dict(vehicles, index)["dynamics"]}
        return {**base, "dynamics": dynamics, "disturbances": quiet}

    def _write(self, index: int) -> None:
        text = json.dumps(self._data[index])
        self._library.parameters_from_json(self._device, self._form, text, self._parameters[index])

    def set_gravity(self, index: int, gravity: list[float]) -> None:
        """Change one environment's gravity [m/s^2]."""
        self._data[index]["dynamics"]["gravity"] = gravity
        self._write(index)

    def step(self, state: np.ndarray, commands: np.ndarray) -> np.ndarray:
        """Advance this block's rows. Shapes: (num_envs, 17), (num_envs, 4) -> (size, 17)."""
        mine = slice(self.begin, self.begin + self.size)
        column = 0
        for view in self._rows[0]:
            view[:] = state[mine, column : column + view.shape[1]]
            column += view.shape[1]
        self._vector.step(
            self._device, self._env, self._params, self._states[0], commands[mine], self._states[1], self._rng
        )
        return np.concatenate(self._rows[1], axis=1)


def _env_rows(columns: torch.Tensor) -> np.ndarray:
    """Copy (size, num_envs) to the rows (num_envs, size) that the package expects; it checks their strides."""
    # A copy always: torch calls a single environment contiguous whatever its strides are.
    return np.array(columns.detach().to("cpu", torch.float32).numpy().T, order="C")


def _rows(states: Any) -> list[np.ndarray]:
    """View each field of a vector of states as one array. Shape of each: (size, 3 or 4)."""
    each = list(states.states)
    views = []
    for name, width in _FIELDS:
        first = getattr(each[0], name)
        stride = 0
        if len(each) > 1:
            stride = _address(getattr(each[1], name)) - _address(first)
            assert _address(getattr(each[-1], name)) == _address(first) + stride * (len(each) - 1)
        assert first.shape == (width,) and first.dtype == np.float32
        views.append(np.lib.stride_tricks.as_strided(first, (len(each), width), (stride, first.strides[0])))
    return views


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])
