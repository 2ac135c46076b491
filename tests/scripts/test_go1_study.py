"""The study of the Go1's students: what it types, and the page that it writes of its results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import go1_study


def result(value: float, **changes: object) -> dict[str, object]:
    known = {
        "return": value,
        "falls": 0.125,
        "velocity_error": 0.2,
        "foot_slip": 0.1,
        "front_duty": 0.5,
        "rear_duty": 0.6,
    }
    return {"parameters": 1234, "cpu_seconds": 90.0, **known, **changes}


@pytest.fixture
def page(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(go1_study, "PAGE", tmp_path / "legs.md")
    return tmp_path / "legs.md"


def test_the_page_has_medians_and_shares_of_the_teacher(page):
    """Returns of 18, 19 and 20 beside a teacher's 20 are a median share of 95 %, from 90 to 100."""
    rmse = {"base_lin_vel_0 [m/s]": 0.1, "base_lin_vel_1 [m/s]": 0.2, "base_lin_vel_2 [m/s]": 0.3}
    runs = {f"flat/gru/{seed}": result(18.0 + seed, velocity_rmse=rmse) for seed in range(3)}
    spread = {"mean": [0.4, 0.5, 0.6], "command": [0.15, 0.25, 0.35]}
    go1_study.write_page({"flat/teacher": result(20.0, velocity_spread=spread), **runs})
    lines = page.read_text().splitlines()
    gru = next(line for line in lines if line.startswith("| gru | 1,234"))
    cells = [cell.strip() for cell in gru.strip("|").split("|")]
    assert cells[2:6] == ["3", "1.5 (1.5 to 1.5)", "19.00 (18.00 to 20.00)", "95.0 (90.0 to 100.0) %"]
    assert cells[6].startswith("12.5") and cells[9] == "50 / 60 %"
    assert "| its mean | 0.400 | 0.500 | 0.600 |" in lines
    assert "| gru | 0.100 | 0.200 | 0.300 |" in lines
    assert "Not run yet: mlp, history." in lines
    assert not any("rough" in line.lower() for line in lines)


@pytest.mark.parametrize("student", go1_study.STUDENTS)
def test_each_student_is_typed_with_a_task_and_its_teacher(student):
    """The student, its observation group and the predicted one are said, and files that exist are named."""
    command = go1_study.Case("flat", student, 7).command
    assert f"student={student}" in command and command[-2:] == ["--seed", "7"]
    assert "distill.student.obs_groups=[proprioception]" in command
    assert any("group: velocity" in token for token in command)
