"""Values of a fine-tuning config that cannot be meant: one line that names the key."""

from __future__ import annotations

from typing import Any

import pytest

from foundation.config.finetune_cfg import FinetuneCfg, ReplayCfg, RetainedTeacherCfg, check_finetune
from foundation.core.errors import UserError
from foundation.students.mlp import MLPStudentCfg


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"checkpoint": " "}, "--checkpoint is ' ': it must be a path"),
        ({"teacher": RetainedTeacherCfg(["t.pt", ""])}, "--teacher_checkpoint is .* it must be a path"),
        ({"replay": ReplayCfg("")}, "finetune.replay.dataset is ''"),
        ({"student": MLPStudentCfg(hidden_dims=[8], init_checkpoint="")}, "finetune.student.init_checkpoint is ''"),
    ],
)
def test_a_blank_path_is_not_the_current_folder(values: dict[str, Any], says: str) -> None:
    """As an interpolated key gives it: refused before anything is read."""
    with pytest.raises(UserError, match=says):
        check_finetune(FinetuneCfg(**values))
