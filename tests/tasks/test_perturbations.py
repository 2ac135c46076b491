"""What the built-in simulator varies, against its own parameters, closed forms and steps by hand."""

from __future__ import annotations

import math

import pytest
import torch

from foundation.core.errors import UserError
from foundation.tasks.pursuit.chase import QuadcopterChaseEnv
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.sim.quadrotor import BODY_RATES, ROTORS, VELOCITY
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

MASS = 0.0306
"""Of the Crazyflie [kg]."""


def make_env(num_envs: int = 4, **cfg) -> QuadcopterPointCtrlEnv:
    values = QuadcopterPointCtrlEnvCfg(**cfg)
    values.scene.num_envs = num_envs
    return QuadcopterPointCtrlEnv(values)


def fall(env: QuadcopterPointCtrlEnv, rotor_speed: float) -> float:
    """Return the vertical acceleration [m/s^2] of a level vehicle whose rotors hold a speed."""
    state = torch.zeros(17, env.num_envs)
    state[9] = 1.0
    state[ROTORS] = rotor_speed
    command = torch.full((4, env.num_envs), 2.0 * rotor_speed - 1.0)
    return float((env.integrate(state, command)[VELOCITY][2] / env.step_dt)[0])


def hover_speed(mass: float, gravity: float = 9.81) -> float:
    """Solve c0 + c1 u + c2 u^2 = m g / 4 for one of the Crazyflie's rotors."""
    c0, c1, c2 = 0.00352526, 0.01437313, 0.09223048
    return (-c1 + math.sqrt(c1 * c1 - 4 * c2 * (c0 - mass * gravity / 4))) / (2 * c2)


@pytest.mark.parametrize("percent", [-30.0, 20.0, 40.0])
def test_a_mass_of_20_percent_more_is_a_mass_of_20_percent_more(percent):
    """The parameter is the nominal one times 1.2, and hovering takes the thrust that a quadratic gives for it."""
    env = make_env()
    env.perturb({"mass": percent})
    mass = MASS * (1 + percent / 100)
    assert env.vehicles.mass[0].item() == pytest.approx(mass, rel=1e-6)
    assert fall(env, hover_speed(mass)) == pytest.approx(0.0, abs=2e-3)
    assert fall(env, hover_speed(MASS)) == pytest.approx(9.81 * (1 / (1 + percent / 100) - 1), abs=2e-3)


def test_gravity_is_scaled_alone():
    """Without thrust a vehicle falls at the changed gravity less the idle thrust c0 over its unchanged mass."""
    env = make_env()
    env.perturb({"gravity": 30.0})
    idle = 4 * 0.00352526 / MASS
    assert fall(env, 0.0) == pytest.approx(-1.3 * 9.81 + idle, abs=2e-3)
    assert env.vehicles.mass[0].item() == pytest.approx(MASS)


def test_twice_the_inertia_is_half_the_angular_acceleration():
    """The same difference of thrust turns the vehicle half as fast."""
    rates = []
    for percent in (0.0, 100.0):
        env = make_env()
        env.perturb({"inertia": percent})
        state = torch.zeros(17, env.num_envs)
        state[9] = 1.0
        state[ROTORS] = torch.tensor([0.4, 0.4, 0.6, 0.6]).unsqueeze(1)
        rates.append(env.integrate(state, 2.0 * state[ROTORS] - 1.0)[BODY_RATES][0, 0].item())
    assert rates[0] != 0.0
    assert rates[1] == pytest.approx(0.5 * rates[0], rel=1e-5)


