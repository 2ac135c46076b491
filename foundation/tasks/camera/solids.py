"""Intersections of the pixels' rays with solids: ground, spheres, pillars, boxes and frames; pure functions.

A ray is ``origin + t d``, with ``d = (1, y, z)`` in the camera's frame (x along the optical axis, y left, z up), and
``t`` is the distance to the image plane. A scalar product ``v . d`` is a sum of a row's and a column's number: one
addition per pixel, whatever the camera's pose. So each solid is given in the camera's frame, one of it per environment,
environments last as in the simulator; images are (num_envs, height, width).

Solids are solid: from inside of one, everything is at depth 0. Where a ray meets nothing, the depth is infinite.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

_TINY = 1e-12
"""Lower bound of what is divided by or of which a root is taken; its root is a micrometre."""


class Rays(NamedTuple):
    """Directions of the pixels' rays in the camera's frame; the first component is 1."""

    left: torch.Tensor
    """Second component of each column, left to right. Shape: (width,)."""
    up: torch.Tensor
    """Third component of each row, top to bottom. Shape: (height,)."""
    squared: torch.Tensor
    """Squared length. Shape: (height, width)."""

    @classmethod
    def pinhole(cls, width: int, height: int, horizontal_fov: float, device: torch.device | str) -> Rays:
        """Lay out the rays through the centres of square pixels.

        Args:
            width: Columns [px].
            height: Rows [px].
            horizontal_fov: Angle between the left and the right edge of the image [rad].
            device: Device of the rays.
        """
        reach = math.tan(0.5 * horizontal_fov)
        columns = (torch.arange(width, dtype=torch.float64) * 2 + 1) / width
        rows = (torch.arange(height, dtype=torch.float64) * 2 + 1) / height
        left = reach * (1.0 - columns)
        up = reach * height / width * (1.0 - rows)
        squared = 1.0 + left.square() + up.square().unsqueeze(1)
        return cls(*(value.to(device, torch.float32) for value in (left, up, squared)))

    def dot(self, vector: torch.Tensor) -> torch.Tensor:
        """Multiply each ray with a vector in the camera's frame. Shape: (3, num_envs) to (num_envs, height, width)."""
        forward, left, up = vector.unsqueeze(-1)
        return (forward + up * self.up).unsqueeze(2) + (left * self.left).unsqueeze(1)


class Hit(NamedTuple):
    """What the rays meet of one solid."""

    depth: torch.Tensor
    """Distance to the image plane [m], infinite where the ray misses. Shape: (num_envs, height, width)."""
    light: torch.Tensor | None
    """Cosine between the surface's normal and the light, where light was asked for; arbitrary where the ray misses."""


def _image(value: torch.Tensor) -> torch.Tensor:
    """Shape one number per environment for images. Shape: (num_envs,) to (num_envs, 1, 1)."""
    return value.view(-1, 1, 1)


def _first(enter: torch.Tensor, met: torch.Tensor) -> torch.Tensor:
    """Return the depth at which rays that meet a solid are in it first; ``enter`` is negative inside of it."""
    return torch.where(met, enter.clamp(min=0.0), math.inf)


def hit_ground(rays: Rays, height: torch.Tensor, up: torch.Tensor, light: torch.Tensor | None = None) -> Hit:
    """Intersect with the half-space below a horizontal plane.

    Args:
        rays: The pixels' rays.
        height: Of the camera above the plane [m]. Shape: (num_envs,).
        up: The world's z in the camera's frame. Shape: (3, num_envs).
        light: Direction to the light, camera's frame. Shape: (3, num_envs).
    """
    depth = _image(-height) / rays.dot(up)
    depth = torch.where(depth > 0.0, depth, math.inf)
    depth = torch.where(_image(height) > 0.0, depth, 0.0)
    return Hit(depth, None if light is None else _image((up * light).sum(0)).expand_as(depth))


def hit_sphere(rays: Rays, centre: torch.Tensor, radius: torch.Tensor, light: torch.Tensor | None = None) -> Hit:
    """Intersect with a sphere.

    Args:
        rays: The pixels' rays.
        centre: In the camera's frame [m]. Shape: (3, num_envs).
        radius: [m]. Shape: (num_envs,).
        light: Direction to the light, camera's frame. Shape: (3, num_envs).
    """
    along = rays.dot(centre)
    outside = _image(centre.square().sum(0) - radius.square())
    excess = along.square() - rays.squared * outside  # negative where the ray misses
    half = excess.clamp(min=_TINY).sqrt()
    depth = _first((along - half) / rays.squared, (excess > 0.0) & (along + half > 0.0))
    if light is None:
        return Hit(depth, None)
    return Hit(depth, (depth * rays.dot(light) - _image((centre * light).sum(0))) / _image(radius))


