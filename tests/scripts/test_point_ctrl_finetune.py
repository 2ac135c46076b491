"""The study of fine-tuning on the task that was distilled: its command lines, the old moments, and its page."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import point_ctrl_finetune as study  # noqa: E402

from foundation.config.agent_cfg import PPOAlgorithmCfg  # noqa: E402
from foundation.core.errors import UserError  # noqa: E402
from foundation.ppo.critic import ValueFunction  # noqa: E402
from foundation.ppo.ppo import Ppo  # noqa: E402
from foundation.students import StudentPolicy  # noqa: E402


def distilled(path: Path) -> StudentPolicy:
    """Write a student after two steps of an optimiser of its own, as ``distillation.py`` does."""
    student = StudentPolicy(2, 2, [4])
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        student.step(torch.randn(8, 2))[0].mean.square().mean().backward()
        optimizer.step()
    torch.save({"model_state_dict": student.state_dict(), "optimizer_state_dict": optimizer.state_dict()}, path)
    return student


def runner_of(student: StudentPolicy) -> Any:
    """What a run has of the actor and PPO."""
    actor = StudentPolicy(2, 2, [4], stochastic=True)
    actor.load_state_dict({**actor.state_dict(), **student.state_dict()})
    return SimpleNamespace(student=actor, ppo=Ppo(actor, ValueFunction.fresh(2, [4], "elu", False), PPOAlgorithmCfg()))


def test_the_old_moments_are_those_of_each_weight(tmp_path):
    """Each of the actor's weights has its own; the deviation and the critic, which are new, have none."""
    student = distilled(tmp_path / "s.pt")
    runner = runner_of(student)
    study.take_moments(runner, tmp_path / "s.pt")
    saved = torch.load(tmp_path / "s.pt", weights_only=True)["optimizer_state_dict"]["state"]
    state = runner.ppo.optimizer.state
    names = [name for name, _ in student.named_parameters()]
    for name, weight in runner.student.named_parameters():
        if name == "log_std":
            assert weight not in state
        else:
            assert torch.equal(state[weight]["exp_avg"], saved[names.index(name)]["exp_avg"])
            assert float(state[weight]["step"]) == 2.0
    assert not any(weight in state for weight in runner.ppo.critic.parameters())
    before = [weight.detach().clone() for weight in runner.student.parameters()]
    runner.ppo._descend(sum(weight.sum() for weight in runner.student.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(before, runner.student.parameters(), strict=True))


def test_a_student_without_an_optimiser_is_refused(tmp_path):
    """There is nothing to take."""
    student = distilled(tmp_path / "s.pt")
    torch.save({"model_state_dict": student.state_dict()}, tmp_path / "bare.pt")
    with pytest.raises(UserError, match="no optimiser state"):
        study.take_moments(runner_of(student), tmp_path / "bare.pt")


def test_ways_differ_by_the_warm_up_alone():
    """The same seed and settings; the critic learns alone in one of them. The last way has other advantages alone."""
    lines = {way: study.tokens(Path("s.pt"), way, 3, 3) for way in study.WAYS}
    assert lines["at once"] == lines["old moments"]
    differing = [(a, b) for a, b in zip(lines["warm-up"], lines["at once"], strict=True) if a != b]
    assert differing == [(str(3 + study.WARMUP), "3"), (str(study.WARMUP), "0")]
    assert lines["short"] == [*lines["warm-up"], *study.SHORT]


def test_differences_are_of_pairs_and_falls_are_counted(tmp_path):
    """Means of 1 and 3 are 2 with a half-width of 1.96; an evaluation at 94 % of the first is below the floor."""
    assert study.mean_and_interval(torch.tensor([1.0, 3.0], dtype=torch.float64)) == pytest.approx([2.0, 1.96])
    run = {
        "evaluations": [[0.0, 100.0], [1.0, 94.0], [2.0, 101.0]],
        "lowest_share_of_start": 0.94,
        "start": [100.0, 1.0],
        "final": [101.0, 1.0],
        "best": [101.0, 1.0],
        "final_less_start": [1.0, 0.2],
        "best_less_start": [1.5, 0.2],
    }
    found = {"at once": [run]}
    references = {"teacher": [102.0, 1.0], "student": [100.0, 1.0]}
    text = study.page(found, references, {"iterations": 60, "episodes": 8}, "finetune")
    assert "| no warm-up | 1 | 94.0 | 1 of 3 | 1.00 |" in text
    assert "| no warm-up | 0 | 100.00 | 101.00 | +1.00 ± 0.20 | +1.50 ± 0.20 |" in text
    study.draw(found, tmp_path / "finetune.png")
    assert (tmp_path / "finetune.png").stat().st_size > 1000