def test_naming_nothing_restores_the_nominal_vehicle():
    """After a perturbation an empty one gives the same bits as an environment that never had one."""
    actions = torch.zeros(4, 4)
    varied, untouched = make_env(), make_env()
    varied.perturb({"mass": 20.0, "control_rate": 2.0, "push": 1.0})
    varied.reset(0)
    varied.step(actions)
    varied.perturb({})
    for env in (varied, untouched):
        env.reset(3)
    assert varied.max_episode_length == untouched.max_episode_length
    for _ in range(5):
        one, other = varied.step(actions), untouched.step(actions)
        assert torch.equal(one[0]["policy"], other[0]["policy"]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize(("rate", "steps", "interval"), [(0.5, 250, 0.02), (1.0, 500, 0.01), (2.0, 1000, 0.005)])
def test_half_the_rate_is_half_as_many_decisions_in_the_same_time(rate, steps, interval):
    """An episode lasts 5 s at any rate, and motion under a held command is the same after the same time."""
    env = make_env()
    env.perturb({"control_rate": rate})
    env.reset(0)
    assert env.max_episode_length == steps
    assert env.step_dt == pytest.approx(interval)
    state = env.state.clone()
    command = torch.full((4, 4), 0.3)
    for _ in range(round(0.1 / interval)):
        state = env.integrate(state, command)
    nominal = make_env()
    nominal.reset(0)
    expected = nominal.state.clone()
    for _ in range(10):
        expected = nominal.integrate(expected, command)
    assert torch.allclose(state, expected, atol=2e-4)


def test_an_episode_that_rests_is_worth_the_same_at_any_rate():
    """The reward's integrals over time do not depend on how often it is asked: 1.5 for each 0.01 s at the target."""
    for rate in (0.5, 1.0, 2.0):
        env = make_env(1)
        env.perturb({"control_rate": rate})
        env.reset(0)
        assert env.reward_weights[0].item() * env.max_episode_length == pytest.approx(750.0)
        assert env.reward_weights[4].item() == -100.0  # an event, not an integral
    chase = QuadcopterChaseEnv()
    before = chase.reward_weights.clone()
    chase.perturb({"control_rate": 0.5})
    assert chase.reward_weights[:3].equal(2.0 * before[:3]) and chase.reward_weights[3:].equal(before[3:])


def test_a_push_changes_the_velocity_by_its_speed_once_a_second():
    """With the same commands a pushed and an unpushed vehicle differ by 0.5 m/s from the second second on, not before.

    Nothing but gravity and thrust acts on a vehicle, and neither depends on its velocity.
    """
    pushed, still = make_env(8, episode_length_s=3.0), make_env(8, episode_length_s=3.0)
    for env in (pushed, still):
        env.cfg.terminations.position = 1e3
        env._limits.fill_(1e6)
    pushed.perturb({"push": 0.5})
    for env in (pushed, still):
        env.reset(1)
    gaps = []
    for _ in range(150):
        for env in (pushed, still):
            env.step(torch.zeros(8, 4))
        gaps.append((pushed.state[VELOCITY] - still.state[VELOCITY]).norm(dim=0))
    assert gaps[99].max() == 0.0
    assert torch.allclose(gaps[100], torch.full((8,), 0.5), atol=1e-4)
    assert torch.allclose(gaps[149], torch.full((8,), 0.5), atol=1e-3)
    pushed.reset(1)
    again = [pushed.step(torch.zeros(8, 4))[0] for _ in range(101)][-1]["policy"]
    pushed.reset(2)
    other = [pushed.step(torch.zeros(8, 4))[0] for _ in range(101)][-1]["policy"]
    assert not torch.equal(again, other)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mass": -100.0}, "mass=-100: a change of more than -100 %"),
        ({"gravity": -101.0}, "gravity=-101"),
        ({"control_rate": 0.0}, "control_rate=0: a positive number"),
        ({"push": math.inf}, "push=inf"),
    ],
)
def test_what_cannot_be_is_refused(values, said):
    """A value that no vehicle can have is a user's mistake, named as it was typed."""
    with pytest.raises(UserError, match=said):
        make_env(1).perturb(values)


def test_a_compiled_step_is_not_varied():
    """Its constants are those of the nominal vehicles: the flag is named rather than nothing happening."""
    env = make_env(1)
    env.cfg.compile = True
    with pytest.raises(UserError, match=r"env\.compile=true"):
        env.perturb({"mass": 10.0})
