"""Atari games for a student of pixels and a teacher of the console's memory. See docs/howto/gymnasium.md."""

from __future__ import annotations

from collections import deque
from typing import Any

import ale_py
import gymnasium
import numpy as np
from gymnasium import spaces

GAMES = ("Pong", "Freeway", "Boxing")
NUM_BYTES = 128
"""Memory of the console: all that the game knows, as positions, speeds and scores."""
BLOCK_HEIGHT, BLOCK_WIDTH = 5, 4
"""Pixels of the screen, 210 x 160, that are averaged to one: Pong's ball, of 4 x 2, still leaves a mark."""
NUM_FRAMES = 4
"""Frames of an observation, the newest last: one alone does not show velocities."""
HEIGHT, WIDTH = 210 // BLOCK_HEIGHT, 160 // BLOCK_WIDTH


class Memory(gymnasium.ObservationWrapper):
    """Give the memory's bytes as numbers from 0 to 1. Shape: (NUM_BYTES,).

    Args:
        env: A game of ALE whose observation is its memory.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.observation_space = spaces.Box(0.0, 1.0, (NUM_BYTES,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Scale the bytes."""
        return observation.astype(np.float32) / np.float32(255.0)


class Camera(gymnasium.ObservationWrapper):
    """Add the screen to the memory: the groups ``ram`` and ``pixels``, a stack of small grey frames.

    Args:
        env: Gives the memory.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        frames = spaces.Box(0, 255, (NUM_FRAMES, HEIGHT, WIDTH), np.uint8)
        self.observation_space = spaces.Dict({"ram": env.observation_space, "pixels": frames})
        self.frames: deque[np.ndarray] = deque(maxlen=NUM_FRAMES)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode, whose first observation shows its first frame in every place."""
        self.frames.clear()
        return super().reset(seed=seed, options=options)

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        """Add the screen to the stack. Shape of ``pixels``: (NUM_FRAMES, HEIGHT, WIDTH)."""
        screen = self.unwrapped.ale.getScreenGrayscale()  # type: ignore[attr-defined]  # of ale_py's environments
        self.frames.append(small(screen))
        missing = NUM_FRAMES - len(self.frames)
        return {"ram": observation, "pixels": np.stack([self.frames[0]] * missing + list(self.frames))}


def small(screen: np.ndarray) -> np.ndarray:
    """Return how far each block of pixels is from the screen's most common grey: the background is zero.

    Args:
        screen: Grey values, uint8. Shape: (210, 160).

    Returns:
        Shape: (HEIGHT, WIDTH), uint8.
    """
    background = np.bincount(screen.ravel(), minlength=256).argmax()
    ink = np.abs(screen.astype(np.int16) - np.int16(background))
    blocks = ink.reshape(HEIGHT, BLOCK_HEIGHT, WIDTH, BLOCK_WIDTH).mean(axis=(1, 3))
    return np.rint(blocks).astype(np.uint8)


def make(game: str, render_mode: str | None = None) -> gymnasium.Env:
    """Build a game with both groups."""
    return Camera(make_memory(game, render_mode))


def make_memory(game: str, render_mode: str | None = None) -> gymnasium.Env:
    """Build a game with its memory alone, which teachers are trained on."""
    return Memory(gymnasium.make(f"ALE/{game}-v5", obs_type="ram", render_mode=render_mode))


gymnasium.register_envs(ale_py)
for name in GAMES:
    gymnasium.register(f"{name}-Pixels-v0", entry_point=f"{__name__}:make", kwargs={"game": name})
    gymnasium.register(f"{name}-Ram-v0", entry_point=f"{__name__}:make_memory", kwargs={"game": name})
