"""CartPole seen by a camera, for a student of pixels and a teacher of states. See docs/howto/gymnasium.md."""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import AddRenderObservation

ROWS = slice(170, 320)
"""Rows of the rendered 400 x 600 picture that cart and pole are seen in."""
BLOCK = 10
"""Pixels that are averaged to one, along both axes: the edges' grey tells of motions of less than a pixel."""
NUM_FRAMES = 4
"""Frames of an observation, the newest last: one alone does not show velocities."""
HEIGHT, WIDTH = 15, 60


class Pixels(gymnasium.ObservationWrapper):
    """Reduce the rendered picture to a stack of small grey frames.

    Args:
        env: Gives the groups ``state`` and ``pixels``, a picture of 400 x 600 pixels.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        assert isinstance(env.observation_space, spaces.Dict)
        frames = spaces.Box(0, 255, (NUM_FRAMES, HEIGHT, WIDTH), np.uint8)
        self.observation_space = spaces.Dict({"state": env.observation_space["state"], "pixels": frames})
        self.frames: deque[np.ndarray] = deque(maxlen=NUM_FRAMES)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, whose first observation shows its first frame in every place."""
        self.frames.clear()
        return super().reset(seed=seed, options=options)

    def observation(self, observation: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add the picture to the stack. Shape of ``pixels``: (NUM_FRAMES, HEIGHT, WIDTH)."""
        # Of blue, in which the pole differs most from the background, how much is missing: the empty picture is zero.
        ink = 255 - observation["pixels"][ROWS, :, 2]
        frame = ink.reshape(HEIGHT, BLOCK, WIDTH, BLOCK).mean(axis=(1, 3))
        self.frames.append(np.rint(frame).astype(np.uint8))
        missing = NUM_FRAMES - len(self.frames)
        return observation | {"pixels": np.stack([self.frames[0]] * missing + list(self.frames))}


def make(render_mode: str | None = "rgb_array") -> gymnasium.Env:
    """Build the environment, which always renders."""
    env = gymnasium.make("CartPole-v1", render_mode=render_mode or "rgb_array", max_episode_steps=-1)
    return Pixels(AddRenderObservation(env, render_only=False, render_key="pixels", obs_key="state"))


gymnasium.register("CartPole-Pixels-v0", entry_point=f"{__name__}:make", max_episode_steps=500, reward_threshold=475.0)
