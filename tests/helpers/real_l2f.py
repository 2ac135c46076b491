"""Flights by the real packages ``l2f`` and ``foundation-policy``; importing this needs both (extra raptor)."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import foundation_policy
import l2f
import numpy as np
import torch
from l2f import vector8, vector64
from l2f_flights import Flight, pack_json
from task_flights import fly_task, hover, teacher_return

from foundation.tasks.quadrotor.sim.l2f_dynamics import L2fDynamics
from foundation.tasks.quadrotor.sim.vehicle_folder import write_registry, write_vehicles
from foundation.tasks.quadrotor.sim.vehicles import VehicleParams, load_vehicles, sample_vehicles, to_dict

NUM_ENVS = 64
FIELDS = ("position", "linear_velocity", "angular_velocity", "orientation", "rpm")
PUBLISHED = Path(foundation_policy.__file__).parent / "blob" / "checkpoint.h5"
"""The policy in the installed package."""


def _packed(states: Any) -> np.ndarray:
    """Read states in our layout. Shape: (17, num_envs)."""
    rows = [np.concatenate([np.asarray(getattr(state, field)) for field in FIELDS]) for state in states]
    return np.stack(rows, axis=1).astype(np.float32)


def _actions(seed: int, num: int, num_envs: int, bound: float) -> np.ndarray:
    """Draw uniformly from [-bound, bound]. Shape: (num, num_envs, 4)."""
    return ((torch.rand(num, num_envs, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * bound).numpy()


class Vector:
    """64 environments of the package, stepped at once."""

    def __init__(self, seed: int):
        self.device = l2f.Device()
        self.rng, self.env = vector64.VectorRng(), vector64.VectorEnvironment()
        self.params, self.states, self.next_states = (
            vector64.VectorParameters(),
            vector64.VectorState(),
            vector64.VectorState(),
        )
        vector64.initialize_rng(self.device, self.rng, seed)
        vector64.initialize_environment(self.device, self.env)
        vector64.sample_initial_parameters(self.device, self.env, self.params, self.rng)
        vector64.sample_initial_state(self.device, self.env, self.params, self.states, self.rng)

    def printed(self) -> str:
        """Return the first environment's parameters as the package prints them."""
        return l2f.parameters_to_json(self.device, l2f.Environment(), self.params.parameters[0])

    def fly(self, actions: np.ndarray) -> Flight:
        """Advance by every action. Shape of ``actions``: (num, 64, 4)."""
        states = [_packed(self.states.states)]
        for action in actions:
            vector64.step(self.device, self.env, self.params, self.states, action, self.next_states, self.rng)
            self.states.assign(self.next_states)
            states.append(_packed(self.states.states))
        return {"states": np.stack(states), "actions": actions}


def _free_flight(seed: int) -> Flight:
    return Vector(100 * seed).fly(_actions(seed, 100, NUM_ENVS, 1.0))


def _one_step() -> Flight:
    # Beyond [-1, 1] now and then, so that clamping is compared too.
    return Vector(7).fly(_actions(3, 30, NUM_ENVS, 1.3))


def _json_form() -> Flight:
    """Vehicles that the package reads with all that it prints itself, their disturbances among it."""
    reference, vehicles = Vector(11), sample_vehicles(NUM_ENVS, seed=3)
    vehicles.force_std.zero_()
    base = json.loads(reference.printed())
    for index, parameters in enumerate(reference.params.parameters):
        data = {**base, **to_dict(vehicles, index)}
        data["dynamics"] = {**base["dynamics"], **data["dynamics"]}
        l2f.parameters_from_json(reference.device, l2f.Environment(), json.dumps(data), parameters)
    return {**reference.fly(_actions(9, 5, NUM_ENVS, 1.3)), "vehicles": _fleet(vehicles)}


def _printed() -> Flight:
    return {"parameters": pack_json(json.loads(Vector(0).printed()))}


def _fleet(vehicles: VehicleParams) -> np.ndarray:
    return pack_json([to_dict(vehicles, index) for index in range(vehicles.num_vehicles)])


