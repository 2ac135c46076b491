"""Evaluating in the only environment that a process can hold leaves the collection as it would have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import write_teacher

from foundation.config.distillation_cfg import DistillationCfg
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.students.gru import GRUStudentCfg
from foundation.teachers import TeacherPolicyWrapper

both = pytest.mark.parametrize("engine", ["torch", "isaaclab"])
EPOCHS = 4
"""Two of them teacher-forced."""


def _config(eval_interval: int, **student: Any) -> DistillationCfg:
    """Configure a run whose averaged student is evaluated apart from the collection, in every phase."""
    cfg = DistillationCfg(
        task="Quadcopter",
        n_epochs=100,
        epoch_teacher_forcing=2,
        num_episodes=8,
        num_eval_episodes=8,
        batch_size=64,
        learning_rate=1e-3,
        eval_interval=eval_interval,
    )
    cfg.student = GRUStudentCfg(**student) if student else cfg.student
    cfg.teacher.obs_groups, cfg.student.obs_groups = ["policy"], ["deployable"]
    cfg.teacher.check = False
    cfg.optimizer.ema_decay = 0.9
    cfg.dataset.disk_gb = 0.0
    return cfg


def _run(env: Any, folder: Path, cfg: DistillationCfg) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], int]:
    """Run some epochs. Returns the rows of each, the random state and the weights after them, and the evaluations."""
    folder.mkdir()
    teacher = TeacherPolicyWrapper(write_teacher(folder / "teacher" / "model.pt"))
    runner = DistillationRunner(env, teacher, cfg, RunDir(folder))
    evaluations = 0
    evaluate = runner._evaluate_student

    def counted() -> dict[str, float]:
        nonlocal evaluations
        evaluations += 1
        return evaluate()

    runner._evaluate_student = counted  # type: ignore[method-assign]
    runner._begin_run()
    collected: list[torch.Tensor] = []
    collect = runner.collector.collect

    def kept(*args: Any) -> Any:
        stats = collect(*args)
        collected.append(torch.cat([runner.dataset.rows[slot] for slot in stats.slots]).clone())
        collected.append(torch.cat([runner.dataset.resets[slot] for slot in stats.slots]).clone())
        collected.append(stats.returns.clone())
        return stats

    runner.collector.collect = kept  # type: ignore[method-assign]
    for epoch in range(EPOCHS):
        runner.run_epoch(epoch)
    assert runner.mode == "episodes"
    after = {name: value.clone() for name, value in runner.student.state_dict().items()}
    return collected, after | {"random state": torch.get_rng_state()}, evaluations


@both
@pytest.mark.parametrize("student", [{}, {"hidden_size": 8}], ids=["mlp", "gru"])
def test_evaluation_leaves_the_collection_undisturbed(engine, student, open_environment, tmp_path):
    """Every row, return, weight and random number is that of a run in which no evaluation happened.

    Noise on the student's group is drawn, and the student acts in the last two epochs.
    """
    values = {"episode_length_s": 0.2, "observation_noise__deployable__position": 0.02}
    with open_environment(engine, **values) as env:
        evaluated, after_evaluated, often = _run(env, tmp_path / "evaluated", _config(1, **student))
    with open_environment(engine, **values) as env:
        alone, after_alone, never = _run(env, tmp_path / "alone", _config(50, **student))
    assert (often, never) == (EPOCHS, 0)
    assert len(evaluated) == len(alone) == 3 * EPOCHS
    assert all(torch.equal(one, other) for one, other in zip(evaluated, alone, strict=True))
    assert all(torch.equal(after_evaluated[name], after_alone[name]) for name in after_alone)
    assert not torch.equal(alone[0], alone[3]), "each epoch has initial states of its own"
