"""Rough ground: a height field, and its height below any point."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class TerrainCfg:
    """The ground."""

    height: float = 0.0
    """Greatest height of the bumps [m]; 0: a plane."""
    spacing: float = 0.4
    """Distance between the points whose heights are drawn; between them it is linear [m]."""
    resolution: float = 0.1
    """Distance between the height field's points [m]."""
    size: float = 32.0
    """Edge of the square field [m]; an episode that comes near its edge is ended, as if by time-out."""
    start: float = 4.0
    """Episodes begin within this distance of the middle, on each axis [m]."""
    seed: int = 0
    """Seed of the heights."""


class Terrain:
    """Heights on a square grid around the world's origin; MuJoCo's height field has the same triangles.

    Args:
        cfg: The ground; its ``height`` is positive.
    """

    def __init__(self, cfg: TerrainCfg):
        self.cfg = cfg
        coarse = max(2, round(cfg.size / cfg.spacing) + 1)
        generator = torch.Generator().manual_seed(cfg.seed)
        drawn = torch.rand(1, 1, coarse, coarse, generator=generator) * cfg.height
        points = round(cfg.size / cfg.resolution) + 1
        shape = (points, points)
        self.heights = torch.nn.functional.interpolate(drawn, shape, mode="bilinear", align_corners=True)[0, 0]
        """Height at row y and column x [m]. Shape: (num_points, num_points)."""
        self._cell = cfg.size / (points - 1)

    def height_at(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the ground's height below points; beyond the edge it is that of the edge.

        Args:
            x: World coordinate [m].
            y: World coordinate, of the same shape [m].
        """
        last = self.heights.shape[0] - 1
        half = 0.5 * self.cfg.size
        column = ((x + half) / self._cell).nan_to_num(0.0).clamp(0.0, last)
        row = ((y + half) / self._cell).nan_to_num(0.0).clamp(0.0, last)
        c = column.floor().clamp(max=last - 1).long()
        r = row.floor().clamp(max=last - 1).long()
        u = (column - c).to(self.heights.dtype)
        v = (row - r).to(self.heights.dtype)
        low = self.heights[r, c]
        right = self.heights[r, c + 1]
        up = self.heights[r + 1, c]
        high = self.heights[r + 1, c + 1]
        # Each cell is two triangles that share the diagonal from (r, c) to (r + 1, c + 1).
        below = low + u * (right - low) + v * (high - right)
        above = low + v * (up - low) + u * (high - up)
        return torch.where(u >= v, below, above)
