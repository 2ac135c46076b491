"""Images that are made of another simulator's sensor are those of the built-in camera."""

from __future__ import annotations

import pytest
import torch

from foundation.tasks.camera.camera import Camera, CameraCfg
from foundation.tasks.camera.scene import Scene, cast
from foundation.tasks.camera.sensor import COLOUR, DEPTH, measured

NUM_ENVS = 3


@pytest.mark.parametrize("dtype", ["uint8", "float16"])
@pytest.mark.parametrize("image", ["depth", "rgb", "rgbd"])
def test_a_sensors_outputs_give_the_built_in_cameras_images(image, dtype):
    """Channels last, depth infinite beyond the range and colour in bytes, as sensors have them: the same group."""
    cfg = CameraCfg(image=image, dtype=dtype, width=12, height=10, max_depth=2.0)
    camera = Camera(cfg, NUM_ENVS, torch.device("cpu"))
    balls = torch.tensor([[1.0, 0.0, 0.0, 0.3], [1.5, 0.4, 0.1, 0.2], [9.0, 0.0, 0.0, 0.5]]).T.unsqueeze(0)
    scene = Scene(spheres=balls, ground=torch.full((NUM_ENVS,), -1.0))
    upright = torch.tensor([[1.0], [0.0], [0.0], [0.0]]).expand(4, NUM_ENVS)
    pose = camera.pose(torch.zeros(3, NUM_ENVS), upright)
    depth, colour = cast(camera.rays, pose, scene, True)
    assert colour is not None
    far = torch.where(depth > cfg.max_depth, torch.inf, depth)
    shown = (colour.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    outputs = {DEPTH: far.unsqueeze(-1), COLOUR: shown.permute(0, 2, 3, 1)}
    kinds = {"depth": [DEPTH], "rgb": [COLOUR], "rgbd": [COLOUR, DEPTH]}[image]
    made = camera.compose(*measured({kind: outputs[kind] for kind in kinds}))
    expected = camera.render(pose, scene)
    assert made.shape == expected.shape == camera.shape and made.dtype == expected.dtype
    worst = (made.float() - expected.float()).abs().max()
    assert worst <= (0.0 if dtype == "uint8" or image == "depth" else 0.5 / 255.0 + 1e-3)  # the sensor's own rounding
