"""The built-in engine and the choice of an engine."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
import torch

from foundation import engines
from foundation.core.errors import UserError
from foundation.engines import engine_class, engine_names, isaaclab, select_engine
from foundation.engines.base import Engine, EnvCapabilities, LaunchRequest, VideoRequest
from foundation.engines.torch import TorchEngine
from foundation.engines.video import VideoRecorder
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg, SceneCfg, ViewerCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"


def _nothing(env_cfg, agent_cfg):
    """Change no configuration."""


def _few(env_cfg, agent_cfg):
    env_cfg.scene.num_envs = 4


def test_a_session_yields_configured_configurations_and_environments():
    """Configure sees fresh configurations, the environment has what it set, and two environments live side by side."""
    engine = TorchEngine()
    with engine.launch(LaunchRequest(TASK), _few) as (env_cfg, agent_cfg):
        engine.set_common(env_cfg, num_envs=5, seed=3, device="cpu")
        first, second = engine.make_env(env_cfg, agent_cfg), engine.make_env(env_cfg, agent_cfg)
        assert first.num_envs == 5
        assert agent_cfg.obs_groups
        before = second.get_observations()["policy"].clone()
        first.step(torch.zeros(5, 4))
        assert torch.equal(before, second.get_observations()["policy"])
    with engine.launch(LaunchRequest(TASK), _nothing) as (env_cfg, _):
        assert env_cfg.scene.num_envs == 512
    with engine.launch(LaunchRequest("Isaac-Quadcopter-Point-Ctrl-Play-v0"), _nothing) as (env_cfg, _):
        assert env_cfg.scene.num_envs == 64


def test_the_agents_entry_point_is_chosen_by_the_request():
    """--agent rsl_rl_distillation_cfg_entry_point loads the other configuration; an unknown one is answered."""
    request = LaunchRequest(TASK, agent_entry_point="rsl_rl_distillation_cfg_entry_point")
    with TorchEngine().launch(request, _few) as (_, agent_cfg):
        assert "teacher" in agent_cfg.obs_groups
    request.agent_entry_point = "rsl_rl_distilation_cfg_entry_point"
    with (
        pytest.raises(UserError, match="'rsl_rl_distillation_cfg_entry_point'"),
        TorchEngine().launch(request, _few),
    ):
        pass


def test_actions_are_clipped_to_the_agents_bound():
    """With clip_actions 0.5 a full command does what 0.5 does; without it, it does not."""
    engine = TorchEngine()
    with engine.launch(LaunchRequest(TASK), _few) as (env_cfg, agent_cfg):
        results = []
        for clip, action in ((0.5, 1.0), (None, 0.5), (None, 1.0)):
            agent_cfg.clip_actions = clip
            env = engine.make_env(env_cfg, agent_cfg)
            obs, *_ = env.step(torch.full((4, 4), action))
            results.append(obs["policy"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_capabilities_are_what_the_environment_declares():
    """The quadrotor declares its step, fields and units, through wrappers too; a bare environment declares nothing."""
    engine = TorchEngine()
    with engine.launch(LaunchRequest(TASK), _few) as (env_cfg, agent_cfg):
        env = engine.make_env(env_cfg, agent_cfg)
    declared = EnvCapabilities.of(env)
    assert declared.step_dt == pytest.approx(0.01)
    assert declared.position_fields["l2f"] == (0, "world")
    assert declared.metric_units == {"position_error": (100.0, "cm")}
    assert declared.solved_return is not None and declared.solved_return > 0.0
    assert declared.can_render and declared.can_save_state
    assert EnvCapabilities.of(SimpleNamespace()) == EnvCapabilities()  # pyright: ignore[reportArgumentType]


def test_wrappers_pass_assignments_through():
    """RSL-RL assigns episode_length_buf on what it was given: the environment inside must see it."""
    engine = TorchEngine()
    with engine.launch(LaunchRequest(TASK), _few) as (env_cfg, agent_cfg):
        agent_cfg.clip_actions = 1.0
        env = engine.make_env(env_cfg, agent_cfg)
        env.episode_length_buf = torch.full((4,), 499)
        *_, extras = env.step(torch.zeros(4, 4))
        assert extras["time_outs"].all()
        assert isinstance(env.unwrapped, QuadcopterPointCtrlEnv)  # pyright: ignore[reportAttributeAccessIssue]


def test_video_clips_are_whole_files(tmp_path):
    """Clips of 20 steps every 50 play 10 frames at 50 fps each; nothing else is left in the folder."""
    engine = TorchEngine()
    with engine.launch(LaunchRequest(TASK, video=True), _few) as (env_cfg, agent_cfg):
        env_cfg.viewer.resolution = (160, 120)
        env = engine.make_env(env_cfg, agent_cfg, video=VideoRequest(tmp_path / "clips", length=20, interval=50))
        for _ in range(75):
            env.step(torch.zeros(4, 4))
        env.close()  # pyright: ignore[reportAttributeAccessIssue]
    files = sorted(path.name for path in (tmp_path / "clips").iterdir())
    assert files == ["rl-video-step-0.mp4", "rl-video-step-50.mp4"]
    frames = [imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "clips" / name))[0] for name in files]
    assert frames == [10, 10]
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "clips" / files[0]))
    assert next(reader)["fps"] == 50
    pixels = np.stack([np.frombuffer(frame, dtype=np.uint8) for frame in reader])
    assert pixels[5].std() > 5


def test_clips_are_named_as_gymnasium_names_them(tmp_path, monkeypatch):
    """``RecordVideo`` with Isaac Lab's step trigger leaves the same file names, and nothing beside them."""

    class Clip:
        """Stands for moviepy's, which need not be installed: it only makes the file."""

        def __init__(self, frames: list, fps: int):
            assert frames

        def write_videofile(self, path: str, **_: object) -> None:
            Path(path).touch()

    class OneStep(gymnasium.Env):
        metadata: ClassVar = {"render_modes": ["rgb_array"]}
        render_mode = "rgb_array"
        step = lambda self, action: (0, 0.0, False, False, {})  # noqa: E731
        render = lambda self: np.zeros((8, 8, 3), np.uint8)  # noqa: E731

    for name in ("moviepy", "moviepy.video", "moviepy.video.io", "moviepy.video.io.ImageSequenceClip"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["moviepy.video.io.ImageSequenceClip"], "ImageSequenceClip", Clip, raising=False)
    theirs = gymnasium.wrappers.RecordVideo(
        OneStep(), str(tmp_path / "theirs"), step_trigger=lambda step: step % 4 == 0, video_length=2
    )
    ours = VideoRecorder(QuadcopterPointCtrlEnv(_small()), VideoRequest(tmp_path / "ours", length=2, interval=4))
    for _ in range(10):
        theirs.step(0)
        ours.step(torch.zeros(1, 4))
    theirs.close()
    ours.close()
    expected = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert expected and sorted(path.name for path in (tmp_path / "ours").iterdir()) == expected


