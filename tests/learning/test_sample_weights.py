"""Weights by the action gap and by the teacher's advantage, worked by hand, and what they do to a minibatch."""

from __future__ import annotations

import math

import pytest
import torch

from foundation.config.distillation_cfg import DistillationCfg, LossCfg
from foundation.core.errors import UserError
from foundation.dataset.transition import Batch
from foundation.learning.learner import Learner
from foundation.learning.sample_weights import action_gap_weights, advantage_weights
from foundation.policies.output import PolicyOutput
from foundation.students import StudentPolicy

Q_VALUES = torch.tensor([[5.0, 3.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
"""Gaps 2 and 0, of standard deviation 1; advantages 5 and 1."""


def test_the_action_gap_counts_by_its_softmax():
    """Gaps 2 and 0 at temperature 1: weights 2 e^2 / (e^2 + 1) and 2 / (e^2 + 1); a high temperature evens them out."""
    expected = [2.0 * math.exp(2.0) / (math.exp(2.0) + 1.0), 2.0 / (math.exp(2.0) + 1.0)]
    assert action_gap_weights(Q_VALUES, 1.0).tolist() == pytest.approx(expected, abs=1e-9)
    assert action_gap_weights(Q_VALUES, 1e6).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_a_gap_far_beyond_the_others_does_not_have_all_the_weight():
    """One of 256 gaps is 100 times the others, 16 standard deviations: it counts as 3, e^3 times as much at most."""
    q_values = torch.zeros(256, 2, dtype=torch.float64)
    q_values[:, 0] = 0.1 * torch.rand(256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q_values[7, 0] = 10.0
    weights = action_gap_weights(q_values, 1.0)
    assert weights.mean().item() == pytest.approx(1.0)
    others = torch.cat([weights[:7], weights[8:]])
    assert 0.9 * math.exp(3.0) < weights[7] / others.mean() < 1.2 * math.exp(3.0)
    assert weights.sum() ** 2 / weights.square().sum() > 100  # samples that count, of 256


def test_the_advantage_is_what_the_worst_choice_costs():
    """5 and 1 with mean 3: weights 5/3 and 1/3, in any unit of the Q-values, and of sequences too."""
    assert advantage_weights(Q_VALUES).tolist() == pytest.approx([5.0 / 3.0, 1.0 / 3.0])
    assert advantage_weights(100.0 * Q_VALUES.unsqueeze(0)).tolist()[0] == pytest.approx([5.0 / 3.0, 1.0 / 3.0])


@pytest.mark.parametrize("kind", ["action_gap", "advantage"])
def test_states_that_matter_more_count_more_in_the_loss(kind):
    """The loss of a minibatch is the weighted mean of its samples' losses; the dataset's own weights count as well."""
    cfg = DistillationCfg(loss=LossCfg("q_mse", sample_weights=kind))
    learner = Learner(StudentPolicy(2, 1, num_choices=3), cfg, 1)
    obs = torch.randn(2, 2)
    batch = Batch(obs, PolicyOutput(torch.zeros(2, 1), logits=Q_VALUES.float()), torch.tensor([1.0, 0.5]))
    [found] = learner.losses(batch, learner.objective.loss_params(0))
    own = action_gap_weights(Q_VALUES, 1.0) if kind == "action_gap" else advantage_weights(Q_VALUES)
    weights = own * torch.tensor([1.0, 0.5])
    errors = (learner.student.step(obs)[0].logits - Q_VALUES).square().mean(-1)
    assert found.item() == pytest.approx(((weights * errors).sum() / weights.sum()).item(), rel=1e-5)


def test_a_teacher_without_q_values_is_refused():
    """One line that says what to unset."""
    cfg = DistillationCfg(loss=LossCfg(sample_weights="action_gap"))
    learner = Learner(StudentPolicy(2, 1), cfg, 1)
    with pytest.raises(UserError, match=r"sample_weights=action_gap needs a teacher with values of discrete actions"):
        learner.prepare(learner.student.step(torch.zeros(1, 2))[0], PolicyOutput(torch.zeros(1, 1)))
