"""What a user says about a teacher's checkpoint reaches whoever reads it."""

from __future__ import annotations

import pytest
from many_teachers import write_set
from small_teacher import TASK, write_teacher

from foundation.config.overrides import Overrides
from foundation.config.resolve import resolve_distillation_cfg
from foundation.errors import UserError
from foundation.rsl_rl.cli_args import distillation_flags, parse_command
from foundation.rsl_rl.distillation import build_parser
from foundation.rsl_rl.teacher_set import load_teacher
from foundation.students import student_cfg_class


def loaded(*argv: str):
    args, _ = parse_command(build_parser(), ["--task", TASK, "--device", "cpu", *argv])
    cfg = resolve_distillation_cfg(Overrides(), distillation_flags(args), student_cfg_class=student_cfg_class)
    return load_teacher(cfg)


def test_the_activation_of_one_teacher_is_what_the_flag_says(tmp_path):
    """``--teacher_activation`` beats the default, and ``describe`` says where it came from."""
    teacher = loaded("--teacher_checkpoint", str(write_teacher(tmp_path / "t.pt")), "--teacher_activation", "tanh")
    assert teacher.describe()["activation"] == "tanh"


def test_the_activation_of_many_teachers_is_what_the_flag_says(tmp_path):
    """All of a set are read with it."""
    teachers = loaded("--teacher_checkpoint", str(write_set(tmp_path, 2)), "--teacher_activation", "tanh")
    assert "tanh" in str(teachers.describe()).lower()


def test_an_unknown_activation_names_the_nearest(tmp_path):
    """One line."""
    path = str(write_teacher(tmp_path / "t.pt"))
    with pytest.raises(UserError, match=r"'tanhh'.*tanh"):
        loaded("--teacher_checkpoint", path, "--teacher_activation", "tanhh")
