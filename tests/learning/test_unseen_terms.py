"""Errors on transitions that were collected and not yet learned from."""

from __future__ import annotations

import copy

import pytest
import torch

from foundation.config.distillation_cfg import DistillationCfg, LossCfg
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.learning.held_out import unseen_terms
from foundation.learning.learner import Learner
from foundation.policies.output import PolicyOutput
from foundation.students import StudentPolicy


def write_chunk(dataset: DistillationDataset, obs: torch.Tensor) -> int:
    """Write the chunk of some observations, shape (num_steps, num_envs, 2): mean 3 x, value 500 + 40 x_0, std 0.1."""
    slot = dataset.begin_chunk()
    for step, own in enumerate(obs):
        target = PolicyOutput(3.0 * own, torch.full_like(own, 0.1), 500.0 + 40.0 * own[:, :1])
        dataset.write(step, own, target, torch.zeros(len(own), dtype=torch.bool))
    dataset.commit_chunk()
    return slot


def make(loss: LossCfg, window: int = 1) -> tuple[Learner, DistillationDataset]:
    torch.manual_seed(0)
    student = StudentPolicy(2, 2, hidden_dims=(16,), value_head=True, stochastic=loss.name == "nll")
    learner = Learner(student, DistillationCfg(batch_size=32, learning_rate=1e-2, loss=loss), window)
    targets = {"mean": 2, "std": 2, "value": 1}
    dataset = DistillationDataset(BufferSpec(2, 8, 4096, targets, chunk_steps=8, sequence_length=window), seed=0)
    return learner, dataset


@pytest.mark.parametrize("window", [1, 4])
def test_the_error_is_that_of_the_new_chunks_alone(window):
    """By hand: the student's own outputs against the targets of the second chunk, the value by the spread of both."""
    learner, dataset = make(LossCfg("mse", auxiliary={"value": 1.0}), window)
    obs = torch.randn(2, 8, 8, 2, generator=torch.Generator().manual_seed(1))
    write_chunk(dataset, obs[0])
    new = write_chunk(dataset, obs[1])
    found = unseen_terms(learner, dataset, [new], 0)
    output = learner.student.step(obs[1])[0]
    spread = 40.0 * obs[..., 0].std(correction=0)
    assert output.value is not None
    value = ((output.value - 500.0 - 40.0 * obs[1][..., :1]) / spread).square().mean()
    assert found["mse"] == pytest.approx((output.mean - 3.0 * obs[1]).square().mean().item(), rel=1e-4)
    assert found["value"] == pytest.approx(value.item(), rel=1e-3)
    assert 0.3 < found["value"] < 5.0  # an untrained head predicts about the mean: an error of one spread


def test_measuring_changes_nothing_that_is_learned():
    """With labels that are drawn: the run's generator, the minibatches and the weights are those without it."""
    finals = []
    for measured in (False, True):
        learner, dataset = make(LossCfg("nll", labels="sampled", auxiliary={"value": 1.0}))
        obs = torch.randn(3, 8, 8, 2, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(3)
        for epoch, own in enumerate(obs):
            new = write_chunk(dataset, own)
            if measured:
                assert set(unseen_terms(learner, dataset, [new], epoch)) == {"nll", "value"}
            learner.learn(dataset, 64, epoch)
        finals.append(copy.deepcopy(learner.student.state_dict()))
    assert all(torch.equal(tensor, finals[1][name]) for name, tensor in finals[0].items())


def test_errors_on_unseen_transitions_fall_as_the_student_learns():
    """Actions and values of states that come only afterwards: five times smaller after some epochs."""
    learner, dataset = make(LossCfg("mse", auxiliary={"value": 1.0}))
    generator = torch.Generator().manual_seed(1)
    errors = []
    for epoch in range(20):
        new = write_chunk(dataset, torch.randn(8, 8, 2, generator=generator))
        errors.append(unseen_terms(learner, dataset, [new], epoch))
        learner.learn(dataset, 640, epoch)
    assert all(errors[-1][name] < errors[0][name] / 5.0 for name in ("mse", "value"))
