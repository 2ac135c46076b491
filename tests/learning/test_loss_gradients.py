"""Every loss moves the student and never the teacher: gradients of whole updates."""

from __future__ import annotations

import pytest
import torch
from toy_env import RegulatorEnv

from foundation.config.distillation_cfg import DistillationCfg, LossCfg
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.dataset.transition import Batch
from foundation.learning.learner import Learner
from foundation.learning.losses import LOSSES
from foundation.learning.objective import RunFacts
from foundation.rollout.collector import collect_episodes
from foundation.students import StudentPolicy

TARGETS = {"mse": (), "kl": ("std",), "nll": (), "value": ("value",), "feature": ("features",)}
"""What the dataset stores of the teacher beside its mean, for losses on what an ordinary teacher gives."""
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


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_collecting_cuts_the_teacher_off(name):
    """Even a teacher whose weights would take gradients gets none: what is stored is its outputs' numbers alone."""
    torch.manual_seed(0)
    teacher, student = (StudentPolicy(2, 2, (8,), stochastic=True, value_head=True) for _ in range(2))
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    sizes = {"mean": 2} | {field: {"std": 2, "value": 1, "features": 8}[field] for field in TARGETS[name]}
    dataset = DistillationDataset(BufferSpec(2, 8, 512, sizes, chunk_steps=16))
    collect_episodes(RegulatorEnv(8), teacher, dataset, 8, student=student)
    assert not dataset.rows.requires_grad
    loss = LossCfg(name) if LOSSES[name].trains_actions else LossCfg("mse", auxiliary={name: 1.0})
    learner = Learner(student, DistillationCfg(loss=loss, batch_size=64), 1)
    obs = torch.randn(4, 2)
    with torch.no_grad():
        learner.prepare(student.step(obs)[0], teacher.step(obs)[0])
    learner.learn(dataset, 128, 0)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in student.parameters())
