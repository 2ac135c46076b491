"""The real ``l2f`` package as an engine; what it flew is compared as recorded too."""

from __future__ import annotations

import json

import pytest
import torch
from l2f_flights import flight, recorded_and_live
from task_flights import TASK, fly_task, teacher_return

from foundation.core.errors import UserError
from foundation.engines import engine_class, engine_names, select_engine
from foundation.engines.perturbed import PerturbedEnv
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.l2f_env import QuadcopterPointCtrlL2fEnv
from foundation.tasks.quadrotor.sim import l2f_dynamics
from foundation.tasks.quadrotor.sim.l2f_dynamics import L2fDynamics
from foundation.tasks.quadrotor.sim.quadrotor import QuadrotorDynamics
from foundation.tasks.quadrotor.sim.vehicles import sample_vehicles


@pytest.mark.l2f
def test_it_is_an_engine_that_auto_leaves_alone():
    """The folder lists it; ``auto`` still takes the built-in simulator for the same task."""
    assert "l2f" in engine_names()
    assert engine_class("l2f").why_not(TASK) is None
    assert engine_class("l2f").why_not("CartPole-v1") is not None
    assert select_engine(TASK)[0].name == "torch"


def test_a_missing_package_is_one_line(monkeypatch):
    """Without the package the engine says what to install."""
    monkeypatch.setattr(l2f_dynamics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"^--engine l2f cannot run .*'l2f' is not installed: pip install -e '\.\[raptor\]'"
    ):
        select_engine(TASK, "l2f")


@recorded_and_live
@pytest.mark.parametrize(
    ("name", "values"),
    [("task_crazyflie", {}), ("task_sampled", {"vehicles": "sampled:7:3"})],
    ids=["crazyflie", "sampled, pushed"],
)
def test_episodes_begin_as_in_the_built_in_engine_and_fly_the_same(name, values, source):
    """Same seed, same initial states and forces; then the observations, rewards and ends of two programs agree.

    21 environments are two and more of the package's compiled sizes. The compiled sizes' borders, vehicles out of
    their order or forces that are not applied would differ from the first step on.
    """
    ours, theirs = [
        {name: torch.from_numpy(array) for name, array in flown.items()}
        for flown in (fly_task("torch", **values), flight(name, source))
    ]
    assert ours["obs"].shape == (31, 21, 22)
    assert torch.equal(ours["obs"][0], theirs["obs"][0])
    assert torch.equal(ours["dones"], theirs["dones"])
    scale = ours["obs"].abs().clamp(min=1.0)
    assert ((ours["obs"] - theirs["obs"]).abs() / scale).max() < 1e-3
    assert not torch.equal(ours["obs"][-1], theirs["obs"][-1]), "two programs do not round alike"
    torch.testing.assert_close(ours["rewards"], theirs["rewards"], atol=2e-3, rtol=0)


@pytest.mark.l2f
def test_a_force_is_applied_until_it_changes():
    """A push equals the built-in simulator's to rounding, and is gone when it is taken away."""
    vehicles = sample_vehicles(5, seed=2)
    ours, theirs = QuadrotorDynamics(vehicles.to(dtype=torch.float32), 0.01), L2fDynamics(vehicles, 0.01)
    state = torch.zeros(17, 5)
    state[9], state[13:] = 1.0, 0.4
    action = torch.zeros(4, 5)
    force = (vehicles.mass * torch.linspace(-3.0, 3.0, 15, dtype=torch.float64).view(3, 5)).float()
    still = theirs.step(state, action)
    theirs.push(force)
    pushed = theirs.step(state, action)
    torch.testing.assert_close(
        pushed, ours.step(state, action, ours.disturb(force, torch.zeros(3, 5))), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(pushed[3:6] - still[3:6], 0.01 * force / vehicles.mass.float(), atol=1e-6, rtol=0)
    theirs.push(torch.zeros(3, 5))
    assert torch.equal(theirs.step(state, action), still)


@pytest.mark.l2f
def test_one_environment_is_flown_whatever_its_strides():
    """A lone column's strides mean nothing to torch, but the package checks those of the rows it is given."""
    vehicle = sample_vehicles(1)
    state, actions = torch.zeros(17, 1), torch.full((4, 1), 0.5)
    state[9] = 1.0
    ours = QuadrotorDynamics(vehicle.to(dtype=torch.float32), 0.01).step(state, actions)
    for layout in (state, state.T.contiguous().T):
        for command in (actions, actions.T.contiguous().T):
            torch.testing.assert_close(L2fDynamics(vehicle, 0.01).step(layout, command), ours, rtol=1e-5, atol=1e-6)


@pytest.mark.l2f
def test_a_torque_that_it_cannot_draw_is_refused():
    """Vehicles with a random torque are an error, not flown without it."""
    vehicles = sample_vehicles(2)
    vehicles.torque_std.fill_(1e-4)
    with pytest.raises(UserError, match="random_torque"):
        L2fDynamics(vehicles, 0.01)


@recorded_and_live
def test_the_shipped_teacher_flies_as_well_here(source):
    """Its return over the same 64 episodes is the built-in engine's to 0.1 %, and random actions crash in both."""
    ours, theirs = teacher_return("torch"), flight("teacher_return", source)
    for flown in (ours, theirs):
        assert flown["random_success"] < 0.1
    assert theirs["success"] == 1.0
    assert theirs["mean_return"] == pytest.approx(ours["mean_return"], rel=1e-3)


@pytest.mark.l2f
def test_perturbations_are_the_packages_own_parameters():
    """+20 % of mass and gravity are 1.2 times what the package itself prints; +20 % of inertia turns 1.2 times slower.

    It prints six decimals, too few for an inertia: from rest, the rates after one step are torque over inertia.
    """
    cfg = QuadcopterPointCtrlEnvCfg()
    cfg.scene.num_envs = 3
    inner = QuadcopterPointCtrlL2fEnv(cfg)
    env = PerturbedEnv(inner)
    state = torch.zeros(17, 3)
    state[9] = 1.0
    state[13] = 0.5

    def held() -> tuple[float, list[float], torch.Tensor]:
        block = inner._l2f._blocks[0]
        text = block._library.parameters_to_json(block._device, block._form, block._parameters[0])
        own = json.loads(text)["dynamics"]
        return own["mass"], own["gravity"], inner._l2f.step(state, torch.zeros(4, 3))[6:9, 0]

    mass, gravity, rates = held()
    assert (mass, gravity) == (pytest.approx(0.0306), pytest.approx([0.0, 0.0, -9.81]))
    for name in ("mass", "inertia", "gravity", None):
        env.vary(name, 20.0)
        found = held()
        assert found[0] == pytest.approx((1.2 if name == "mass" else 1.0) * mass, abs=1e-6)
        assert found[1] == pytest.approx([(1.2 if name == "gravity" else 1.0) * part for part in gravity], abs=1e-5)
        torch.testing.assert_close(found[2], rates / (1.2 if name == "inertia" else 1.0), rtol=1e-4, atol=1e-7)
    assert rates[:2].abs().min() > 0.5
