"""scripts/latency.py: what it times and counts."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
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
    rows = figures["formats"]
    raptor = rows.pop("raptor", None)
    assert (raptor is None) == (find_spec("foundation_policy") is None)
    assert set(rows) == {
        "checkpoint", "torchscript", "onnxruntime", "onnx", "onnx_int8", "npz", "so", "c", "c_int8",
    }  # fmt: skip
    for row in rows.values():
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["file_bytes"] > 0
    assert rows["checkpoint"]["file_bytes"] == path.stat().st_size
    # Rooms for memory and for values, of four bytes each in both.
    assert rows["c"]["ram_bytes"] == rows["c_int8"]["ram_bytes"] >= 4 * (9 + (0 if name == "mlp" else 16))
    assert f"{multiply_adds} multiply-adds" in " ".join(capsys.readouterr().out.split())


def test_no_steps_is_one_line():
    """Nothing to time is refused."""
    with pytest.raises(UserError, match="--steps: 0 is too small: it must be at least 1"):
        latency.main(["--checkpoint", "x.pt", "--steps", "0"])


def test_all_are_timed_in_turns():
    """No format has its steps at a time of its own, and each is stepped as often as asked."""
    order: list[str] = []
    steps = {name: (lambda name=name: order.append(name)) for name in ("first", "second")}
    times = latency.time_in_turns(steps, 2 * latency.BLOCK + 5)
    assert [len(values) for values in times.values()] == [2 * latency.BLOCK + 5] * 2
    turns = [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]
    assert turns == ["first", "second"] * 3


def test_a_policy_without_integers_is_said(tmp_path, capsys):
    """A format in which a policy cannot be written is left out, with its reason."""
    network = make_student(student_cfg_class("mlp")(activation="gelu"), 9, 3)
    path = tmp_path / "student.pt"
    torch.save({"student": network.describe(), "model_state_dict": network.state_dict()}, path)
    assert latency.main(["--checkpoint", str(path), "--steps", "3", "--json", str(tmp_path / "latency.json")]) == 0
    assert "c_int8" not in json.loads((tmp_path / "latency.json").read_text())["formats"]
    assert "c_int8: activation 'gelu'" in capsys.readouterr().out
