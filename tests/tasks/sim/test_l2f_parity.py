"""The built-in dynamics against the real ``l2f`` package, an independent C++ implementation."""

from __future__ import annotations

import json

import l2f
import numpy as np
import pytest
import torch
from l2f import vector64

from foundation.tasks.quadrotor.sim.quadrotor import QuadrotorDynamics
from foundation.tasks.quadrotor.sim.vehicles import crazyflie, from_dict, sample_vehicles, to_dict

NUM_ENVS = 64
FIELDS = ("position", "linear_velocity", "angular_velocity", "orientation", "rpm")


class L2f:
    """64 environments of the l2f package."""

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

    def packed(self) -> torch.Tensor:
        """Read the states in our layout. Shape: (17, 64)."""
        rows = [np.concatenate([np.asarray(getattr(s, f)) for f in FIELDS]) for s in self.states.states]
        return torch.from_numpy(np.stack(rows, axis=1).astype(np.float32))

    def step(self, actions: torch.Tensor) -> None:
        """Advance. Shape of ``actions``: (64, 4)."""
        array = actions.numpy().astype(np.float32)
        vector64.step(self.device, self.env, self.params, self.states, array, self.next_states, self.rng)
        self.states.assign(self.next_states)


def _actions(seed: int, num: int, bound: float = 1.3) -> torch.Tensor:
    """By default beyond [-1, 1] now and then, so that clamping is compared too. Shape: (num, 64, 4)."""
    return (torch.rand(num, NUM_ENVS, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1) * bound


@pytest.fixture(scope="module")
def dynamics() -> QuadrotorDynamics:
    return QuadrotorDynamics(crazyflie(NUM_ENVS).to(dtype=torch.float32), 0.01)


def test_one_step_agrees_to_rounding(dynamics):
    """From 30 different states each, one step of ours equals one step of l2f to 1e-6 of the state's scale."""
    reference = L2f(seed=7)
    worst = 0.0
    for action in _actions(3, 30):
        ours = dynamics.step(reference.packed(), action.clamp(-1, 1).T.contiguous())
        reference.step(action)
        theirs = reference.packed()
        worst = max(worst, ((ours - theirs).abs() / theirs.abs().clamp(min=1.0)).max().item())
    assert worst < 1e-6


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_hundred_random_steps_stay_together(dynamics, seed):
    """After each of 100 free-running steps of uniformly random actions every state of 64 envs is l2f's to 2e-4.

    Absolutely so while the vehicle is within the task's limit of 35 rad/s. White noise spins some of them to 70 rad/s,
    where float32 itself (l2f's and ours, against float64) is off by up to 4e-4: there, relative to the vehicle's state.
    """
    reference = L2f(seed=100 * seed)
    state = reference.packed()
    inside = torch.ones(NUM_ENVS, dtype=torch.bool)
    for action in _actions(seed, 100, bound=1.0):
        state = dynamics.step(state, action.T.contiguous())
        reference.step(action)
        theirs = reference.packed()
        inside &= (theirs[6:9].abs() < 35).all(0)
        error = (state - theirs).abs()
        assert error[:, inside].max().item() < 2e-4
        assert (error / theirs.abs().amax(0).clamp(min=1.0)).max().item() < 2e-4
    assert inside.sum() > NUM_ENVS / 3


def test_other_vehicles_agree_through_the_json_form():
    """Sampled vehicles written in l2f's JSON form and read by l2f fly there as they fly here (one step)."""
    reference = L2f(seed=11)
    vehicles = sample_vehicles(NUM_ENVS, seed=3)
    vehicles.force_std.zero_()
    base = json.loads(l2f.parameters_to_json(reference.device, l2f.Environment(), reference.params.parameters[0]))
    for i, parameters in enumerate(reference.params.parameters):
        data = {**base, **to_dict(vehicles, i)}
        data["dynamics"] = {**base["dynamics"], **data["dynamics"]}
        l2f.parameters_from_json(reference.device, l2f.Environment(), json.dumps(data), parameters)
    ours = QuadrotorDynamics(vehicles.to(dtype=torch.float32), 0.01)
    for action in _actions(9, 5):
        predicted = ours.step(reference.packed(), action.clamp(-1, 1).T.contiguous())
        reference.step(action)
        theirs = reference.packed()
        assert ((predicted - theirs).abs() / theirs.abs().clamp(min=1.0)).max().item() < 2e-6


def test_l2f_json_is_read_back():
    """What l2f prints is a vehicle file; the inertia comes from J_inv, because J loses its digits to six decimals."""
    reference = L2f(seed=0)
    text = l2f.parameters_to_json(reference.device, l2f.Environment(), reference.params.parameters[0])
    params = from_dict(json.loads(text), "l2f")
    expected = crazyflie()
    torch.testing.assert_close(params.inertia, expected.inertia, rtol=1e-6, atol=0)
    torch.testing.assert_close(params.thrust_coefficients, expected.thrust_coefficients, rtol=1e-3, atol=0)
