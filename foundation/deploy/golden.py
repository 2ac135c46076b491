"""A recorded sequence by which every exported file is checked: observations, where episodes begin, and actions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy
from numpy.typing import NDArray

FloatArray = NDArray[numpy.float32]

TOLERANCE = 1e-5
"""Largest difference of an action, in units of the largest action where that is above 1."""
INT8_TOLERANCE = 0.05
"""The same with 8-bit weights."""


class Steps(Protocol):
    """What acts step by step and remembers inside."""

    def step(self, obs: FloatArray) -> FloatArray:
        """Act. Shape: (num_envs, num_obs) to (num_envs, num_actions)."""
        ...

    def reset(self, mask: NDArray[numpy.bool_] | None = None) -> None:
        """Begin new episodes where ``mask`` (num_envs,), or everywhere."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Golden:
    """What the policy gave before it was exported. Every environment begins an episode at the first step."""

    obs: FloatArray
    """Shape: (num_steps, num_envs, num_obs)."""
    resets: NDArray[numpy.bool_]
    """True where a step begins an episode. Shape: (num_steps, num_envs)."""
    actions: FloatArray
    """Shape: (num_steps, num_envs, num_actions)."""

    @property
    def tolerance(self) -> float:
        """Largest difference that counts as the same."""
        return TOLERANCE * max(1.0, float(numpy.abs(self.actions).max()))

    @property
    def int8_tolerance(self) -> float:
        """Largest difference that counts as the same where weights have 8 bits."""
        return INT8_TOLERANCE * max(1.0, float(numpy.abs(self.actions).max()))

    def difference(self, policy: Steps) -> float:
        """Return the largest difference of a policy's actions from those recorded; infinite where one is not finite.

        Args:
            policy: Is reset first.
        """
        policy.reset()
        worst = 0.0
        for obs, resets, expected in zip(self.obs, self.resets, self.actions, strict=True):
            policy.reset(resets)
            difference = float(numpy.abs(policy.step(obs) - expected).max())
            worst = max(worst, difference if numpy.isfinite(difference) else numpy.inf)
        policy.reset()
        return worst
