"""Clips in Isaac Lab 3.0, which records by itself: its recorder is set up before the environment is made."""

# Isaac Lab has an environment of its own, so a type checker may not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import importlib.util
from typing import Any

from foundation.core.errors import UserError
from foundation.engines.base import VideoRequest

_RECORDED = ("kit", "newton_gl", "newton_rtx")
"""Visualizers that give frames; the others stream."""


def configure_recorder(env_cfg: Any, args: argparse.Namespace, video: VideoRequest) -> None:
    """Ask for ``rl-video-step_<index>.mp4`` clips in the wanted folder.

    A task's own recorders are kept, and write there too unless they have a folder of their own.
    """
    from isaaclab.envs.utils.video_recorder_cfg import VideoRecorderCfg

    if not getattr(env_cfg, "video_recorders", None):
        env_cfg.video_recorders = [VideoRecorderCfg(source=_source(env_cfg, args))]
        env_cfg.video_recorders[0].output_filename_prefix = "rl-video-step"
    for recorder in env_cfg.video_recorders:
        if recorder.output_dir is None:
            recorder.output_dir = str(video.folder)
        recorder.video_length = video.length
        recorder.video_interval = video.interval
        if video.interval:  # a resumed run continues counting the steps of the whole run
            recorder.step_offset = -video.first_step % video.interval
    _check_installed(env_cfg)


def _source(env_cfg: Any, args: argparse.Namespace) -> str:
    """Name the visualizer to record: one asked for, else one of the configuration, else Newton's or Kit's window."""
    asked = getattr(args, "visualizer", None)
    if asked == []:
        raise UserError("--video needs a visualizer to record: leave out '--viz none'")
    names = list(asked or [])
    if not names:
        configured = [*(getattr(env_cfg.sim, "visualizer_cfgs", None) or [])]
        names = [cfg.visualizer_type for cfg in configured if getattr(cfg, "visualizer_type", None)]
    for name in names:
        if name in _RECORDED:
            return f"visualizer:{name}"
    if names:
        raise UserError(f"--video cannot record '{names[0]}', which only streams: add one of {', '.join(_RECORDED)}")
    return "visualizer"


def _check_installed(env_cfg: Any) -> None:
    """Refuse before a long run what would fail at its first frame."""
    try:
        from moviepy.editor import ImageSequenceClip  # noqa: F401
    except ImportError:
        raise UserError("--video with Isaac Lab 3.0 needs moviepy below 2: pip install 'moviepy<2'") from None
    if env_cfg.video_recorders[0].source == "visualizer:newton_gl":
        missing = [name for name in ("pyglet", "imgui_bundle") if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f"--video by Newton's window needs {' and '.join(missing)}: pip install 'pyglet<3' imgui-bundle"
            )
