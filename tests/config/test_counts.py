"""Counts of a distillation config whose work could never end: refused early, with the bound in the message."""

from __future__ import annotations

from typing import Any

import pytest

from foundation.config.distillation_cfg import (
    CollectionCfg,
    DatasetCfg,
    DistillationCfg,
    EarlyStoppingCfg,
    GateCfg,
    OptimizerCfg,
    TeacherCfg,
)
from foundation.config.validate import validate
from foundation.core.errors import UserError

HUGE = 10**12
CASES: list[tuple[dict[str, Any], str]] = [
    ({"num_envs": HUGE}, "--num_envs"),
    ({"num_episodes": HUGE}, "--num_episodes"),
    ({"num_eval_episodes": 2**31}, "--num_eval_episodes"),
    ({"final_eval_episodes": HUGE}, "--final_eval_episodes"),
    ({"batch_size": HUGE}, "--batch_size"),
    ({"sequence_length": HUGE}, "--sequence_length"),
    ({"optimizer": OptimizerCfg(updates_per_epoch=HUGE)}, "distill.optimizer.updates_per_epoch"),
    ({"teacher": TeacherCfg(gate=GateCfg(updates=HUGE))}, "distill.teacher.gate.updates"),
    ({"collection": CollectionCfg(teacher_student_mix=HUGE)}, "--teacher_student_mix"),
    ({"dataset": DatasetCfg(chunk_steps=HUGE)}, "distill.dataset.chunk_steps"),
]


@pytest.mark.parametrize(("values", "key"), CASES)
def test_work_without_an_end_is_refused(values: dict[str, Any], key: str) -> None:
    """One line that names the key, before anything is started."""
    with pytest.raises(UserError, match=rf"^{key} is \d+: it must be at most 2147483647, the largest integer of 32"):
        validate(DistillationCfg(**values))


def test_what_may_be_meant_is_not_refused() -> None:
    """A million epochs, a million episodes, and intervals that never come."""
    validate(DistillationCfg(n_epochs=10**6, num_episodes=10**6, final_eval_episodes=10**6))
    never = {"eval_interval": HUGE, "save_interval": HUGE, "early_stopping": EarlyStoppingCfg(patience=HUGE)}
    validate(DistillationCfg(**never))
