"""The example of a task that is seen in pixels: what is seen, what is stored, and how much memory that takes."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
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
    return tmp_path


def test_frames_are_those_of_the_camera(in_folder):
    """Four frames, the newest last, the first one repeated at the start: the average of blocks of what is drawn."""
    env = gymnasium.make("pixel_task:CartPole-Pixels-v0")
    obs, _ = env.reset(seed=3)
    assert obs["pixels"].shape == (4, 15, 60) and obs["pixels"].dtype == np.uint8
    assert all(np.array_equal(obs["pixels"][0], frame) for frame in obs["pixels"])
    seen = [obs["pixels"][-1]]
    for _ in range(5):
        obs, *_ = env.step(1)
        picture = 255.0 - env.render()[170:320, :, 2].astype(float)
        block = picture[60:70, 300:310].mean()
        assert abs(float(obs["pixels"][-1][6, 30]) - block) <= 0.5
        seen.append(obs["pixels"][-1])
    assert np.array_equal(obs["pixels"], np.stack(seen[-4:]))
    assert not np.array_equal(seen[-1], seen[-2])


TRANSITION_BYTES = 4 * 15 * 60 + 4 * (1 + 2) + 1
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
    assert student["images"] == {"pixels": [4, 15, 60]} and student["num_choices"] == 2


def resident_bytes() -> int:
    """Memory of this process that is in use [bytes]."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def filled(column: str, shape: tuple[int, ...], num_choices: int, size: int) -> DistillationDataset:
    """A dataset that is full of observations of bytes."""
    typed = {column: Column(shape, "uint8")}
    dataset = DistillationDataset(BufferSpec(0, 16, size, {"mean": 1, "logits": num_choices}, typed=typed))
    obs, resets = torch.zeros(16, math.prod(shape), dtype=torch.uint8), torch.zeros(16, dtype=torch.bool)
    targets = PolicyOutput(torch.zeros(16, 1), logits=torch.zeros(16, num_choices))
    for _ in range(dataset.spec.max_chunks):
        dataset.begin_chunk()
        for step in range(dataset.chunk_steps):
            dataset.write(step, obs, targets, resets)
        dataset.commit_chunk()
    assert len(dataset) == size
    return dataset


def growth(column: str, shape: tuple[int, ...], num_choices: int, size: int) -> tuple[float, int, int]:
    """Fill a dataset; return its bytes per transition and in all, and by how many this process has grown."""
    filled(column, shape, num_choices, 1024)  # what is allocated once, by whoever is the first
    before = resident_bytes()
    dataset = filled(column, shape, num_choices, size)
    return dataset.spec.transition_bytes, dataset.spec.num_bytes, resident_bytes() - before


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="the process's memory is read from Linux's /proc")
@pytest.mark.parametrize(
    ("column", "shape", "num_choices", "transition_bytes"),
    [
        (image_column("pixels"), (4, 15, 60), 2, TRANSITION_BYTES),
        (image_column("pixels"), (4, 42, 40), 6, 4 * 42 * 40 + 4 * (1 + 6) + 1),
        ("obs", (10 * 10 * 4,), 3, 10 * 10 * 4 + 4 * (1 + 3) + 1),
    ],
    ids=["the example", "Pong", "MinAtar's Breakout"],
)
def test_memory_per_transition_is_as_computed(column, shape, num_choices, transition_bytes):
    """Filled with 64 MB, the process has grown by what the buffer's size was said to be, to 5 %."""
    size = 64_000_000 // transition_bytes // 1024 * 1024
    # A process of its own: one that has run other tests has memory to give without growing.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        per_transition, computed, grown = fresh.submit(growth, column, shape, num_choices, size).result()
    assert per_transition == transition_bytes
    assert computed == size * transition_bytes
    assert grown == pytest.approx(size * transition_bytes, rel=0.05)