def _fleet_flight(which: str) -> Flight:
    """100 steps of vehicles from their files, each in an environment of the package of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sampled = which == "sampled"
        files = write_vehicles(folder, sample_vehicles(100, seed=5)) if sampled else write_registry(folder)
        vehicles = load_vehicles(files)
    vehicles.force_std.zero_()
    device, env, rng = l2f.Device(), l2f.Environment(), l2f.Rng()
    l2f.initialize_environment(device, env)
    l2f.initialize_rng(device, rng, 3)
    number = vehicles.num_vehicles
    all_params = [l2f.Parameters() for _ in range(number)]
    states, next_states = [[l2f.State() for _ in range(number)] for _ in range(2)]
    for index, (params, state) in enumerate(zip(all_params, states, strict=True)):
        l2f.sample_initial_parameters(device, env, params, rng)
        base = json.loads(l2f.parameters_to_json(device, env, params))
        data = {**base, "dynamics": {**base["dynamics"], **to_dict(vehicles, index)["dynamics"]}}
        l2f.parameters_from_json(device, env, json.dumps(data), params)
        l2f.sample_initial_state(device, env, params, state, rng)
    actions = _actions(1, 100, number, 1.0)
    seen = [_packed(states)]
    for commands in actions:
        for index, action in enumerate(commands):
            l2f.step(device, env, all_params[index], states[index], action, next_states[index], rng)
        states, next_states = next_states, states
        seen.append(_packed(states))
    return {"states": np.stack(seen), "actions": actions, "vehicles": _fleet(vehicles)}


def _pushed() -> Flight:
    """One step of five vehicles at rest, pushed and not."""
    vehicles = sample_vehicles(5, seed=2)
    dynamics = L2fDynamics(vehicles, 0.01)
    state = torch.zeros(17, 5)
    state[9], state[13:] = 1.0, 0.4
    force = (vehicles.mass * torch.linspace(-3.0, 3.0, 15, dtype=torch.float64).view(3, 5)).float()
    still = dynamics.step(state, torch.zeros(4, 5))
    dynamics.push(force)
    pushed = dynamics.step(state, torch.zeros(4, 5))
    arrays = {"state": state, "force": force, "still": still, "pushed": pushed}
    return {**{name: array.numpy() for name, array in arrays.items()}, "vehicles": _fleet(vehicles)}


def _observed() -> Flight:
    """What eight environments observe after a step."""
    device, rng, env = l2f.Device(), vector8.VectorRng(), vector8.VectorEnvironment()
    params, states, following = vector8.VectorParameters(), vector8.VectorState(), vector8.VectorState()
    vector8.initialize_rng(device, rng, 5)
    vector8.initialize_environment(device, env)
    vector8.sample_initial_parameters(device, env, params, rng)
    vector8.sample_initial_state(device, env, params, states, rng)
    action = (np.random.default_rng(0).random((8, 4)) * 2 - 1).astype(np.float32)
    vector8.step(device, env, params, states, action, following, rng)
    observed = np.zeros((8, env.OBSERVATION_DIM), dtype=np.float32)
    vector8.observe(device, env, params, following, observed, rng)
    return {"state": _packed(following.states), "action": action, "observed": observed}


def _raptor_policy() -> Flight:
    """30 steps of the published policy by its own package, with resets of part of six environments."""
    policy, rng = foundation_policy.Raptor(), np.random.default_rng(0)
    policy.reset()
    memory = policy.layers[1]
    seen: dict[str, list[np.ndarray]] = {"obs": [], "actions": [], "dones": []}
    for _ in range(30):
        obs = rng.normal(size=(6, 22)).astype(np.float32) * 2
        actions = policy.evaluate_step(obs)
        dones = rng.random(6) < 0.2
        memory.state = np.where(dones[:, None], memory.initial_hidden_state, memory.state)
        for name, value in (("obs", obs), ("actions", actions), ("dones", dones)):
            seen[name].append(value)
    return {name: np.stack(values) for name, values in seen.items()}


FLIGHTS: dict[str, Callable[[], Flight]] = {
    "one_step": _one_step,
    **{f"free_{seed}": partial(_free_flight, seed) for seed in range(4)},
    "json_form": _json_form,
    "printed": _printed,
    "sampled": partial(_fleet_flight, "sampled"),
    "registry": partial(_fleet_flight, "registry"),
    "pushed": _pushed,
    "observed": _observed,
    "raptor_policy": _raptor_policy,
    "task_crazyflie": partial(fly_task, "l2f"),
    "task_sampled": partial(fly_task, "l2f", vehicles="sampled:7:3"),
    "hover": partial(hover, "l2f"),
    "teacher_return": partial(teacher_return, "l2f"),
}
"""By name; the last four begin their episodes as the task of the project does."""
