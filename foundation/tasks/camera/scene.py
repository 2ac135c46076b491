"""What a camera can see, and the image of it: distance to the image plane and colour of every pixel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from foundation.tasks.camera.solids import Hit, Rays, hit_box, hit_frame, hit_ground, hit_pillar, hit_sphere

AMBIENT = 0.45
"""Brightness of a surface that is turned away from the light, of 1 for one that faces it."""
LIGHT = (-0.36, -0.48, 0.8)
"""Direction to the light, world frame, of unit length."""
COLOURS = {
    "sky": (0.80, 0.88, 0.96),
    "ground": (0.62, 0.64, 0.60),
    "sphere": (0.86, 0.20, 0.18),
    "pillar": (0.40, 0.44, 0.56),
    "box": (0.30, 0.52, 0.74),
    "frame": (0.96, 0.58, 0.12),
}
"""Red, green and blue of each kind, 1 at full brightness."""
TILE = 0.5
"""Side of the ground's squares, every other of which is darker [m]."""
DARK_TILE = 0.75
"""Brightness of the darker squares, of 1 for the others."""


class Scene(NamedTuple):
    """Solids in the world frame, the same number of each kind in every environment. Lengths are in metres."""

    ground: torch.Tensor | None = None
    """Height of the ground's plane. Shape: (num_envs,)."""
    spheres: torch.Tensor | None = None
    """Centre (3), radius. Shape: (num_spheres, 4, num_envs)."""
    pillars: torch.Tensor | None = None
    """Centre of the foot (3), radius, height. Shape: (num_pillars, 5, num_envs)."""
    boxes: torch.Tensor | None = None
    """Centre (3), yaw [rad], half of each side (3). Shape: (num_boxes, 7, num_envs)."""
    frames: torch.Tensor | None = None
    """Centre (3), yaw [rad] of the way through, half of its depth, of its outer side, of its opening's side.

    Shape: (num_frames, 7, num_envs).
    """

    def select(self, envs: slice) -> Scene:
        """Return some of the environments, as views."""
        return Scene(*(None if part is None else part[..., envs] for part in self))


class Pose(NamedTuple):
    """Where cameras are and how they look."""

    position: torch.Tensor
    """World frame [m]. Shape: (3, num_envs)."""
    axes: torch.Tensor
    """The world's x, y and z in the camera's frame, which is the rotation matrix from camera to world.

    Shape: (3, 3, num_envs).
    """

    def select(self, envs: slice) -> Pose:
        """Return some of the environments, as views."""
        return Pose(self.position[:, envs], self.axes[:, :, envs])

    def turned(self, yaw: torch.Tensor) -> torch.Tensor:
        """Return the axes of a body that is turned by ``yaw`` [rad] about the world's z. Shape: (3, 3, num_envs)."""
        cosine = yaw.cos()
        sine = yaw.sin()
        x, y, z = self.axes
        return torch.stack([cosine * x + sine * y, cosine * y - sine * x, z])

    def seen_from(self, centre: torch.Tensor, yaw: torch.Tensor) -> torch.Tensor:
        """Return the position from a body's centre, in the body's axes. Shape: (3, num_envs)."""
        return _turn(self.position - centre, yaw)


def _turn(vector: torch.Tensor, yaw: torch.Tensor) -> torch.Tensor:
    """Give a world-frame vector in the axes of a body that is turned by ``yaw``. Shape: (3, num_envs)."""
    cosine = yaw.cos()
    sine = yaw.sin()
    x, y, z = vector
    return torch.stack([cosine * x + sine * y, cosine * y - sine * x, z])


def cast(rays: Rays, pose: Pose, scene: Scene, colour: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cast the rays of all pixels.

    Args:
        rays: The pixels' rays.
        pose: The cameras'.
        scene: What there is to see.
        colour: Whether colours are computed, which takes twice the time.

    Returns:
        Distance to the image plane [m], infinite where nothing is met, of shape (num_envs, height, width); and colour,
        (num_envs, 3, height, width), in [0, 1], or None.
    """
    light = None
    if colour:
        light = torch.tensor(LIGHT, dtype=rays.left.dtype, device=rays.left.device)
        light = light.unsqueeze(1).expand_as(pose.position)
    shape = (pose.position.shape[1], len(rays.up), len(rays.left))
    depth = torch.full(shape, torch.inf, dtype=rays.left.dtype, device=rays.left.device)
    image = None
    if colour:
        image = _paint("sky", depth).expand(shape[0], 3, *shape[1:])
    for kind, hit in _hits(rays, pose, scene, light):
        if image is not None:
            image = torch.where((hit.depth < depth).unsqueeze(1), _shade(kind, hit, rays, pose), image)
        depth = torch.minimum(depth, hit.depth)
    return depth, image


def _hits(rays: Rays, pose: Pose, scene: Scene, light: torch.Tensor | None) -> Iterator[tuple[str, Hit]]:
    """Intersect with one solid after another."""
    axes = pose.axes
    beam = None if light is None else _to_camera(light, axes)
    if scene.ground is not None:
        yield "ground", hit_ground(rays, pose.position[2] - scene.ground, axes[2], beam)
    for sphere in _each(scene.spheres):
        yield "sphere", hit_sphere(rays, _to_camera(sphere[:3] - pose.position, axes), sphere[3], beam)
    for pillar in _each(scene.pillars):
        yield "pillar", hit_pillar(rays, axes, pose.position - pillar[:3], pillar[3], pillar[4], light)
    for box in _each(scene.boxes):
        own = None if light is None else _turn(light, box[3])
        yield "box", hit_box(rays, pose.turned(box[3]), pose.seen_from(box[:3], box[3]), box[4:7], own)
    for frame in _each(scene.frames):
        own = None if light is None else _turn(light, frame[3])
        half = frame[[4, 5, 5]]
        place = pose.seen_from(frame[:3], frame[3])
        yield "frame", hit_frame(rays, pose.turned(frame[3]), place, half, frame[[6, 6]], own)


def _each(solids: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    return () if solids is None else solids.unbind()


def _to_camera(vector: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    """Give a world-frame vector in the camera's frame. Shape: (3, num_envs)."""
    return vector[0] * axes[0] + vector[1] * axes[1] + vector[2] * axes[2]


def _paint(kind: str, like: torch.Tensor) -> torch.Tensor:
    """Return a kind's colour. Shape: (1, 3, 1, 1)."""
    return torch.tensor(COLOURS[kind], dtype=like.dtype, device=like.device).view(1, 3, 1, 1)


def _shade(kind: str, hit: Hit, rays: Rays, pose: Pose) -> torch.Tensor:
    """Return the colour of a solid as it is lit. Shape: (num_envs, 3, height, width)."""
    assert hit.light is not None
    brightness = AMBIENT + (1.0 - AMBIENT) * hit.light.clamp(0.0, 1.0)
    if kind == "ground":
        tiles = [
            (pose.position[i].view(-1, 1, 1) + hit.depth * rays.dot(pose.axes[i])).div(TILE).floor() for i in (0, 1)
        ]
        brightness = torch.where((tiles[0] + tiles[1]).remainder(2.0) > 0.5, DARK_TILE * brightness, brightness)
    return brightness.unsqueeze(1) * _paint(kind, brightness)
