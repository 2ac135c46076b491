"""The example of a task that is seen in pixels: what is seen, what is stored, and how much memory that takes."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.dataset.transition import Column, image_column
from foundation.policies.output import PolicyOutput
from foundation.rsl_rl import distillation

ROOT = Path(__file__).resolve().parents[2]
TEACHER = ROOT / "foundation" / "assets" / "teachers" / "cartpole" / "teacher.zip"


@pytest.fixture
def in_folder(monkeypatch, tmp_path):
    """Run in a folder that the example was copied to, as the how-to says."""
    pytest.importorskip("pygame")
    shutil.copy(ROOT / "examples" / "pixel_task.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("pixel_task", None)
    gymnasium.registry.pop("CartPole-Pixels-v0", None)


def test_frames_are_those_of_the_camera(in_folder):
    """Four frames, the newest last, the first one repeated at the start: the average of blocks of what is drawn."""
    env = gymnasium.make("pixel_task:CartPole-Pixels-v0")
    obs, _ = env.reset(seed=3)
    assert obs["pixels"].shape == (4, 25, 100) and obs["pixels"].dtype == np.uint8
    assert all(np.array_equal(obs["pixels"][0], frame) for frame in obs["pixels"])
    seen = [obs["pixels"][-1]]
    for _ in range(5):
        obs, *_ = env.step(1)
        picture = env.render()[170:320, :, 2].astype(float)
        block = picture[60:66, 300:306].mean()
        assert abs(float(obs["pixels"][-1][10, 50]) - block) <= 0.5
        seen.append(obs["pixels"][-1])
    assert np.array_equal(obs["pixels"], np.stack(seen[-4:]))
    assert not np.array_equal(seen[-1], seen[-2])


TRANSITION_BYTES = 4 * 25 * 100 + 4 * (1 + 2) + 1
"""Frames of bytes; the best choice and two Q-values as float32; whether an episode begins."""


def test_a_student_of_pixels_learns_from_a_teacher_of_states(in_folder, capsys):
    """The run stores the frames as bytes, and nothing of the state that the teacher reads; its student sees them."""
    arguments = [
        *("--task", "pixel_task:CartPole-Pixels-v0", "experiment=cartpole", "student=cnn", "--device", "cpu"),
        *("--teacher_checkpoint", str(TEACHER), "--num_envs", "4", "--num_episodes", "4", "--n_epochs", "1"),
        *("--num_eval_episodes", "4", "distill.final_eval_episodes=4", "distill.dataset.size=4096"),
        *("distill.teacher.obs_groups=[state]", "distill.student.obs_groups=[pixels]", "env.max_episode_steps=40"),
    ]
    assert distillation.main(arguments) == 0
    said = capsys.readouterr().out
    assert f"room for 4096 transitions ({4096 * TRANSITION_BYTES / 1e6:.0f} MB)" in said
    [saved] = in_folder.glob("logs/distillation/*/*/best_student.pt")
    student = torch.load(saved, weights_only=True)["student"]
    assert student["images"] == {"pixels": [4, 25, 100]} and student["num_choices"] == 2


def resident_bytes() -> int:
    """Memory of this process that is in use [bytes]."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the process's memory is read from Linux's /proc")
def test_memory_per_transition_is_as_computed():
    """Filled, the process has grown by what the buffer's size was said to be, to 5 %: 10,013 bytes a transition."""
    frames = Column((4, 25, 100), "uint8")
    spec = BufferSpec(0, 16, 20_480, {"mean": 1, "logits": 2}, typed={image_column("pixels"): frames})
    assert spec.transition_bytes == TRANSITION_BYTES and spec.num_bytes == 20_480 * TRANSITION_BYTES
    before = resident_bytes()
    dataset = DistillationDataset(spec)
    obs, resets = torch.zeros(16, 10_000, dtype=torch.uint8), torch.zeros(16, dtype=torch.bool)
    targets = PolicyOutput(torch.zeros(16, 1), logits=torch.zeros(16, 2))
    for _ in range(spec.max_chunks):
        dataset.begin_chunk()
        for step in range(spec.chunk_steps):
            dataset.write(step, obs, targets, resets)
        dataset.commit_chunk()
    assert len(dataset) == 20_480
    assert (resident_bytes() - before) == pytest.approx(spec.num_bytes, rel=0.05)
