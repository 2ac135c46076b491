"""Every loss moves the student and never the teacher: gradients of what is collected and learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from toy_env import RegulatorEnv

from foundation.config.distillation_cfg import DistillationCfg, LossCfg
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.learning.learner import Learner
from foundation.learning.losses import LOSSES
from foundation.learning.objective import RunFacts
from foundation.learning.saliency import SalientTeacher
from foundation.policies.actors import Policy
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.collector import Collector
from foundation.students import StudentPolicy

DISCRETE = ("q_mse", "advantage_mse", "soft_cross_entropy")
SIZES = {"mean": 2, "std": 2, "value": 1, "features": 8, "saliency": 2, "estimate": 3}
"""Of a continuous teacher's outputs, and of the group that loss ``predict`` predicts."""


class ChoosingEnv(RegulatorEnv):
    """The regulator, pushed along both axes by -1, 0 or 1."""

    num_actions = 1

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        return super().step((actions - 1.0).expand(-1, 2))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_gradient_reaches_the_student_and_never_the_teacher(name):
    """The teacher's weights would take gradients, and get none; the loss alone gives the student's some."""
    torch.manual_seed(0)
    discrete = name in DISCRETE
    env = ChoosingEnv(8) if discrete else RegulatorEnv(8)
    choices = 3 if discrete else None
    teacher, student = (
        StudentPolicy(2, env.num_actions, (8,), stochastic=not discrete, value_head=True, num_choices=choices)
        for _ in range(2)
    )
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    assert all(parameter.requires_grad for parameter in teacher.parameters())
    loss = LossCfg(name) if LOSSES[name].trains_actions else LossCfg("mse", auxiliary={name: 1.0})
    learner = Learner(student, DistillationCfg(loss=loss, batch_size=64), 1)
    columns = torch.arange(2)
    labelling: Policy = SalientTeacher(teacher, columns) if name == "attention" else teacher
    sizes = (
        {"mean": 1, "logits": 3} if discrete else {"mean": 2} | {field: SIZES[field] for field in LOSSES[name].teacher}
    )
    dataset = DistillationDataset(BufferSpec(2, 8, 512, sizes, chunk_steps=16))
    selector = ObsSelector(["policy"])
    predicted = "privileged" if name == "predict" else None
    collector = Collector(
        env,
        labelling,
        student,
        dataset,
        selector,
        selector,
        mode="episodes",
        num_episodes=8,
        seed=0,
        predicted=predicted,
    )
    collector.collect(0, 1.0)
    obs = torch.randn(4, 2)
    target = labelling.step(obs, None)[0]
    if predicted is not None:
        target = target._replace(estimate=torch.randn(4, 3))
    with torch.no_grad():
        learner.prepare(student.step(obs)[0], target, RunFacts(shared_columns=columns))
    [batch] = dataset.flat_minibatches(64, 1, True)
    learner.losses(batch, learner.objective.loss_params(0))[-1].backward()
    assert any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in student.parameters())
    learner.learn(dataset, 128, 0)
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
