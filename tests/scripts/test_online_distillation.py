"""The study of online distillation: curves that are read while they grow, and what says how smooth they are."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import online_distillation  # noqa: E402
from online_distillation import Watched  # noqa: E402


def test_smoothness_is_as_counted_by_hand():
    """Of 1, 5, 3, 4, 9, 2: changes 4 2 1 5 7, distances below the best so far 0 0 2 1 0 7."""
    found = online_distillation.smoothness([1.0, 5.0, 3.0, 4.0, 9.0, 2.0])
    assert found == pytest.approx({"mean_change": 19 / 5, "mean_drop": 10 / 6, "largest_drop": 7.0})


def test_only_what_is_new_gets_a_time():
    """Points that were seen before keep the time at which they were seen first; a file half written adds none."""
    curve = Watched()
    curve.extend([10.0, 20.0], [1.0, 2.0], 5.0)
    curve.extend([], [], 6.0)
    curve.extend([10.0, 20.0, 30.0], [1.0, 2.0, 4.0], 7.0)
    assert curve == Watched([10.0, 20.0, 30.0], [1.0, 2.0, 4.0], [5.0, 5.0, 7.0])


def test_the_student_is_compared_by_its_last_evaluation_before_each_of_the_teachers():
    """Of evaluations at 15, 25 and 35 env steps those before 20, 30 and 40; the teacher's first has none."""
    teacher = Watched([10.0, 20.0, 30.0, 40.0], [0.0, 8.0, 2.0, 6.0], [1.0, 2.0, 3.0, 4.0])
    student = Watched([1.0, 2.0, 3.0], [5.0, 6.0, 7.0], [1.5, 2.5, 3.5])
    found = online_distillation.online(teacher, student)
    assert found["student"]["env_steps"] == [15.0, 25.0, 35.0]
    assert found["points"] == 3
    assert found["teacher"]["mean_change"] == 5.0  # 8, 2, 6
    assert found["teacher"]["largest_drop"] == 6.0
    assert found["student"]["mean_change"] == 1.0  # 5, 6, 7
    assert found["student"]["mean_drop"] == 0.0
    text = online_distillation.page({"CartPole-v1 s0": found}, "online")
    assert "| mean change between evaluations | 5.0 | 1.0 |" in text
    assert "| last evaluation | 6.0 | 7.0 |" in text
    assert "Runs of 1 in which the student's curve was the smoother one: 1 by the mean change" in text


def test_a_training_is_read_while_it_writes(tmp_path):
    """Mean returns by env steps; nothing where the file is missing or half written."""
    assert online_distillation.read_evaluations(tmp_path) == ([], [])
    path = tmp_path / "evaluations.npz"
    np.savez(path, timesteps=np.array([100, 200]), results=np.array([[1.0, 3.0], [5.0, 9.0]]), ep_lengths=np.ones(2))
    assert online_distillation.read_evaluations(tmp_path) == ([100.0, 200.0], [2.0, 7.0])
    path.write_bytes(path.read_bytes()[:-60])
    assert online_distillation.read_evaluations(tmp_path) == ([], [])
