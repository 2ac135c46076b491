"""Bounded students from their checkpoint on: read as teachers, refused where a Gaussian is needed."""

from __future__ import annotations

import pytest
import torch

from foundation.checkpoints.initialise import initialise_student
from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save
from foundation.export.rsl_rl import write_rsl_rl
from foundation.learning.losses import LossParams, loss_spec
from foundation.ppo.actor import fresh_actor, load_start
from foundation.students import StudentPolicy
from foundation.students.mlp import MLPStudentCfg
from foundation.teachers import TeacherPolicyWrapper


def saved(tmp_path, kind):
    """Write the checkpoint of an untrained student and return both."""
    torch.manual_seed(0)
    student = StudentPolicy(5, 2, hidden_dims=(8,), stochastic=True, distribution=kind)
    file = tmp_path / f"{kind}.pt"
    values = {"student": student.describe(), "model_state_dict": student.state_dict(), "obs_groups": ["policy"]}
    atomic_torch_save(values, file)
    return student, file


@pytest.mark.parametrize("kind", ["tanh", "beta"])
def test_a_bounded_student_teaches_with_its_own_distribution(kind, tmp_path):
    """Read back as a teacher it gives the same actions and distribution, so that kl has its closed form."""
    student, file = saved(tmp_path, kind)
    teacher = TeacherPolicyWrapper(file)
    assert teacher.info.distribution == kind and teacher.info.action_shape == "tanh"
    obs = torch.randn(6, 5)
    own, read = student.step(obs)[0], teacher.step(obs)[0]
    assert torch.equal(own.mean, read.mean) and bool((read.mean.abs() < 1.0).all())
    assert torch.allclose(loss_spec("kl").function(own, read, LossParams()), torch.zeros(6), atol=1e-6)


@pytest.mark.parametrize("kind", ["tanh", "beta"])
def test_what_needs_a_gaussian_refuses_a_bounded_student(kind, tmp_path):
    """RSL-RL's checkpoints, PPO on a Beta, a Gaussian student's start weights: one line each with the distribution."""
    student, file = saved(tmp_path, kind)
    with pytest.raises(UserError, match=f"distribution={kind}"):
        write_rsl_rl(student, tmp_path / "model.pt")
    if kind == "tanh":  # the density of its draws is known: PPO takes it
        assert load_start(str(file)).student.describe()["distribution"] == "tanh"
        assert fresh_actor(MLPStudentCfg(distribution="tanh"), 5, 2).describe()["distribution"] == "tanh"
    else:
        with pytest.raises(UserError, match=r"distribution=beta; fine-tuning needs student\.distribution=gaussian"):
            load_start(str(file))
        with pytest.raises(UserError, match="distribution=beta; fine-tuning needs"):
            fresh_actor(MLPStudentCfg(distribution="beta"), 5, 2)
    plain = StudentPolicy(5, 2, hidden_dims=(8,), stochastic=True)
    with pytest.raises(UserError, match=f"has distribution={kind} and the student gaussian: set distill.student"):
        initialise_student(plain, file)
