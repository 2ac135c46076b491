"""The seen target in Isaac Lab: its sensor has the built-in camera's settings; what it measures becomes the group."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from foundation.tasks.camera.camera import Camera, CameraCfg
from foundation.tasks.seen_target.isaaclab_env import (
    QuadcopterPointCtrlSeenIsaacEnv,
    QuadcopterPointCtrlSeenIsaacEnvCfg,
    sensor_cfg,
)


def test_the_sensor_has_the_cameras_settings():
    """Angle of view by focal length and aperture, pose in the body's axes, size, and the outputs that are read."""
    made = sensor_cfg(CameraCfg(image="rgbd", width=40, height=24, horizontal_fov=1.2, rotation=(0.8, 0.0, 0.6, 0.0)))
    lens = made.spawn
    assert 2.0 * math.atan(0.5 * lens.horizontal_aperture / lens.focal_length) == pytest.approx(1.2)
    assert (made.width, made.height) == (40, 24)
    assert made.data_types == ["rgb", "distance_to_image_plane"]
    assert made.offset.rot == (0.0, 0.6, 0.0, 0.8)
    assert made.offset.convention == "world"
    assert sensor_cfg(CameraCfg(image="none")) is None


def test_the_task_without_a_camera_has_the_built_in_groups():
    """With env.camera.image=none it runs on this machine: names and sizes are those of the built-in task."""
    cfg = QuadcopterPointCtrlSeenIsaacEnvCfg()
    cfg.scene.num_envs, cfg.camera.image, cfg.seed = 4, "none", 3
    env = QuadcopterPointCtrlSeenIsaacEnv(cfg)
    try:
        env.reset(3)
        obs, *_ = env.step(torch.full((4, 4), 0.612, device=env.device))
        sizes = {name: tuple(value.shape) for name, value in obs.items()}
        assert {name: sizes[name] for name in ("policy", "proprioception", "inertial", "target")} == {
            "policy": (4, 26),
            "proprioception": (4, 19),
            "inertial": (4, 16),
            "target": (4, 3),
        }
        assert env.extras["episode_metrics"]["success"].shape == (4,)
        # What a sensor would measure, here in its place, is the group: near is dark, nothing is as far as can be.
        env._camera = Camera(CameraCfg(image="depth"), 4, torch.device(env.device))
        depth = torch.full((4, 32, 32, 1), torch.inf)
        depth[1] = 1.5
        sensor = SimpleNamespace(data=SimpleNamespace(output={"distance_to_image_plane": depth}))
        env.scene.sensors["camera"] = sensor
        camera = env._get_observations()["camera"]
        assert camera.shape == (4, 1, 32, 32) and camera.dtype == torch.uint8
        assert camera[0].eq(255).all() and camera[1].eq(128).all()
    finally:
        env.scene.sensors.pop("camera", None)
        env.close()
