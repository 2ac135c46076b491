"""The real ``l2f`` package as an engine."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from foundation.config.values import apply_values
from foundation.core.errors import UserError
from foundation.engines import engine_class, engine_names, select_engine
from foundation.engines.base import LaunchRequest
from foundation.policies.actors import PolicyActor, RandomActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.evaluate import evaluate
from foundation.tasks.quadrotor.sim import l2f_dynamics
from foundation.tasks.quadrotor.sim.l2f_dynamics import L2fDynamics
from foundation.tasks.quadrotor.sim.quadrotor import QuadrotorDynamics
from foundation.tasks.quadrotor.sim.vehicles import sample_vehicles
from foundation.teachers import TeacherPolicyWrapper

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"
SHIPPED = "foundation/assets/teachers/point_ctrl/model.pt"


@contextmanager
def _open(engine: str, num_envs: int, seed: int = 1, **values):
    chosen = engine_class(engine)()

    def configure(env_cfg, agent_cfg):
        chosen.set_common(env_cfg, num_envs=num_envs, seed=seed, device="cpu")
        apply_values(env_cfg, values, "env")

    with chosen.launch(LaunchRequest(TASK), configure) as (env_cfg, agent_cfg):
        yield chosen.make_env(env_cfg, agent_cfg)


def test_it_is_an_engine_that_auto_leaves_alone():
    """The folder lists it; ``auto`` still takes the built-in simulator for the same task."""
    assert "l2f" in engine_names()
    assert engine_class("l2f").why_not(TASK) is None
    assert engine_class("l2f").why_not("CartPole-v1") is not None
    assert select_engine(TASK)[0].name == "torch"


def test_a_missing_package_is_one_line(monkeypatch):
    """Without the package the engine says what to install."""
    monkeypatch.setattr(l2f_dynamics.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^--engine l2f cannot run .*'l2f' is not installed: pip install l2f"):
        select_engine(TASK, "l2f")


@pytest.mark.parametrize("values", [{}, {"vehicles": "sampled:7:3"}], ids=["crazyflie", "sampled, pushed"])
def test_episodes_begin_as_in_the_built_in_engine_and_fly_the_same(values):
    """Same seed, same initial states and forces; then the observations, rewards and ends of two programs agree.

    21 environments are two and more of the package's compiled sizes. The compiled sizes' borders, vehicles out of
    their order or forces that are not applied would differ from the first step on.
    """
    generator = torch.Generator().manual_seed(0)
    commands = torch.rand(30, 21, 4, generator=generator) * 2 - 1
    flights = []
    for engine in ("torch", "l2f"):
        with _open(engine, 21, **values) as env:
            seen = [env.reset(5)]
            results = [env.step(command) for command in commands]
            seen += [step[0] for step in results]
            flights.append((torch.stack([obs["l2f"] for obs in seen]), torch.stack([step[1] for step in results])))
            dones = torch.stack([step[2] for step in results])
            flights[-1] += (dones,)
    (ours, our_rewards, our_dones), (theirs, their_rewards, their_dones) = flights
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(our_dones, their_dones)
    scale = ours.abs().clamp(min=1.0)
    assert ((ours - theirs).abs() / scale).max() < 1e-3
    assert not torch.equal(ours[-1], theirs[-1]), "two programs do not round alike"
    torch.testing.assert_close(our_rewards, their_rewards, atol=2e-3, rtol=0)


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


def test_one_environment_is_flown_whatever_its_strides():
    """A lone column's strides mean nothing to torch, but the package checks those of the rows it is given."""
    vehicle = sample_vehicles(1)
    state, actions = torch.zeros(17, 1), torch.full((4, 1), 0.5)
    state[9] = 1.0
    ours = QuadrotorDynamics(vehicle.to(dtype=torch.float32), 0.01).step(state, actions)
    for layout in (state, state.T.contiguous().T):
        for command in (actions, actions.T.contiguous().T):
            torch.testing.assert_close(L2fDynamics(vehicle, 0.01).step(layout, command), ours, rtol=1e-5, atol=1e-6)


def test_a_torque_that_it_cannot_draw_is_refused():
    """Vehicles with a random torque are an error, not flown without it."""
    vehicles = sample_vehicles(2)
    vehicles.torque_std.fill_(1e-4)
    with pytest.raises(UserError, match="random_torque"):
        L2fDynamics(vehicles, 0.01)


def test_the_shipped_teacher_flies_as_well_here():
    """Its return over the same 64 episodes is the built-in engine's to 0.1 %, and random actions crash in both."""
    returns = {}
    for engine in ("torch", "l2f"):
        with _open(engine, 64) as env:
            teacher = TeacherPolicyWrapper(SHIPPED)
            actor = PolicyActor(teacher, ObsSelector(teacher.obs_groups or ["policy"]))
            returns[engine] = evaluate(env, actor, 64, 11)
            assert evaluate(env, RandomActor(4, 0, "cpu"), 64, 11).success.float().mean() < 0.1
    assert returns["l2f"].success.all()
    assert returns["l2f"].mean_return == pytest.approx(returns["torch"].mean_return, rel=1e-3)