def test_a_clip_cut_short_is_finished_on_close(tmp_path):
    """Closing in the middle of a clip keeps the frames so far under the final name."""
    engine = TorchEngine()
    with engine.launch(LaunchRequest(TASK, video=True), _few) as (env_cfg, agent_cfg):
        env_cfg.viewer.resolution = (160, 120)
        env = engine.make_env(env_cfg, agent_cfg, video=VideoRequest(tmp_path, length=200, interval=0))
        for _ in range(9):
            env.step(torch.zeros(4, 4))
        assert not list(tmp_path.glob("rl-video*"))
        env.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert [path.name for path in tmp_path.iterdir()] == ["rl-video-step-0.mp4"]


@pytest.mark.parametrize("length", [1, 3])
def test_a_clip_begins_with_its_first_step(tmp_path, length):
    """At 100 Hz every second step is a frame, the first one always: a clip of one step has one, of three two."""
    env = VideoRecorder(QuadcopterPointCtrlEnv(_small()), VideoRequest(tmp_path, length=length, interval=0))
    for _ in range(4):
        env.step(torch.zeros(1, 4))
    env.close()
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "rl-video-step-0.mp4"))[0] == (length + 1) // 2


def test_a_step_that_fails_at_once_leaves_no_clip(tmp_path, monkeypatch):
    """Nothing is named like a clip that has no frame."""
    env = VideoRecorder(QuadcopterPointCtrlEnv(_small()), VideoRequest(tmp_path, length=3, interval=0))
    monkeypatch.setattr(env.env, "step", lambda actions: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        env.step(torch.zeros(1, 4))
    env.close()
    assert not list(tmp_path.iterdir())


def _small() -> QuadcopterPointCtrlEnvCfg:
    return QuadcopterPointCtrlEnvCfg(scene=SceneCfg(1), viewer=ViewerCfg(resolution=(64, 64)))


def test_a_users_own_task_wins_over_ours(tmp_path, monkeypatch, typed):
    """--task their_package:Id imports their package, which may register our id anew."""
    (tmp_path / "their_package.py").write_text(
        textwrap.dedent(
            """
            import gymnasium
            from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
            from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

            class TheirEnv(QuadcopterPointCtrlEnv):
                pass

            ours = gymnasium.registry["Isaac-Quadcopter-Point-Ctrl-v0"]
            kwargs = {**ours.kwargs, "torch_env_entry_point": TheirEnv}
            gymnasium.register(id=ours.id, entry_point=ours.entry_point, kwargs=kwargs)
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(gymnasium.registry, TASK, gymnasium.registry[TASK])
    typed("--task", f"their_package:{TASK}")
    engine = TorchEngine()
    with engine.launch(LaunchRequest(f"their_package:{TASK}"), _few) as (env_cfg, agent_cfg):
        agent_cfg.clip_actions = None
        assert type(engine.make_env(env_cfg, agent_cfg).unwrapped).__name__ == "TheirEnv"  # pyright: ignore
    sys.modules.pop("their_package")


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("Isaac-Quadcoptr-Point-Ctrl-v0", "Did you mean 'Isaac-Quadcopter-Point-Ctrl-v0'"),
        ("no_such_package:Task-v0", "cannot be imported: No module named 'no_such_package'"),
        ("CartPole-v1", "torch_env_entry_point"),
    ],
)
def test_an_unknown_task_is_answered(task, words, typed):
    """The nearest names, or what is missing."""
    typed("--task", task)
    with pytest.raises(UserError, match=words), TorchEngine().launch(LaunchRequest(task), _nothing):
        pass


def test_devices_are_checked(monkeypatch):
    """CUDA that is not there and nonsense are errors that say what to use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device, words in (("cuda:0", "use --device cpu"), ("gpu", "not a torch device")):
        with pytest.raises(UserError, match=words), TorchEngine().launch(LaunchRequest(TASK, device=device), _nothing):
            pass


def test_the_number_of_environments_is_checked():
    """--num_envs 0 is refused."""
    with TorchEngine().launch(LaunchRequest(TASK), _nothing) as (env_cfg, _), pytest.raises(UserError, match="num_env"):
        TorchEngine().set_common(env_cfg, num_envs=0, seed=None, device=None)


def test_engines_are_the_files_of_the_folder(typed):
    """Modules that define an engine are engines; helpers beside them are not; a foreign class goes by its path."""
    assert "torch" in engine_names()
    assert not {"base", "video", "__init__"} & set(engine_names())
    assert engine_class("torch") is TorchEngine
    assert engine_class("foundation.engines.torch:TorchEngine") is TorchEngine
    with pytest.raises(UserError, match="Did you mean 'torch'"):
        engine_class("toch")
    typed("--engine", "nowhere:Engine", "--engine=pathlib:Path")
    with pytest.raises(UserError, match="cannot be imported"):
        engine_class("nowhere:Engine")
    with pytest.raises(UserError, match="not a subclass"):
        engine_class("pathlib:Path")


def _fake(name: str, obstacle: str | None) -> type[Engine]:
    return type(name, (TorchEngine,), {"name": name, "why_not": classmethod(lambda cls, task: obstacle)})


@pytest.mark.parametrize(
    ("isaaclab", "torch_obstacle", "other", "chosen"),
    [
        (None, None, None, "isaaclab"),
        ("not installed", None, None, "torch"),
        ("not installed", "does not know it", None, "mujoco"),
    ],
)
def test_auto_prefers_isaac_lab_then_torch(monkeypatch, isaaclab, torch_obstacle, other, chosen):
    """Auto takes Isaac Lab where it knows the task, else torch, else another; one not installed is no news."""
    fakes = {
        "isaaclab": _fake("isaaclab", isaaclab),
        "torch": _fake("torch", torch_obstacle),
        "mujoco": _fake("mujoco", other),
    }
    monkeypatch.setattr(engines, "engine_names", lambda: sorted(fakes))
    monkeypatch.setattr(engines, "engine_class", fakes.__getitem__)
    engine, reason = select_engine(TASK)
    assert engine.name == chosen
    assert chosen in reason
    assert "not installed" not in reason
    assert ("does not know it" in reason) == (torch_obstacle is not None)


def test_a_task_that_no_engine_knows(monkeypatch):
    """The error has every engine's reason and the nearest task."""
    monkeypatch.setattr(engines, "engine_names", lambda: ["torch"])
    with pytest.raises(UserError, match=r"torch: does not know it.*Did you mean"):
        select_engine("Isaac-Quadcopter-Point-Ctl-v0")
    with pytest.raises(UserError, match="--engine torch cannot run"):
        select_engine("Nothing-v0", "torch")


def test_an_id_like_no_other_is_answered_with_the_built_in_tasks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gymnasium registers hundreds of ids: those of the built-in simulator stand before them."""
    monkeypatch.setattr(engines, "engine_names", lambda: ["gymnasium", "torch"])
    with pytest.raises(
        UserError, match=r"Valid are: Isaac-Quadcopter-Chase-Play-v0, Isaac-Quadcopter-Chase-v0, Isaac-Quadcopter-"
    ):
        select_engine("Zzzz-v0")


def test_isaac_lab_says_why_a_module_cannot_be_imported(monkeypatch, typed):
    """A task whose package fails to import is not one that Isaac Lab does not know."""
    monkeypatch.setattr(isaaclab, "not_installed", lambda: None)
    monkeypatch.setattr(isaaclab, "major_version", lambda: 3)
    monkeypatch.setattr(isaaclab, "_register_tasks", lambda: None)
    typed(f"no_such_package:{TASK}")
    reason = isaaclab.IsaacLabEngine.why_not(f"no_such_package:{TASK}")
    assert reason == "cannot import its module"
    assert "does not know 'Nothing-v0'" in str(isaaclab.IsaacLabEngine.why_not("Nothing-v0"))


def test_clip_must_be_positive():
    """agent.clip_actions=0 is refused."""
    engine = TorchEngine()
    with engine.launch(LaunchRequest(TASK), _few) as (env_cfg, _), pytest.raises(UserError, match="clip_actions"):
        engine.make_env(env_cfg, SimpleNamespace(clip_actions=0.0))
