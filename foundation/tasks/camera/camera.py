"""A pinhole camera on each vehicle: its configuration, its pose, and the images that an environment observes.

Axes: the body's x points forward, y left and z up, and so do the camera's, with x along the optical axis (Isaac Lab's
convention ``world``). Row 0 of an image is its top, column 0 its left. Depth is the distance to the image plane (Isaac
Lab's ``distance_to_image_plane``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from foundation.config.derived_cfg import LONGEST
from foundation.core.errors import UserError
from foundation.core.memory import refuse_beyond_memory
from foundation.tasks.camera.scene import Pose, Scene, cast
from foundation.tasks.camera.solids import Rays
from foundation.tasks.quadrotor.sim.rotation import rotation_rows

if TYPE_CHECKING:
    import numpy as np

CHANNELS = {"none": 0, "depth": 1, "rgb": 3, "rgbd": 4}
"""Channels of each kind of image."""
BLOCK_RAYS = 32_768
"""Rays that are cast at once on a CPU, so that what is computed of them stays in its cache."""
RAY_BYTES = 120
"""Intermediate results of one ray."""
_SEED_OFFSET = 0x5EE
"""Added to the environment's seed, so that the camera's noise is not made of the same numbers as the episodes."""


@dataclass
class CameraCfg:
    """A camera that is fixed to the body, in the observation group ``camera`` (num_envs, channels, height, width)."""

    image: Literal["none", "depth", "rgb", "rgbd"] = "none"
    """Channels: depth, red-green-blue, or those three and depth. ``none``: no camera, at no cost."""
    width: int = 32
    """Columns [px]."""
    height: int = 32
    """Rows [px]."""
    horizontal_fov: float = 1.5707963267948966
    """Angle between the left and the right edge of the image [rad]."""
    max_depth: float = 3.0
    """Range; what is farther away, or nothing, has this depth [m]."""
    dtype: Literal["uint8", "float16"] = "uint8"
    """``uint8``: colour from 0 to 255, and 255 times the depth over ``max_depth``. ``float16``: colour from 0 to 1, and
    the depth over ``max_depth``."""
    position: tuple[float, float, float] = (0.03, 0.0, 0.0)
    """Of the camera on the body: forward, left, up [m]."""
    rotation: tuple[float, float, float, float] = (1.0, 0.0, 0.0, 0.0)
    """Quaternion (w, x, y, z), camera to body. (1, 0, 0, 0): it looks forward."""
    delay: int = 0
    """Age of the images [env steps]."""
    depth_noise: float = 0.0
    """Standard deviation of the depth of each pixel [m]."""
    colour_noise: float = 0.0
    """Standard deviation of each colour of each pixel, of 1 at full brightness."""
    dropout: float = 0.0
    """Fraction of the pixels without an echo, whose depth is ``max_depth``."""


def check_camera_cfg(cfg: CameraCfg | None, name: str = "env.camera") -> None:
    """Refuse values that no camera can have.

    Args:
        cfg: The configuration.
        name: What a user types to set it.
    """
    if cfg is None:
        raise UserError(f"{name}=null: the task needs it; {name}.image=none switches the camera off")
    values = vars(cfg)
    expected = {
        "image": (cfg.image in CHANNELS, f"one of {', '.join(CHANNELS)}"),
        "dtype": (cfg.dtype in ("uint8", "float16"), "uint8 or float16"),
        **{field: (0 < values[field] < math.inf, "positive") for field in ("width", "height", "max_depth")},
        "horizontal_fov": (0.0 < cfg.horizontal_fov < math.pi, "between 0 and pi [rad]"),
        "delay": (0 <= cfg.delay <= LONGEST, f"from 0 to {LONGEST}"),
        **{field: (0 <= values[field] < math.inf, "0 or more") for field in ("depth_noise", "colour_noise")},
        "dropout": (0.0 <= cfg.dropout <= 1.0, "within [0, 1]"),
        "position": (all(math.isfinite(value) for value in cfg.position), "three finite numbers [m]"),
        "rotation": (1e-6 < math.hypot(*cfg.rotation) < math.inf, "a quaternion (w, x, y, z) other than zero"),
    }
    for field, (valid, what) in expected.items():
        if not valid:
            raise UserError(f"{name}.{field} must be {what}, it is {values[field]}")


class Camera:
    """One camera in each environment. It draws noise from a generator of its own, so that no episode depends on it."""

    def __init__(self, cfg: CameraCfg, num_envs: int, device: torch.device, name: str = "env.camera"):
        """Lay out the rays, and allocate the images that are delayed.

        Args:
            cfg: A checked configuration with an image other than ``none``.
            num_envs: Number of environments.
            device: Device of poses and images.
            name: What a user types to set the configuration, for messages.
        """
        self.cfg = cfg
        self.shape = (num_envs, CHANNELS[cfg.image], cfg.height, cfg.width)
        self.dtype = torch.uint8 if cfg.dtype == "uint8" else torch.float16
        self._refuse_beyond_memory(device, name)
        self.rays = Rays.pinhole(cfg.width, cfg.height, cfg.horizontal_fov, device)
        length = math.hypot(*cfg.rotation)
        quaternion = torch.tensor([[value / length] for value in cfg.rotation], dtype=torch.float64)
        self._mount = rotation_rows(quaternion).view(3, 3, 1).to(device, torch.float32)
        self._offset = torch.tensor(cfg.position, dtype=torch.float32, device=device).view(1, 3, 1)
        self._generator = torch.Generator(device)
        self._past = torch.zeros(cfg.delay, *self.shape, dtype=self.dtype, device=device)
        self._row = 0
        self._block = num_envs
        if device.type == "cpu":
            self._block = max(1, BLOCK_RAYS // (cfg.width * cfg.height))

    @property
    def image_bytes(self) -> int:
        """Size of the images of one step [bytes]."""
        return math.prod(self.shape) * self.dtype.itemsize

    def _refuse_beyond_memory(self, device: torch.device, name: str) -> None:
        """Raise before an allocation that would not fit."""
        cfg = self.cfg
        num_envs, channels, height, width = self.shape
        at_once = num_envs * height * width
        if device.type == "cpu":
            at_once = max(width * height, min(at_once, BLOCK_RAYS))
        size = self.image_bytes * (cfg.delay + 2) + at_once * RAY_BYTES
        what = f"{name}: {num_envs} images of {channels} x {height} x {width} {cfg.dtype}, with those of past steps,"
        refuse_beyond_memory(size, device, what, f"give smaller {name}.width and height, or fewer --num_envs")

    def seed(self, seed: int) -> None:
        """Restart the noise."""
        self._generator.manual_seed((seed + _SEED_OFFSET) % 2**63)

    def pose(self, position: torch.Tensor, quaternion: torch.Tensor) -> Pose:
        """Return the cameras' pose on vehicles.

        Args:
            position: Of the bodies, world frame [m]. Shape: (3, num_envs).
            quaternion: (w, x, y, z), body to world. Shape: (4, num_envs).
        """
        body = rotation_rows(quaternion).view(3, 3, -1)
        axes = (body.unsqueeze(2) * self._mount.unsqueeze(0)).sum(1)
        return Pose(position + (body * self._offset).sum(1), axes)

    def render(self, pose: Pose, scene: Scene) -> torch.Tensor:
        """Take the images of this moment.

        Args:
            pose: The cameras'.
            scene: What there is to see.

        Returns:
            A fresh tensor of ``self.shape`` and ``self.dtype``.
        """
        num_envs = self.shape[0]
        out = torch.empty(self.shape, dtype=self.dtype, device=pose.position.device)
        for start in range(0, num_envs, self._block):  # blocks of environments that fit the cache, not single ones
            envs = slice(start, min(start + self._block, num_envs))
            depth, colour = cast(self.rays, pose.select(envs), scene.select(envs), self.shape[1] > 1)
            out[envs] = self.compose(depth, colour)
        return out

    def compose(self, depth: torch.Tensor, colour: torch.Tensor | None) -> torch.Tensor:
        """Return what a camera has measured as images, with its noise.

        Args:
            depth: Distance to the image plane [m]. Shape: (num_images, height, width).
            colour: From 0 to 1; read where the images have colour. Shape: (num_images, 3, height, width).

        Returns:
            Shape: (num_images, *self.shape[1:]), of ``self.dtype``.
        """
        parts: list[torch.Tensor] = []
        if self.cfg.image != "depth":
            assert colour is not None
            parts.append(self._encode(self._noisy(colour, self.cfg.colour_noise)))
        if self.cfg.image != "rgb":
            parts.append(self._encode(self._noisy_depth(depth)).unsqueeze(1))
        return torch.cat(parts, dim=1)

    def observe(
        self, position: torch.Tensor, quaternion: torch.Tensor, scene: Scene, began: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the images that the vehicles' computers have at this step.

        Args:
            position: Of the bodies, world frame [m]. Shape: (3, num_envs).
            quaternion: (w, x, y, z), body to world. Shape: (4, num_envs).
            scene: What there is to see.
            began: Where an episode has just begun, whose first image is the newest; None: everywhere. Shape:
                (num_envs,).

        Returns:
            Shape: ``self.shape``.
        """
        return self.delayed(self.render(self.pose(position, quaternion), scene), began)

    def delayed(self, fresh: torch.Tensor, began: torch.Tensor | None) -> torch.Tensor:
        """Return the images that have arrived, and keep the newest ones.

        Args:
            fresh: Of this moment. Shape: ``self.shape``.
            began: As of :meth:`observe`.
        """
        if not self.cfg.delay:
            return fresh
        if began is None:
            self._past[:] = fresh
        else:
            self._past = torch.where(began.view(-1, 1, 1, 1), fresh, self._past)
        seen = self._past[self._row].clone()
        self._past[self._row] = fresh
        self._row = (self._row + 1) % self.cfg.delay
        return seen

    def picture(self, images: torch.Tensor) -> np.ndarray:
        """Return images for people: colour as it is, depth as grey that is the brighter the nearer.

        Args:
            images: As observed. Shape: (num_images, channels, height, width).

        Returns:
            Shape: (num_images, height, width, 3), uint8.
        """
        shown = images.cpu() if self.dtype == torch.uint8 else (images.float().cpu() * 255.0).round().to(torch.uint8)
        shown = shown[:, :3] if shown.shape[1] > 1 else (255 - shown).expand(-1, 3, -1, -1)
        return shown.permute(0, 2, 3, 1).contiguous().numpy()

    def _noisy(self, values: torch.Tensor, deviation: float) -> torch.Tensor:
        """Add Gaussian noise where there is to be any."""
        if not deviation:
            return values
        noise = torch.randn(values.shape, generator=self._generator, device=values.device, dtype=values.dtype)
        return values + deviation * noise

    def _noisy_depth(self, depth: torch.Tensor) -> torch.Tensor:
        """Add the noise of the depth [m], and return it over the range."""
        depth = self._noisy(depth.clamp(max=self.cfg.max_depth), self.cfg.depth_noise)
        if self.cfg.dropout:
            drawn = torch.rand(depth.shape, generator=self._generator, device=depth.device, dtype=depth.dtype)
            depth = torch.where(drawn < self.cfg.dropout, self.cfg.max_depth, depth)
        return depth / self.cfg.max_depth

    def _encode(self, values: torch.Tensor) -> torch.Tensor:
        """Convert values in [0, 1], and those that noise put beyond, to the images' type."""
        values = values.clamp(0.0, 1.0)
        if self.dtype == torch.uint8:
            values = (values * 255.0).round_()
        return values.to(self.dtype)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides the next images, as copies on the CPU."""
        return {"past": self._past.cpu().clone(), "row": self._row, "generator": self._generator.get_state()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        past = saved["past"]
        if past.shape != self._past.shape or past.dtype != self._past.dtype:
            raise UserError(f"the saved environment state has other camera images: {list(past.shape)}, {past.dtype}")
        self._past = past.to(self._past.device).clone()
        self._row = int(saved["row"]) % max(1, self.cfg.delay)
        self._generator.set_state(saved["generator"].cpu())
