"""Settings of finetune.py that change nothing beside the others."""

from __future__ import annotations

from typing import Any

import pytest

from foundation.config.distillation_cfg import LossCfg, ScheduleCfg
from foundation.config.finetune_cfg import (
    AdaptersCfg,
    CriticCfg,
    EwcCfg,
    FinetuneCfg,
    HeadsCfg,
    KlCfg,
    RehearsalCfg,
    ReplayCfg,
    RetainedTeacherCfg,
)
from foundation.ppo.no_effect import without_effect
from foundation.students.mlp import MLPStudentCfg

START = {"checkpoint": "start.pt"}
IDLE: list[tuple[dict[str, Any], str]] = [
    ({"kl_decay": 0.9}, "--kl_decay=0.9 (--kl_coef is 0)"),
    ({"kl": KlCfg(off_below=0.1, off_after=3)}, "finetune.kl.off_below=0.1, finetune.kl.off_after=3 (--kl_coef is 0)"),
    ({"teacher": RetainedTeacherCfg("t.pt")}, "--teacher_checkpoint=t.pt (--alpha and --kl_coef are 0, so that"),
    (
        {"teacher": RetainedTeacherCfg("t.pt", weights={"teacher1": 2.0}), "critic": CriticCfg("teacher")},
        "finetune.teacher.weights={'teacher1': 2.0} (--alpha and --kl_coef are 0)",
    ),
    (
        {"teacher": RetainedTeacherCfg("t.pt"), "critic": CriticCfg("teacher", hidden_size=7)},
        "finetune.critic.hidden_size=7 (the critic is the teacher's)",
    ),
    ({"loss": LossCfg("huber")}, "finetune.loss.name=huber (--alpha is 0)"),
    ({"replay": ReplayCfg(batch_size=7)}, "finetune.replay.batch_size=7 (there is no finetune.replay.dataset)"),
    ({"ewc": EwcCfg(samples=7)}, "finetune.ewc.samples=7 (finetune.ewc.coef is 0)"),
    ({"rehearsal": RehearsalCfg(share=0.5)}, "finetune.rehearsal.share=0.5 (there is no finetune.rehearsal.task)"),
    ({"adapters": AdaptersCfg(scale=2.0)}, "finetune.adapters.scale=2 (there is no finetune.adapters.rank)"),
    ({"task_columns": [0, 2]}, "finetune.task_columns=[0, 2] (no part of the policy is by task)"),
    ({"student": MLPStudentCfg(hidden_dims=[8])}, "finetune.student.hidden_dims=[8] (the policy is that of"),
    ({"critic": CriticCfg(hidden_size=7)}, "finetune.critic.hidden_size=7 (finetune.critic.memory is none)"),
    (
        {"critic": CriticCfg(warmup_iterations=0, warmup_learning_rate=1.0)},
        "finetune.critic.warmup_learning_rate=1 (--critic_warmup_iterations is 0)",
    ),
]


@pytest.mark.parametrize(("values", "says"), IDLE)
def test_a_setting_that_nothing_reads_is_named_with_the_reason(values: dict[str, Any], says: str) -> None:
    """One entry, and it begins with the key as the user sets it."""
    found = without_effect(FinetuneCfg(**START, **values))
    assert len(found) == 1
    assert found[0].startswith(says)


READ: list[dict[str, Any]] = [
    {},
    {"kl_coef": 0.1, "kl_decay": 0.9, "kl": KlCfg(off_below=0.1), "teacher": RetainedTeacherCfg("t.pt", std=0.1)},
    {"kl_coef": ScheduleCfg("linear", 0.0, 1.0), "teacher": RetainedTeacherCfg("t.pt", weights={"teacher1": 2.0})},
    {"alpha": 0.5, "loss": LossCfg("huber")},
    {"replay": ReplayCfg("data", batch_size=7), "loss": LossCfg("huber"), "ewc": EwcCfg(1.0, 7)},
    {"rehearsal": RehearsalCfg("Old-v0", 0.5), "heads": HeadsCfg(0), "task_columns": [0, 2]},
    {"critic": CriticCfg("teacher"), "teacher": RetainedTeacherCfg("t.pt")},
    {"critic": CriticCfg(memory="gru", hidden_size=7)},
]


@pytest.mark.parametrize("values", READ)
def test_a_setting_that_is_read_is_not_named(values: dict[str, Any]) -> None:
    """Each goes with what reads it."""
    assert without_effect(FinetuneCfg(**START, **values)) == []


def test_a_fresh_policy_reads_its_own_settings() -> None:
    """Without ``--checkpoint`` the student's settings are those of the policy, and a teacher gives its deviation."""
    cfg = FinetuneCfg(student=MLPStudentCfg(hidden_dims=[8]), teacher=RetainedTeacherCfg("t.pt"))
    assert without_effect(cfg) == []
