"""Whole runs with losses that need more than outputs: several terms, layers, saliency, a mirror, bounded students."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_runs import arguments, run_folder, write_teacher

from foundation.core.errors import UserError
from foundation.rsl_rl import distillation

MIRROR = "distill.augment=foundation.tasks.quadrotor.mirror:left_right"


def run(monkeypatch, tmp_path, *tokens: str) -> dict:
    """Run and return the summary; the exit code must be 0."""
    monkeypatch.chdir(tmp_path)
    teacher = write_teacher(tmp_path / "teacher" / "model_1.pt")
    assert distillation.main(arguments(teacher, *tokens, n_epochs=3, epoch_teacher_forcing=1)) == 0
    return json.loads((run_folder(tmp_path) / "summary.json").read_text())


@pytest.mark.parametrize(
    "tokens",
    [
        (
            "distill.student.value_head=true",
            "distill.loss.auxiliary={value: {weight: {kind: linear, start: 1, end: 0}}, feature: 0.1, attention: 0.1}",
            "distill.loss.layers=[[body.1,actor.1],[body.3,actor.3]]",
        ),
        (MIRROR, "loss=nll_sampled", "distill.student.stochastic=true", "distill.student.distribution=beta"),
        (MIRROR, "student=gru", "distill.dataset.sequence_start=zero"),
    ],
    ids=["terms", "mirror-beta", "mirror-gru"],
)
def test_a_run_with_all_of_it_ends(tokens, monkeypatch, tmp_path):
    """It ends with a student whose weights are finite, and a summary."""
    assert "normalized_score" in run(monkeypatch, tmp_path, *tokens)
    saved = torch.load(run_folder(tmp_path) / "best_student.pt", weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in saved["model_state_dict"].values())


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (("loss=feature",), "loss=feature trains no actions"),
        (("loss=q_mse",), "Loss 'q_mse' compares the values of discrete actions, and these are continuous"),
        (
            ("distill.loss.auxiliary={feature: 0.1}", "distill.loss.layers=[[body.1,actor.11]]"),
            "distill.loss.layers, of the teacher: there is no layer 'actor.11'. Did you mean 'actor.1'",
        ),
        (("loss=kl", "distill.student.stochastic=true", "distill.student.distribution=tanh"), "use loss=nll, mse or"),
        ((MIRROR, "distill.loss.auxiliary={attention: 0.1}"), "cannot mirror what loss 'attention' reads"),
    ],
)
def test_what_does_not_go_together_is_one_line(tokens, words, monkeypatch, tmp_path):
    """Refused before anything is learned."""
    monkeypatch.chdir(tmp_path)
    teacher = write_teacher(tmp_path / "teacher" / "model_1.pt")
    with pytest.raises(UserError) as caught:
        distillation.run(arguments(teacher, *tokens))
    assert words in str(caught.value) and "\n" not in str(caught.value)
