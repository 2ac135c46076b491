"""The seen target in Isaac Lab: its sensor has the built-in camera's settings; what it measures becomes the group."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from foundation.tasks.camera.camera import Camera, CameraCfg
from foundation.tasks.seen_target.isaaclab_env import sensor_cfg


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


def test_the_task_has_the_built_in_groups(open_environment):
    """Names, sizes and types are those of the built-in task, where nothing renders here: a sensor's stand-in."""
    task = "Isaac-Quadcopter-Point-Ctrl-Seen-v0"
    with open_environment("isaaclab", task, 4, camera__image="none") as env:
        obs, _, _, extras = env.step(torch.full((4, 4), 0.612))
        sizes = {name: tuple(value.shape) for name, value in obs.items()}
        with open_environment("torch", task, 4, camera__image="none") as other:
            assert sizes == {name: tuple(value.shape) for name, value in other.get_observations().items()}
        assert extras["episode_metrics"]["success"].shape == (4,)
        inner = env.unwrapped
        inner._camera = Camera(CameraCfg(image="depth"), 4, torch.device("cpu"))
        depth = torch.full((4, 32, 32, 1), torch.inf)
        depth[1] = 1.5
        sensors = inner.scene.sensors
        sensors["camera"] = SimpleNamespace(data=SimpleNamespace(output={"distance_to_image_plane": depth}))
        try:
            camera = inner._get_observations()["camera"]
        finally:
            del sensors["camera"]
        assert camera.shape == (4, 1, 32, 32) and camera.dtype == torch.uint8
        # Nothing is as far as can be, half the range is half of a byte's.
        assert camera[0].eq(255).all() and camera[1].eq(128).all()
