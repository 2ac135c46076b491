"""Whole runs with discrete actions: a teacher with Q-values, as a DQN is, and a student that chooses."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from toy_env import RegulatorEnv, Stateless

from foundation.config.distillation_cfg import DistillationCfg, LossCfg
from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint
from foundation.policies.output import PolicyOutput
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.students import make_student, student_cfg_class
from foundation.teachers import TeacherPolicyWrapper

PUSHES = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])


class ChoosingEnv(RegulatorEnv):
    """The regulator with five pushes to choose from; the action is a push's index."""

    num_actions = 1

    def step(self, actions: torch.Tensor):
        return super().step(PUSHES[actions.squeeze(-1).round().long().clamp(0, 4)])


class QTeacher(Stateless, torch.nn.Module):
    """Q-values that see one step ahead: Q_i = -|s + a_i / 2|^2."""

    num_obs, num_actions = 2, 1

    def __init__(self):
        super().__init__()
        self.pushes = torch.nn.Parameter(PUSHES, requires_grad=False)

    def step(self, obs: torch.Tensor, state: torch.Tensor | None = None) -> tuple[PolicyOutput, None]:
        q = -(obs.unsqueeze(-2) + 0.5 * self.pushes).square().sum(-1)
        return PolicyOutput(q.argmax(-1, keepdim=True).float(), logits=q), None


def run(folder: Path, loss: str, student: str = "mlp", **options) -> dict:
    """Run a distillation and return its summary."""
    cfg = DistillationCfg(
        task="Toy", seed=1, n_epochs=8, epoch_teacher_forcing=2, num_episodes=16, learning_rate=1e-2,
        batch_size=4 if student != "mlp" else 32, sequence_length=4 if student != "mlp" else None, num_eval_episodes=16,
        final_eval_episodes=64, loss=LossCfg(loss, temperature=0.1 if loss == "kl" else 1.0),
    )  # fmt: skip
    cfg.student = student_cfg_class(student)(name=student, **({"num_choices": 5} | options))
    folder.mkdir(exist_ok=True)
    env = ChoosingEnv(8)
    return DistillationRunner(env, QTeacher(), cfg, RunDir(folder), make_eval_env=ChoosingEnv).run()


@pytest.mark.parametrize(("loss", "student"), [("q_mse", "mlp"), ("kl", "mlp"), ("nll", "mlp"), ("q_mse", "gru")])
def test_a_run_distils_q_values(tmp_path, loss, student):
    """With each of Rusu's three losses the student plays as well as its teacher, and teaches in turn."""
    summary = run(tmp_path, loss, student)
    assert summary["return_ratio"] >= 0.95
    teacher = TeacherPolicyWrapper(tmp_path / "best_student.pt")
    obs = torch.rand(4000, 2, generator=torch.Generator().manual_seed(3)) * 2 - 1
    output, expected = teacher.step(obs, teacher.initial_state(4000))[0], QTeacher().step(obs)[0]
    assert torch.equal(output.mean, output.logits.argmax(-1, keepdim=True).float()) and output.std is None
    assert (output.mean == expected.mean).float().mean() > (0.85 if student == "mlp" else 0.7)
    if loss == "q_mse" and student == "mlp":
        assert (output.logits - expected.logits).abs().mean() < 0.2
    assert load_checkpoint(tmp_path / "best_student.pt")["student"]["num_choices"] == 5


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("mse", {}, r"'mse' compares continuous actions.*q_mse"),
        ("q_mse", {"num_choices": None}, r"5 discrete actions.*distill\.student\.num_choices=5"),
        ("q_mse", {"num_choices": 3}, r"5 discrete actions.*3 choices.*num_choices=5"),
        ("q_mse", {"stochastic": True}, r"stochastic=false"),
        ("q_mse", {"num_choices": 1}, r"two choices"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, loss, options, message):
    """A loss of continuous actions, or a student of other choices, is refused with what to set."""
    with pytest.raises(UserError, match=message):
        run(tmp_path, loss, **options)


@pytest.mark.parametrize("name", ["mlp", "gru", "lstm", "history", "tcn"])
def test_students_choose(name):
    """Every kind of student gives as many logits as choices, acts by the largest, and forward agrees with step."""
    torch.manual_seed(0)
    student = make_student(student_cfg_class(name)(name=name, num_choices=6), 7, 1)
    obs = torch.randn(50, 7)
    output = student.step(obs, student.initial_state(50))[0]
    assert output.logits.shape == (50, 6) and output.mean.shape == (50, 1)
    assert torch.equal(output.mean.squeeze(-1), output.logits.argmax(-1).float())
    assert torch.equal(student(obs), output.mean)
    whole = student.sequence(obs.reshape(5, 10, 7), student.initial_state(10), torch.ones(5, 10, dtype=torch.bool))[0]
    assert torch.allclose(whole.logits.reshape(50, 6), output.logits, atol=1e-6)
    assert math.isclose(float(student.num_actions), 1)
