"""Students that start from a checkpoint."""

from __future__ import annotations

import pytest
import torch

from foundation.checkpoints.initialise import initialise_student
from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save
from foundation.export.rsl_rl import write_rsl_rl
from foundation.students import StudentPolicy, make_student, student_cfg_class
from foundation.teachers import TeacherPolicyWrapper


def fitted(student):
    """Return the student with a fitted normaliser."""
    student.normalizer.update(torch.randn(300, student.num_obs) * 3 + 1)
    return student


def gru(**options):
    """Return a GRU student of RSL-RL's shape."""
    cfg = student_cfg_class("gru")(encoder_dims=[], hidden_dims=[8], hidden_size=6, activation="elu", **options)
    return make_student(cfg, 9, 3)


@pytest.mark.parametrize("layout", ["3", "5"])
@pytest.mark.parametrize("make", [lambda: StudentPolicy(9, 3, (16, 8), stochastic=True), lambda: gru(stochastic=True)])
def test_from_rsl_rl(layout, make, tmp_path):
    """Started from an RSL-RL checkpoint, a student acts as that policy does, deviation and normaliser included."""
    write_rsl_rl(fitted(make()), tmp_path / "model_0.pt", layout)
    student = make()
    initialise_student(student, tmp_path / "model_0.pt")
    teacher = TeacherPolicyWrapper(tmp_path / "model_0.pt")
    state = student.initial_state(5)
    for _ in range(4):
        obs = torch.randn(5, 9) * 2
        own, state = student.step(obs, state)
        output = teacher.output(obs)
        assert torch.allclose(own.mean, output.mean, atol=1e-6) and torch.allclose(own.std, output.std, atol=1e-6)
    assert student.normalizer.count == 300 and all(p.requires_grad for p in student.parameters())


def test_from_a_student_with_other_heads(tmp_path):
    """From a student of ours everything is copied; a head that the file lacks keeps its start values."""
    first = fitted(StudentPolicy(9, 3))
    saved = {"model_state_dict": first.state_dict(), "student": first.describe()}
    atomic_torch_save(saved, tmp_path / "s.pt")
    second = StudentPolicy(9, 3, stochastic=True, value_head=True, init_std=0.3)
    initialise_student(second, tmp_path / "s.pt")
    obs = torch.randn(4, 9)
    assert torch.equal(second(obs), first(obs))
    assert torch.allclose(second.step(obs)[0].std, torch.tensor(0.3))


@pytest.mark.parametrize("ours", [True, False])
def test_a_deeper_network_is_not_cut_off(ours, tmp_path):
    """Equal layers fit one by one, but a student with fewer of them would act otherwise than the file."""
    deep, path = StudentPolicy(9, 3, (8, 8, 8)), tmp_path / "model_0.pt"
    if ours:
        atomic_torch_save({"model_state_dict": deep.state_dict(), "student": deep.describe()}, path)
    else:
        write_rsl_rl(deep, path)
    with pytest.raises(UserError, match=r"'body.4.bias' must have shape nothing and the file has \[8\]"):
        initialise_student(StudentPolicy(9, 3, (8, 8)), path)


def test_what_does_not_fit_is_refused(tmp_path):
    """Other sizes, another activation and another kind of network are refused, and the student stays as it was."""
    write_rsl_rl(fitted(StudentPolicy(9, 3, (16, 8))), tmp_path / "model_0.pt")
    for student, words in (
        (StudentPolicy(8, 3, (16, 8)), "num_obs=9 and the student 8"),
        (StudentPolicy(9, 2, (16, 8)), "num_actions=3"),
        (StudentPolicy(9, 3, (16, 9)), r"\[9, 16\].*\[8, 16\]"),
        (StudentPolicy(9, 3, (16,)), "does not fit"),
        (StudentPolicy(9, 3, (16, 8, 8)), "does not fit"),
        (StudentPolicy(9, 3, (16, 8), "tanh"), "elu activations and the student tanh"),
        (gru(), "dense layers only"),
    ):
        before = {key: value.clone() for key, value in student.state_dict().items()}
        with pytest.raises(UserError, match=words):
            initialise_student(student, tmp_path / "model_0.pt")
        assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())
