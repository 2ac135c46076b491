"""Every loss moves the student and never the teacher: gradients of whole updates."""

from __future__ import annotations

import pytest
import torch

from foundation.config.distillation_cfg import DistillationCfg, LossCfg
from foundation.dataset.transition import Batch
from foundation.learning.learner import Learner
from foundation.learning.losses import LOSSES
from foundation.learning.objective import RunFacts
from foundation.students import StudentPolicy

DISCRETE = ("q_mse", "advantage_mse", "soft_cross_entropy")


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_gradient_reaches_the_student_and_never_the_teacher(name):
    """Targets of a frozen teacher, as in a run: after backward its weights have no gradient, the student's have."""
    torch.manual_seed(0)
    choices = 3 if name in DISCRETE else None
    teacher = StudentPolicy(3, 1, (8,), stochastic=choices is None, value_head=True, num_choices=choices)
    student = StudentPolicy(3, 1, (8,), stochastic=choices is None, value_head=True, num_choices=choices)
    alone = LOSSES[name].trains_actions
    loss = LossCfg(name) if alone else LossCfg("mse", auxiliary={name: 1.0})
    learner = Learner(student, DistillationCfg(loss=loss), 1)
    obs = torch.randn(16, 3)
    teacher.requires_grad_(False)  # as every teacher that is read
    target = teacher.step(obs)[0]._replace(saliency=torch.rand(16, 3))
    if name == "predict":
        target = target._replace(estimate=torch.rand(16, 2))
    learner.prepare(student.step(obs)[0], target, RunFacts(shared_columns=torch.arange(3)))
    values = learner.losses(Batch(obs, target), learner.objective.loss_params(0))
    values[-1].backward()
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
