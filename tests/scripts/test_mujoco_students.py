"""The study of MuJoCo's tasks: sizes of students, and the page that is written from what is done."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from foundation.core.errors import UserError
from foundation.students import StudentPolicy, make_student
from foundation.students.gru import GRUStudentCfg

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import mujoco_students  # noqa: E402


@pytest.mark.parametrize(("num_obs", "width", "num_actions"), [(17, 48, 6), (5, 3, 1)])
def test_parameters_are_those_of_the_students(num_obs, width, num_actions):
    """The formulas count what an MLP and a GRU with an encoder have."""
    mlp = StudentPolicy(num_obs, num_actions, hidden_dims=(width, width))
    assert mujoco_students.mlp_parameters(num_obs, width, num_actions) == sum(p.numel() for p in mlp.parameters())
    cfg = GRUStudentCfg(encoder_dims=[width], hidden_size=width, hidden_dims=[])
    gru = make_student(cfg, num_obs, num_actions)
    assert mujoco_students.gru_parameters(num_obs, width, num_actions) == sum(p.numel() for p in gru.parameters())


@pytest.mark.parametrize("kind", ["mlp", "gru"])
def test_the_widest_student_keeps_to_its_share(kind):
    """One wider would have more parameters than a twentieth of 71,942."""
    count = {"mlp": mujoco_students.mlp_parameters, "gru": mujoco_students.gru_parameters}[kind]
    width = mujoco_students.widest(kind, 17, 6, 71_942 // 20)
    assert count(17, width, 6) <= 71_942 / 20 < count(17, width + 1, 6)


def test_the_page_has_returns_sizes_and_latencies():
    """Of two seeds the median and the range; of a format that could not be timed a dash."""
    run = {"teacher_return": 1500.0, "random_return": -300.0, "parameters": 3510, "latency": {"checkpoint": 42.0}}
    done = {
        "teacher HalfCheetah-v5": {
            "parameters": 71942,
            "env_steps": 400000,
            "latency": {"checkpoint": 61.0, "c": 20.04},
        },
        "mlp HalfCheetah-v5 s0": run | {"return": 1400.0, "score": 0.9},
        "mlp HalfCheetah-v5 s1": run | {"return": 1600.0, "score": 1.0},
        "mlp_blind HalfCheetah-v5 s0": run | {"return": 100.0, "score": 0.2},
    }
    text = mujoco_students.page(done, "mujoco")
    assert (
        "| HalfCheetah-v5 | teacher, 400,000 env steps | 71,942 | 1,500 (1,500 to 1,500) | 1.000 | 61.0 | 20.0 |"
        in text
    )
    scores = "1,500 (1,400 to 1,600) | 0.950 (0.900 to 1.000) | 42.0 | - |"
    assert f"| MLP, all observations | 3,510 | {scores}" in text
    assert "| MLP, no velocities | 3,510 | 100 | 0.200 | 42.0 | - |" in text
    assert "| random actions | | -300 | 0.000 | | |" in text


def test_a_missing_extra_is_one_line_before_anything_is_trained(tmp_path, monkeypatch):
    """Without Stable-Baselines3 no teacher can be trained."""
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(UserError, match=r"pip install -e '\.\[sb3\]'"):
        mujoco_students.main(["--folder", str(tmp_path), "--out", str(tmp_path / "page")])
    assert not list(tmp_path.iterdir())
