"""Mass, inertia, gravity and pushes in Isaac Lab, against its own parameters and closed forms."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

from foundation.core.errors import UserError
from foundation.engines.perturbed import PerturbedEnv
from foundation.policies.actors import ZeroActor
from foundation.viewer.stage import Stage

FREE = {"terminations__position": 1e6, "terminations__velocity": 1e6, "terminations__body_rate": 1e6}
STILL = {"init__at_target": 1.0, "init__rotor_speed": (0.0, 0.0)}
MASS = 0.0306
IDLE = 4 * 0.00352526
"""Thrust of motors that stand still [N]."""


def idle_fall(env: Any) -> torch.Tensor:
    """Vertical velocity after half a second with the motors off [m/s]. Shape: (num_envs,)."""
    env.reset(0)
    for _ in range(50):
        obs = env.step(-torch.ones(env.num_envs, 4))[0]["l2f"]
    return obs[:, 14]


def test_each_quantity_is_the_simulators_own(open_environment):
    """+20 % of mass and inertia are 1.2 times the simulator's values, and the fall is the closed form's.

    With the motors off the acceleration is idle thrust over mass less gravity: each quantity changes its own term.
    """
    with open_environment("isaaclab", num_envs=2, **FREE, **STILL) as inner:
        env = PerturbedEnv(inner)
        body = inner.unwrapped.scene["robot"].data
        inertia = body.body_inertia.torch.clone()
        for name, acceleration in (
            ("mass", IDLE / (1.2 * MASS) - 9.81),
            ("gravity", IDLE / MASS - 1.2 * 9.81),
            (None, IDLE / MASS - 9.81),
        ):
            env.vary(name, 20.0)
            mass = 1.2 * MASS if name == "mass" else MASS
            torch.testing.assert_close(body.body_mass.torch.flatten(), torch.full((2,), mass))
            torch.testing.assert_close(idle_fall(env), torch.full((2,), 0.5 * acceleration), atol=1e-3, rtol=0)
        env.vary("inertia", 20.0)
        torch.testing.assert_close(body.body_inertia.torch, 1.2 * inertia)
        torch.testing.assert_close(body.body_mass.torch.flatten(), torch.full((2,), MASS))
        env.vary(None)
        assert torch.equal(body.body_inertia.torch, inertia)
        with pytest.raises(UserError, match="control_rate: this environment cannot vary it"):
            env.vary("control_rate", 2.0)


def test_more_inertia_turns_more_slowly(open_environment):
    """One motor alone turns the body with torque over inertia: at +100 % the rates are half, to the rotors' lag."""
    rates = []
    for percent in (0.0, 100.0):
        with open_environment("isaaclab", num_envs=1, **FREE, **STILL) as inner:
            inner.perturb({"inertia": percent} if percent else {})
            inner.reset(0)
            for _ in range(3):
                inner.step(torch.tensor([[1.0, -1.0, -1.0, -1.0]]))
            rates.append(inner.unwrapped._body_rates[:, 0].clone())
    torch.testing.assert_close(rates[1][:2], 0.5 * rates[0][:2], rtol=2e-2, atol=0)


def test_a_push_changes_the_velocity_by_its_speed(open_environment):
    """Once a second, and at once where it is asked for by hand."""
    with open_environment("isaaclab", num_envs=3, **FREE, **STILL) as env:
        inner = env.unwrapped

        def flight(values: dict[str, float]) -> torch.Tensor:
            env.perturb(values)
            env.reset(0)
            seen = []
            for _ in range(102):
                env.step(-torch.ones(3, 4))
                seen.append(inner._velocity.clone())
            return torch.stack(seen)

        change = flight({"push": 0.5}) - flight({})
        assert change[:100].abs().max() < 1e-5
        torch.testing.assert_close(change[100].norm(dim=0), torch.full((3,), 0.5), atol=2e-3, rtol=0)
        before = inner._velocity.clone()
        env.push(torch.tensor([0.3, 0.0, 0.0]).expand(3, 3))
        env.step(-torch.ones(3, 4))
        torch.testing.assert_close((inner._velocity - before)[0], torch.full((3,), 0.3), atol=2e-3, rtol=0)


def test_any_task_has_the_parameters_of_its_bodies(open_environment):
    """A manager-based task that declares nothing: mass and gravity are Isaac Lab's own, and nominal again at the end.

    The body is pulled with its nominal weight, so that its acceleration is weight over mass less gravity.
    """
    importlib.import_module("toy_tasks")
    with open_environment("isaaclab", task="Toy-Lift-Manager", num_envs=2) as inner:
        env = PerturbedEnv(inner)
        assert {"mass", "inertia", "gravity"} <= set(env.quantities)
        robot = inner.unwrapped.scene["robot"]
        masses = robot.data.body_mass.torch.clone()
        for name, percent, acceleration in (
            ("mass", 20.0, MASS * 9.81 / (1.2 * MASS) - 9.81),
            ("gravity", 20.0, 9.81 - 1.2 * 9.81),
            (None, 0.0, 0.0),
        ):
            env.vary(name, percent)
            env.reset(0)
            for _ in range(5):
                env.step(torch.zeros(2, 1))
            climb = robot.data.root_lin_vel_w.torch[:, 2]
            torch.testing.assert_close(climb, torch.full((2,), 5 * 0.02 * acceleration), atol=2e-3, rtol=0)
            expected = masses * (1.2 if name == "mass" else 1.0)
            torch.testing.assert_close(robot.data.body_mass.torch, expected)
        with pytest.raises(UserError, match="a change of more than -100 % is needed"):
            env.vary("mass", -100.0)


def test_the_viewer_shows_two_policies_in_one_environment(open_environment):
    """Each policy is at the pose of its own vehicle, from the centre of its environment, and a push moves both."""
    with open_environment("isaaclab", num_envs=2, **FREE) as env:
        inner = env.unwrapped
        stage = Stage({"teacher": ZeroActor(4), "student": ZeroActor(4)}, [env], None, 3)
        stage.restart()
        for _ in range(3):
            stage.step()
        for place, seat in enumerate(stage.seats):
            pose = torch.cat([inner._position, inner._quaternion])[:, place]
            torch.testing.assert_close(torch.tensor(seat.poses["vehicle"]), pose.cpu())
        assert stage.can_push and stage.seats[0].poses["vehicle"] != stage.seats[1].poses["vehicle"]
        before = inner._velocity.clone()
        stage.push(1.0)
        stage.step()
        change = (inner._velocity - before).norm(dim=0)
        torch.testing.assert_close(change, torch.ones(2), atol=0.15, rtol=0)
