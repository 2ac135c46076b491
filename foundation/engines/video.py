"""Wrappers around any engine's environment: clipping of actions, and recording of clips."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.engines.base import VecEnv, VideoRequest

logger = logging.getLogger(__name__)


class EnvWrapper:
    """Pass everything through to the wrapped environment, assignments to ``episode_length_buf`` included."""

    def __init__(self, env: Any):
        self.env = env

    def __getattr__(self, name: str) -> Any:
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    @property
    def unwrapped(self) -> Any:
        """The innermost environment."""
        return getattr(self.env, "unwrapped", self.env)

    @property
    def episode_length_buf(self) -> torch.Tensor:
        """Steps of the current episodes. Shape: (num_envs,)."""
        return self.env.episode_length_buf

    @episode_length_buf.setter
    def episode_length_buf(self, value: torch.Tensor) -> None:
        self.env.episode_length_buf = value

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Advance the environment. Shape of ``actions``: (num_envs, num_actions)."""
        return self.env.step(actions)


class ActionClip(EnvWrapper):
    """Clip actions to [-limit, limit] before the environment sees them."""

    def __init__(self, env: VecEnv, limit: float):
        super().__init__(env)
        if not limit > 0:
            raise UserError(f"agent.clip_actions must be positive, it is {limit}")
        self.clip_actions = limit

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Advance the environment with clipped actions. Shape: (num_envs, num_actions)."""
        return self.env.step(actions.clamp(-self.clip_actions, self.clip_actions))


class VideoRecorder(EnvWrapper):
    """Write ``rl-video-step-<N>.mp4`` clips of what ``env.render()`` shows.

    A clip starts at every ``interval``-th step, and is named as gymnasium's ``RecordVideo`` names one that a step
    starts; like that one today (gymnasium 1.x), no ``.meta.json`` is written beside it. Its frames go to a hidden file
    that gets its name when it is whole.
    """

    def __init__(self, env: Any, request: VideoRequest):
        super().__init__(env)
        if request.length < 1 or request.interval < 0:
            raise UserError(
                f"--video_length must be at least 1 and --video_interval not negative, they are {request.length} and "
                f"{request.interval}"
            )
        if not callable(getattr(env, "render", None)):
            raise UserError(f"--video: {_class_name(env)} has no render(), which returns an image (height, width, 3)")
        self.request = request
        self._step = request.first_step
        self._steps_left = 0
        self._writer: Any = None
        self._paths: tuple[Path, Path] | None = None
        metadata = getattr(env, "metadata", None) or {}
        dt = getattr(env, "step_dt", None)
        rate = 1 / dt if dt else float(metadata.get("render_fps", 50))
        self._stride = max(1, math.ceil(rate / 60 - 1e-6))
        """Env steps per frame: the clip keeps real time at no more than 60 frames a second."""
        self._fps = max(1, round(rate / self._stride))

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Advance the environment and take a frame where a clip is being recorded. Shape: (num_envs, num_actions)."""
        interval = self.request.interval
        if self._writer is None and (self._step % interval == 0 if interval else self._step == 0):
            self._start()
        result = self.env.step(actions)
        self._step += 1
        if self._writer is not None:
            if (self.request.length - self._steps_left) % self._stride == 0:
                self._writer.send(self._frame())
            self._steps_left -= 1
            if self._steps_left == 0:
                self._finish()
        return result

    def _frame(self) -> np.ndarray:
        """Return what ``env.render()`` shows. Shape: (height, width, 3), bytes."""
        image = self.env.render()
        if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise UserError(
                f"--video: {_class_name(self.env)}.render() returned {got}; expected a numpy array of uint8, "
                "(height, width, 3)"
            )
        return np.ascontiguousarray(image)

    def _start(self) -> None:
        """Open the hidden file of a new clip."""
        frame = self._frame()
        final = Path(self.request.folder) / f"rl-video-step-{self._step}.mp4"
        partial = final.with_name(f".{final.stem}.{os.getpid()}.part.mp4")
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write videos to {final.parent}: {error.strerror}") from error
        self._paths = (partial, final)
        self._writer = imageio_ffmpeg.write_frames(
            str(partial),
            (frame.shape[1], frame.shape[0]),
            fps=self._fps,
            macro_block_size=1,
            quality=7,
            output_params=["-preset", "veryfast"],
        )
        self._writer.send(None)
        self._steps_left = self.request.length

    def _finish(self) -> None:
        """Close the clip and give it its name; one without a frame, as its first step failed, is removed."""
        assert self._paths is not None
        self._writer.close()
        self._writer = None
        partial, final = self._paths
        if self._steps_left == self.request.length:
            partial.unlink(missing_ok=True)
            return
        os.replace(partial, final)
        logger.info("video: %s", final)

    def close(self) -> None:
        """Finish a clip that is being recorded, and close the environment."""
        if self._writer is not None:
            self._finish()
        self.env.close()


def _class_name(env: object) -> str:
    return type(getattr(env, "unwrapped", env)).__name__
