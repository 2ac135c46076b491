"""Values of a fine-tuning config that cannot be meant: one line that names the key."""

from __future__ import annotations

from typing import Any

import pytest

from foundation.config.finetune_cfg import (
    CriticCfg,
    EwcCfg,
    FinetuneCfg,
    ReplayCfg,
    RetainedTeacherCfg,
    check_finetune,
)
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


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"num_eval_episodes": 2**31}, "--num_eval_episodes is 2147483648"),
        ({"final_eval_episodes": 10**12}, "--final_eval_episodes is 1000000000000"),
        ({"max_iterations": 10**12}, "--max_iterations is"),
        ({"critic": CriticCfg(warmup_iterations=10**12)}, "--critic_warmup_iterations is"),
        ({"replay": ReplayCfg(batch_size=10**12)}, "finetune.replay.batch_size is"),
        ({"ewc": EwcCfg(samples=10**12)}, "finetune.ewc.samples is"),
    ],
)
def test_work_without_an_end_is_refused(values: dict[str, Any], says: str) -> None:
    """A count beyond 32 bits, with the bound in the message."""
    with pytest.raises(UserError, match=f"{says}.*: it must be at most 2147483647, the largest integer of 32 bits"):
        check_finetune(FinetuneCfg(**values))


def test_a_long_training_and_an_interval_beyond_it_are_fine() -> None:
    """A million iterations may be meant, and an interval that never comes."""
    check_finetune(FinetuneCfg(max_iterations=10**6, eval_interval=10**12, save_interval=10**12))
