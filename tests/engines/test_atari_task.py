"""The example of Atari games: what its student sees and its teacher reads, and a run of the two."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from foundation.rsl_rl import distillation, export, play

ROOT = Path(__file__).resolve().parents[2]
TEACHER = ROOT / "foundation" / "assets" / "teachers" / "pong" / "teacher.zip"
TRANSITION_BYTES = 4 * 42 * 40 + 4 * (1 + 6) + 1
"""Frames of bytes; the best choice and six Q-values as float32; whether an episode begins."""


@pytest.fixture
def in_folder(monkeypatch, tmp_path):
    """Stand in a folder that the example was copied to, as the how-to says."""
    shutil.copy(ROOT / "examples" / "atari_task.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def example(in_folder, monkeypatch):
    """Import the example without the emulator, which only the games themselves need."""
    monkeypatch.setitem(sys.modules, "ale_py", ModuleType("ale_py"))
    return importlib.import_module("atari_task")


class Console(gymnasium.Env):
    """A game in the place of the emulator's: a white ball of 4 x 2 pixels on grey 87 falls by five rows a step."""

    observation_space = spaces.Box(0, 255, (128,), np.uint8)
    action_space = spaces.Discrete(6)

    def __init__(self):
        self.ale = SimpleNamespace(getScreenGrayscale=self.screen)
        self.row = 0

    def screen(self) -> np.ndarray:
        picture = np.full((210, 160), 87, np.uint8)
        picture[self.row : self.row + 4, 80:82] = 236
        return picture

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.row = 0
        return np.full(128, self.row, np.uint8), {}

    def step(self, action):
        self.row += 5
        return np.full(128, self.row, np.uint8), 0.0, False, False, {}


def test_the_background_is_black_and_the_ball_leaves_a_mark(example):
    """Grey 236 on 87 over 8 of a block's 20 pixels: 0.4 * 149 = 59.6; darker things count as lighter ones do."""
    screen = np.full((210, 160), 87, np.uint8)
    screen[5:9, 80:82] = 236
    screen[205:, 156:] = 0
    expected = np.zeros((42, 40), np.uint8)
    expected[1, 20] = 60
    expected[41, 39] = 87
    np.testing.assert_array_equal(example.small(screen), expected)


def test_frames_are_stacked_and_the_memory_scaled(example):
    """Four frames, the newest last, the first in every place at the start of each episode; bytes of 0 to 1."""
    env = example.Camera(example.Memory(Console()))
    env.reset(seed=0)
    for steps in range(1, 6):
        obs, *_ = env.step(0)
        rows = [int(frame[:, 20].argmax()) for frame in obs["pixels"]]
        assert rows == [max(0, steps - back) for back in (3, 2, 1, 0)]
        np.testing.assert_allclose(obs["ram"], steps * 5 / 255, rtol=1e-6)
        assert env.observation_space.contains(obs)
    obs, _ = env.reset(seed=0)
    assert all(frame[0, 20] == 60 and frame.sum() == 60 for frame in obs["pixels"])


def test_the_student_sees_the_ball_where_the_memory_has_it(in_folder):
    """Of Pong's memory, bytes 49 and 54 are the ball's place (Anand et al. 2019): the newest frame shows it there."""
    pytest.importorskip("ale_py")
    env = gymnasium.make("atari_task:Pong-Pixels-v0")
    assert env.observation_space.contains(env.reset(seed=1)[0])
    seen = 0
    for _ in range(200):
        obs, *_ = env.step(env.action_space.sample())
        x, y = (round(float(obs["ram"][byte]) * 255) for byte in (49, 54))
        if 54 < x < 200 and 54 < y < 200:  # in play
            row, column = (y - 14) // 5, (x - 49) // 4
            seen += 1
            assert obs["pixels"][-1, row - 1 : row + 2, column - 1 : column + 2].max() > 0
    assert seen > 50
    env.close()


def test_teachers_train_on_the_memory_alone(in_folder):
    """The task for the training gives what the other's group ``ram`` is, from the same seed and actions."""
    pytest.importorskip("ale_py")
    both, alone = (gymnasium.make(f"atari_task:Pong-{kind}-v0") for kind in ("Pixels", "Ram"))
    found = [(both.reset(seed=4)[0]["ram"], alone.reset(seed=4)[0])]
    found += [(both.step(2)[0]["ram"], alone.step(2)[0]) for _ in range(30)]
    for ram, only in found:
        np.testing.assert_array_equal(ram, only)
    assert not np.array_equal(found[0][0], found[-1][0])
    both.close()
    alone.close()


def test_a_student_of_pixels_learns_from_a_teacher_of_the_memory(in_folder, capsys):
    """The run stores frames as bytes and nothing of the memory; the student reads frames alone, the teacher none."""
    pytest.importorskip("ale_py")
    arguments = [
        *("--task", "atari_task:Pong-Pixels-v0", "experiment=atari", "--device", "cpu"),
        *("--teacher_checkpoint", str(TEACHER), "--num_envs", "2", "--num_episodes", "2", "--n_epochs", "1"),
        *("--num_eval_episodes", "2", "distill.final_eval_episodes=2", "distill.dataset.size=2048"),
        *("--batch_size", "16", "distill.optimizer.updates_per_epoch=2", "env.max_episode_steps=20"),
        "distill.teacher.check=false",  # nobody scores in 20 steps
    ]
    assert distillation.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"room for 2048 transitions ({2048 * TRANSITION_BYTES / 1e6:.0f} MB)" in said
    [saved] = in_folder.glob("logs/distillation/*/*/best_student.pt")
    student = torch.load(saved, weights_only=True)["student"]
    assert student["images"] == {"pixels": [4, 42, 40]} and student["num_choices"] == 6


UP = """
import torch
from tensordict import TensorDict


def up(obs: TensorDict) -> torch.Tensor:
    return torch.full((len(obs), 1), 2.0)
"""


def test_the_plain_task_runs_in_every_command(monkeypatch, tmp_path, capsys):
    """``ALE/Pong-v5`` distilled from a teacher that is code, recorded and exported; frames are bytes."""
    pytest.importorskip("ale_py")
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pong_teacher.py").write_text(UP)
    arguments = [
        *("--task", "ALE/Pong-v5", "student=cnn", "--device", "cpu", "--teacher_checkpoint", "pong_teacher:up"),
        *("--num_envs", "2", "--num_episodes", "2", "--n_epochs", "1", "--batch_size", "16", "--eval_interval", "1"),
        *("--num_eval_episodes", "2", "distill.final_eval_episodes=2", "distill.dataset.size=1024"),
        *("distill.optimizer.updates_per_epoch=20", "env.max_episode_steps=20", "distill.teacher.check=false"),
        *("distill.student.channels=[2,2,2]", "distill.student.hidden_dims=[8]"),
    ]
    assert distillation.main(arguments) == 0
    assert (
        f"room for 1024 transitions ({1024 * (4 * 84 * 84 + 4 * (1 + 6) + 1) / 1e6:.0f} MB)" in capsys.readouterr().out
    )
    [saved] = tmp_path.glob("logs/distillation/*/*/best_student.pt")
    short = ["--num_envs", "2", "--num_episodes", "2", "env.max_episode_steps=20", "--device", "cpu"]
    assert play.main(["--task", "ALE/Pong-v5", *short, "--video", "--video_length", "10"]) == 0
    assert len(list(saved.parent.glob("videos/play/*.mp4"))) == 1
    assert export.main(["--checkpoint", str(saved)]) == 0
    assert (saved.parent / "exported" / "policy.onnx").is_file()
