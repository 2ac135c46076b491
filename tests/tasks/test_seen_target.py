"""Point control with a target that is seen: the same episodes as point control's, and what the camera adds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from foundation.core.errors import UserError
from foundation.tasks.camera.camera import CameraCfg
from foundation.tasks.quadrotor.env_cfg import SceneCfg
from foundation.tasks.seen_target.layout import make_layout
from foundation.tasks.seen_target.seen_env import BallCfg, QuadcopterPointCtrlSeenEnv, QuadcopterPointCtrlSeenEnvCfg


def make(num_envs: int = 8, **changes: Any) -> QuadcopterPointCtrlSeenEnv:
    return QuadcopterPointCtrlSeenEnv(replace(QuadcopterPointCtrlSeenEnvCfg(scene=SceneCfg(num_envs)), **changes))


def test_only_the_camera_and_the_teachers_groups_tell_where_the_target_is():
    """Moved by a metre, the same vehicle has the same ``proprioception`` and ``inertial``, and another image."""
    env = make()
    here = {name: value.clone() for name, value in env.get_observations().items()}
    env._state = env.state.clone()
    env._state[1] += 0.3
    env._observations = env.with_noise(env.observe() | env._see(None))
    there = env.get_observations()
    same = {name for name, value in here.items() if torch.equal(value, there[name])}
    assert same == {"proprioception", "inertial"}
    assert (here["camera"] != there["camera"]).flatten(1).any(1).all()


def test_groups_are_what_their_layout_says():
    """Sizes, and the parts of ``deployable`` that the student's groups are."""
    obs = make().get_observations()
    fields = make_layout()
    for group, value in obs.items():
        if group != "camera":
            assert value.shape[1] == sum(field.size for field in fields[group]), group
    deployable = obs["deployable"]
    assert torch.equal(obs["target"], deployable[:, :3])
    assert torch.equal(obs["proprioception"], deployable[:, 3:])
    assert torch.equal(obs["inertial"], torch.cat([deployable[:, 3:12], deployable[:, 15:]], dim=1))


def test_a_vehicle_that_hovers_at_its_target_sees_the_ball_in_the_middle_at_its_distance():
    """Depth of the ball's front, within one level of the image's scale."""
    env = make(1)
    env._state = torch.zeros(17, 1)
    env._state[9] = 1.0
    image = env._see(None)["camera"][0, 0].float() * 3.0 / 255
    expected = 1.25 - 0.2 - 0.03
    assert image[15:17, 15:17].mean().item() == pytest.approx(expected, abs=0.02)
    assert (image[:2] == 3.0).all()


def test_success_is_to_stay_near_the_target():
    """At rest on the target the episode is a success by time-out; held to a stricter distance it is not."""
    for distance, success in ((0.1, True), (1e-9, False)):
        env = make(1, success_distance=distance, episode_length_s=0.03, camera=CameraCfg())
        env.cfg.init.at_target = 1.0
        env._state = torch.zeros(17, 1)
        env._state[9], env._state[13:] = 1.0, 0.8062
        for _ in range(3):
            _, _, dones, extras = env.step(torch.full((1, 4), 0.6124))
        assert dones.all() and extras["time_outs"].all()
        assert bool(extras["episode_metrics"]["success"]) is success


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ball": BallCfg(radius=0.0)}, "env.ball.radius must be positive"),
        ({"ball": BallCfg(distance=0.1)}, "env.ball.distance must be greater than env.ball.radius"),
        ({"success_distance": 0.0}, "env.success_distance must be positive"),
        ({"camera": None}, "env.camera=null"),
        ({"compile": True}, "leave env.compile off"),
    ],
)
def test_values_that_no_such_task_can_have_are_one_line(changes, words):
    """The line names the key that is typed."""
    with pytest.raises(UserError) as error:
        make(2, **changes)
    assert words in str(error.value) and "\n" not in str(error.value)
