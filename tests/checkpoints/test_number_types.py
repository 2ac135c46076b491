"""Weights that are not plain floating-point numbers: refused in one line, whatever the format."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from small_teacher import write_teacher

from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint
from foundation.students import StudentPolicy
from foundation.teachers import TeacherPolicyWrapper

KINDS = [
    torch.complex64, torch.complex128, torch.complex32, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz,
    torch.int8, torch.int32, torch.int64, torch.uint8, torch.bool,
]  # fmt: skip


def convert(path: Path, dtype: torch.dtype, which: str) -> None:
    """Rewrite a checkpoint with the weights whose names hold ``which`` in another type."""
    checkpoint = torch.load(path, weights_only=True)
    name = next(key for key in checkpoint if "state_dict" in key and "optimizer" not in key)
    state = checkpoint[name]
    chosen = [key for key in state if which in key]
    assert chosen
    for key in chosen:
        state[key] = state[key].to(dtype)
    torch.save(checkpoint, path)


@pytest.mark.parametrize("which", ["0.weight", "0.bias"])
@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_teachers_of_rsl_rl(dtype, which, tmp_path):
    """A teacher of RSL-RL whose weights or biases are complex, of 8 bits or integers is refused, and the type named."""
    path = write_teacher(tmp_path / "teacher.pt")
    convert(path, dtype, which)
    with pytest.raises(UserError, match=str(dtype).removeprefix("torch.")) as refusal:
        TeacherPolicyWrapper(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_students(dtype, tmp_path):
    """A student's weights are not cast in silence either."""
    student = StudentPolicy(5, 2)
    path = tmp_path / "student.pt"
    torch.save({"student": student.describe(), "model_state_dict": student.state_dict()}, path)
    TeacherPolicyWrapper(path)
    convert(path, dtype, "body.0.weight")
    with pytest.raises(UserError, match=str(dtype).removeprefix("torch.")):
        TeacherPolicyWrapper(path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_plain_types_stay_welcome(dtype, tmp_path):
    """Double, half and bfloat16 weights are read as the float32 numbers nearest to them."""
    path = write_teacher(tmp_path / "teacher.pt")
    plain = tmp_path / "plain.pt"
    shutil.copy(path, plain)
    convert(path, dtype, "weight")
    obs = torch.randn(3, TeacherPolicyWrapper(plain).num_obs)
    tolerance = {torch.float64: 1e-7, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]
    given, wanted = (TeacherPolicyWrapper(file).act(obs) for file in (path, plain))
    assert (given - wanted).abs().max() <= tolerance


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e5m2], ids=str)
def test_any_checkpoint(dtype, tmp_path):
    """Whatever reads a checkpoint refuses such numbers; those of an optimiser are not looked at."""
    odd = torch.ones(3).to(dtype)
    torch.save({"optimizer_state_dict": {"m": odd}}, tmp_path / "fine.pt")
    load_checkpoint(tmp_path / "fine.pt")
    torch.save({"deep": {"er": odd}}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match="deep/er"):
        load_checkpoint(tmp_path / "odd.pt")
