"""Clips: what the recorder of Isaac Lab is asked for (drawing them needs OpenGL, which a test machine may lack)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
from isaac_envs import TASK

from foundation.core.errors import UserError
from foundation.engines.base import LaunchRequest, VideoRequest
from foundation.engines.isaaclab import IsaacLabEngine
from foundation.engines.isaaclab_video import configure_recorder


def _env_cfg():
    return IsaacLabEngine()._load(LaunchRequest(TASK))[0]


def _installed(monkeypatch, *names):
    for name in names:
        module = type(sys)(name)
        module.__spec__ = argparse.Namespace(name=name)
        module.ImageSequenceClip = object
        monkeypatch.setitem(sys.modules, name, module)


def test_clips_go_to_the_runs_folder(monkeypatch):
    """Length, interval and folder are those asked for; the chosen visualizer is the one recorded."""
    _installed(monkeypatch, "moviepy", "moviepy.editor", "pyglet", "imgui_bundle")
    env_cfg = _env_cfg()
    args = argparse.Namespace(visualizer=["rerun", "newton_gl"])
    configure_recorder(env_cfg, args, VideoRequest(Path("run/videos/play"), 50, 300, first_step=700))
    (recorder,) = env_cfg.video_recorders
    assert (recorder.source, recorder.output_dir) == ("visualizer:newton_gl", "run/videos/play")
    assert (recorder.video_length, recorder.video_interval) == (50, 300)
    assert recorder.step_offset == 200, "the next multiple of 300 after 700 steps"
    assert recorder.output_filename_prefix == "rl-video-step"


@pytest.mark.parametrize(("visualizer", "message"), [([], "--viz none"), (["rerun"], "only streams")])
def test_what_cannot_be_recorded_is_refused(visualizer, message):
    """--video with no window, or with one that only streams, ends before the simulation starts."""
    args = argparse.Namespace(visualizer=visualizer)
    with pytest.raises(UserError, match=message):
        configure_recorder(_env_cfg(), args, VideoRequest(Path("videos")))


def test_without_a_choice_newtons_window_is_recorded_where_there_is_no_kit():
    """--video alone needs no Isaac Sim."""
    request = LaunchRequest(TASK, video=True, args=argparse.Namespace(visualizer=None))
    assert IsaacLabEngine._launcher_args(request, "cpu").visualizer == ["newton_gl"]