def hit_pillar(
    rays: Rays,
    axes: torch.Tensor,
    origin: torch.Tensor,
    radius: torch.Tensor,
    height: torch.Tensor,
    light: torch.Tensor | None = None,
) -> Hit:
    """Intersect with an upright cylinder.

    Args:
        rays: The pixels' rays.
        axes: The world's x, y and z in the camera's frame. Shape: (3, 3, num_envs).
        origin: The camera, seen from the centre of the cylinder's foot, world's axes [m]. Shape: (3, num_envs).
        radius: [m]. Shape: (num_envs,).
        height: [m]. Shape: (num_envs,).
        light: Direction to the light, world's axes. Shape: (3, num_envs).
    """
    rise = rays.dot(axes[2])
    across = (rays.squared - rise.square()).clamp(min=_TINY)
    along = rays.dot(-(origin[:2].unsqueeze(1) * axes[:2]).sum(0))
    outside = _image(origin[:2].square().sum(0) - radius.square())
    excess = along.square() - across * outside  # negative where the ray misses
    half = excess.clamp(min=_TINY).sqrt()
    low = _image(-origin[2]) / rise
    high = _image(height - origin[2]) / rise
    side = (along - half) / across
    cap = torch.minimum(low, high)
    enter = torch.maximum(side, cap)
    leave = torch.minimum((along + half) / across, torch.maximum(low, high))
    depth = _first(enter, (excess > 0.0) & (enter <= leave) & (leave > 0.0))
    if light is None:
        return Hit(depth, None)
    level = (light[:2].unsqueeze(1) * axes[:2]).sum(0)
    shine = (depth * rays.dot(level) + _image((origin[:2] * light[:2]).sum(0))) / _image(radius)
    return Hit(depth, torch.where(cap > side, -rise.sign() * _image(light[2]), shine))


class _Interval(NamedTuple):
    """Where rays are inside of slabs, from ``enter`` to ``leave``, and how the faces there are lit."""

    enter: torch.Tensor
    leave: torch.Tensor
    enter_light: torch.Tensor | None
    leave_light: torch.Tensor | None

    def first(self) -> torch.Tensor:
        """Return the depth at which a ray is first in the slabs, infinite where it never is."""
        return _first(self.enter, (self.enter <= self.leave) & (self.leave > 0.0))

    def meet(self, other: _Interval) -> _Interval:
        """Intersect with other slabs."""
        later = torch.maximum(self.enter, other.enter)
        sooner = torch.minimum(self.leave, other.leave)
        if self.enter_light is None or self.leave_light is None:
            return _Interval(later, sooner, None, None)
        assert other.enter_light is not None and other.leave_light is not None
        enter_light = torch.where(other.enter > self.enter, other.enter_light, self.enter_light)
        leave_light = torch.where(other.leave < self.leave, other.leave_light, self.leave_light)
        return _Interval(later, sooner, enter_light, leave_light)


def _slab(inverse: torch.Tensor, origin: torch.Tensor, half: torch.Tensor, light: torch.Tensor | None) -> _Interval:
    """Intersect with the space between two planes.

    Args:
        inverse: One over the rays' component across the planes. Shape: (num_envs, height, width).
        origin: The camera's place across the planes, from their middle [m]. Shape: (num_envs,).
        half: Half of the distance between the planes [m]. Shape: (num_envs,).
        light: Component of the direction to the light across the planes. Shape: (num_envs,).
    """
    one = inverse * _image(-half - origin)
    other = inverse * _image(half - origin)
    shine = None if light is None else -inverse.sign() * _image(light)  # the normal faces the camera on either plane
    return _Interval(torch.minimum(one, other), torch.maximum(one, other), shine, shine)


def hit_box(
    rays: Rays, axes: torch.Tensor, origin: torch.Tensor, half: torch.Tensor, light: torch.Tensor | None = None
) -> Hit:
    """Intersect with a box.

    Args:
        rays: The pixels' rays.
        axes: The box's x, y and z in the camera's frame. Shape: (3, 3, num_envs).
        origin: The camera, seen from the box's centre, its axes [m]. Shape: (3, num_envs).
        half: Half of the box's sides [m]. Shape: (3, num_envs).
        light: Direction to the light, box's axes. Shape: (3, num_envs).
    """
    x, y, z = (_slab(1.0 / rays.dot(axes[i]), origin[i], half[i], _component(light, i)) for i in range(3))
    inside = x.meet(y).meet(z)
    return Hit(inside.first(), inside.enter_light)


def hit_frame(
    rays: Rays,
    axes: torch.Tensor,
    origin: torch.Tensor,
    half: torch.Tensor,
    hole: torch.Tensor,
    light: torch.Tensor | None = None,
) -> Hit:
    """Intersect with a frame: a box with a rectangular hole along its x.

    Args:
        rays: The pixels' rays.
        axes: The frame's x, y and z in the camera's frame. Shape: (3, 3, num_envs).
        origin: The camera, seen from the frame's centre, its axes [m]. Shape: (3, num_envs).
        half: Half of the box's sides [m]. Shape: (3, num_envs).
        hole: Half of the hole's sides along y and z [m]. Shape: (2, num_envs).
        light: Direction to the light, frame's axes. Shape: (3, num_envs).
    """
    inverse = [1.0 / rays.dot(axes[i]) for i in range(3)]
    x, y, z = (_slab(inverse[i], origin[i], half[i], _component(light, i)) for i in range(3))
    box = x.meet(y).meet(z)
    left, up = (_slab(inverse[i], origin[i], hole[i - 1], _component(light, i)) for i in (1, 2))
    hollow = left.meet(up)
    first = box.first()
    # A ray that comes in through the hole meets the hole's wall, or leaves through the other end.
    in_hole = (hollow.enter <= first) & (first < hollow.leave)
    wall = torch.where(hollow.leave < box.leave, hollow.leave, math.inf)
    depth = torch.where(in_hole, wall, first)
    if box.enter_light is None or hollow.leave_light is None:
        return Hit(depth, None)
    return Hit(depth, torch.where(in_hole, hollow.leave_light, box.enter_light))


def _component(vector: torch.Tensor | None, index: int) -> torch.Tensor | None:
    return None if vector is None else vector[index]
