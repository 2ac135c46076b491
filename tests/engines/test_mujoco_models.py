"""MuJoCo's models, varied: against the parameters themselves, a free fall and another environment."""

from __future__ import annotations

import pytest
import torch

from foundation.core.errors import UserError
from foundation.engines.base import EnvCapabilities, is_perturbable
from foundation.engines.gymnasium import find_spec, make_vec_env
from foundation.engines.gymnasium_cfg import GymnasiumEnvCfg

pytest.importorskip("mujoco")


def make(task: str = "InvertedPendulum-v5", **options):
    cfg = GymnasiumEnvCfg(**options)
    cfg.scene.num_envs = 2
    return make_vec_env(find_spec(task), cfg)


def first(env):
    return env._vector.envs[0].unwrapped


def test_each_quantity_scales_its_own_parameter_in_every_environment():
    """+20 % of mass is 1.2 times every body's mass, and leaves the rest; nothing named is nominal again."""
    env = make()
    inner = [part.unwrapped for part in env._vector.envs]
    before = [(e.model.body_mass.copy(), e.model.body_inertia.copy(), e.model.opt.gravity.copy()) for e in inner]
    env.perturb({"mass": 20.0})
    for e, (mass, inertia, gravity) in zip(inner, before, strict=True):
        assert e.model.body_mass == pytest.approx(1.2 * mass)
        assert e.model.body_inertia == pytest.approx(inertia)
        assert e.model.opt.gravity == pytest.approx(gravity)
    env.perturb({"gravity": -50.0, "inertia": 100.0})
    for e, (mass, inertia, gravity) in zip(inner, before, strict=True):
        assert e.model.body_mass == pytest.approx(mass)
        assert e.model.body_inertia == pytest.approx(2.0 * inertia)
        assert e.model.opt.gravity == pytest.approx(0.5 * gravity)
    env.perturb({})
    assert inner[1].model.opt.gravity == pytest.approx(before[1][2])


def test_nominal_again_gives_the_same_bits():
    """After a perturbation an environment steps as one that was never varied."""
    varied, untouched = make(), make()
    varied.perturb({"mass": 30.0})
    varied.reset(1)
    varied.step(torch.zeros(2, 1))
    varied.perturb({})
    for env in (varied, untouched):
        env.reset(4)
    for _ in range(10):
        one, other = varied.step(torch.ones(2, 1)), untouched.step(torch.ones(2, 1))
        assert torch.equal(one[0]["policy"], other[0]["policy"])


def test_a_heavier_pendulum_accelerates_less():
    """A cart of 1.4 times the mass under the same force gains 1/1.4 of the speed, all masses scaled alike."""
    speeds = []
    for percent in (0.0, 40.0):
        env = make()
        env.perturb({"mass": percent, "inertia": percent, "gravity": -100.0})
        env.reset(0)
        first(env).set_state(first(env).init_qpos, first(env).init_qvel)
        obs, *_ = env.step(torch.full((2, 1), 0.5))
        speeds.append(float(obs["policy"][0, 2]))
    assert speeds[1] == pytest.approx(speeds[0] / 1.4, rel=0.03)


def test_what_mujoco_does_not_run_declares_nothing():
    """CartPole computes its own physics, and processes of their own cannot be reached."""
    assert not is_perturbable(make("CartPole-v1"))
    assert EnvCapabilities.of(make()).perturbations["friction"].unit == "%"


def test_a_mass_below_nothing_is_refused():
    """One line that names what was typed."""
    with pytest.raises(UserError, match="mass=-100: a change of more than -100 %"):
        make().perturb({"mass": -100.0})
