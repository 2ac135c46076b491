"""What ``teacher_info.py --task`` says of a policy's columns."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import foundation
from foundation.cli.policy_table import show_policy
from foundation.teachers import TeacherPolicyWrapper

SHIPPED = Path(foundation.__file__).resolve().parent / "assets" / "teachers"


@pytest.mark.parametrize(
    ("teacher", "task", "named"),
    [
        ("cartpole/teacher.zip", "CartPole-v1", False),
        ("cartpole/teacher.zip", None, None),
        ("point_ctrl/model.pt", "Isaac-Quadcopter-Point-Ctrl-v0", True),
    ],
)
def test_a_task_that_names_no_columns_is_said(teacher, task, named, capsys, caplog):
    """A typed task that adds nothing to the table is not passed over in silence."""
    with caplog.at_level(logging.WARNING, logger="foundation.teacher_info"):
        show_policy(TeacherPolicyWrapper(SHIPPED / teacher), task=task)
    said = [record.getMessage() for record in caplog.records if record.name == "foundation.teacher_info"]
    assert bool(said) == (named is False)
    assert all(line.startswith(f"--task {task}: it states no names of the columns") for line in said)
    assert ("position_error" in capsys.readouterr().out) == (named is True)
