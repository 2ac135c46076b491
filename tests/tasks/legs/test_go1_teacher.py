"""The shipped Go1 teacher walks: it tracks commands, lifts all feet, and stays up on robots that it has not met."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import foundation
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import teacher_selector
from foundation.rollout.evaluate import evaluate
from foundation.tasks.legs.velocity_env import Go1FlatEnvCfg, Go1VelocityEnv
from foundation.tasks.mujoco.env import SceneCfg
from foundation.tasks.mujoco.package import mujoco_is_installed
from foundation.teachers import TeacherPolicyWrapper

TEACHER = Path(foundation.__file__).parent / "assets" / "teachers" / "go1" / "model.pt"
NUM_ENVS = 32
can_run = pytest.mark.skipif(
    not mujoco_is_installed() or importlib.util.find_spec("mjlab") is None, reason="needs mujoco, and mjlab's files"
)


def test_it_is_small():
    """Less than 400 kB."""
    assert TEACHER.stat().st_size < 400_000


@can_run
def test_it_trots_as_it_is_told():
    """On other robots of the same ranges: few falls, a small velocity error, and feet off the ground."""
    cfg = Go1FlatEnvCfg(scene=SceneCfg(NUM_ENVS))
    cfg.variation.seed = 5
    env = Go1VelocityEnv(cfg)
    policy = TeacherPolicyWrapper(TEACHER)
    actor = PolicyActor(policy, teacher_selector(policy, env.get_observations(), policy.obs_groups))
    measured = evaluate(env, actor, NUM_ENVS, seed=3).summary()
    env.close()
    assert measured["success_rate"] > 0.8
    assert measured["velocity_error"] < 0.25  # standing still: about 0.5 m/s
    for feet in ("front_duty", "rear_duty"):
        assert 0.4 < measured[feet] < 0.8, feet
    assert measured["foot_slip"] < 0.3
