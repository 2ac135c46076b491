"""scripts/latency.py: what it times and counts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from foundation.core.errors import UserError
from foundation.students import make_student, student_cfg_class

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "scripts")]

import latency  # noqa: E402


@pytest.mark.parametrize(
    ("name", "multiply_adds"),
    [("mlp", 9 * 64 + 64 * 64 + 64 * 3), ("gru", 9 * 16 + 2 * 3 * 16 * 16 + 16 * 3)],
)
def test_every_format_is_timed(name, multiply_adds, tmp_path, capsys):
    """Each format has its percentiles and the size of its file; multiply-adds are those counted by hand."""
    network = make_student(student_cfg_class(name)(), 9, 3)
    path = tmp_path / "student.pt"
    torch.save({"student": network.describe(), "model_state_dict": network.state_dict()}, path)
    arguments = ["--checkpoint", str(path), "--steps", "20", "--json", str(tmp_path / "latency.json")]
    assert latency.main(arguments) == 0
    figures = json.loads((tmp_path / "latency.json").read_text())
    assert figures["multiply_adds"] == multiply_adds
    assert set(figures["formats"]) == {"checkpoint", "torchscript", "onnx", "npz", "so", "c"}
    for row in figures["formats"].values():
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["file_bytes"] > 0
    assert figures["formats"]["checkpoint"]["file_bytes"] == path.stat().st_size
    assert f"{multiply_adds} multiply-adds" in " ".join(capsys.readouterr().out.split())


def test_no_steps_is_one_line():
    """Nothing to time is refused."""
    with pytest.raises(UserError, match="at least 1 step"):
        latency.main(["--checkpoint", "x.pt", "--steps", "0"])
