"""On a CUDA device: float16 with scaled gradients, and noisy rollouts that do not wait for the device."""

from __future__ import annotations

import copy

import pytest
import torch
from toy_env import LinearTeacher

from foundation.config.distillation_cfg import CollectionCfg, DistillationCfg, OptimizerCfg
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.learning.learner import Learner
from foundation.policies.output import PolicyOutput
from foundation.rollout.mixture import PolicyMixture
from foundation.students import StudentPolicy

pytestmark = pytest.mark.cuda


def dataset() -> DistillationDataset:
    data = DistillationDataset(BufferSpec(3, 64, 10_000, {"mean": 2}, chunk_steps=8), device="cuda")
    generator = torch.Generator("cuda").manual_seed(0)
    for _ in range(10):
        data.begin_chunk()
        for _step in range(8):
            obs = torch.randn(64, 3, generator=generator, device="cuda")
            data.write(_step, obs, PolicyOutput(obs[:, :2].tanh()), torch.zeros(64, dtype=torch.bool, device="cuda"))
        data.commit_chunk()
    return data


def learner(precision: str) -> Learner:
    torch.manual_seed(0)
    optimizer = OptimizerCfg(precision=precision, updates_per_epoch=100, max_grad_norm=10.0)
    return Learner(StudentPolicy(3, 2).cuda(), DistillationCfg(batch_size=256, learning_rate=1e-2, optimizer=optimizer))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_and_is_restored(precision):
    """The loss falls by an order of magnitude; the saved state holds the scale of the gradients where there is one."""
    made, data = learner(precision), dataset()
    losses = [made.learn(data, 1, epoch).mean_loss for epoch in range(4)]
    assert losses[-1] < losses[0] / 10
    saved = copy.deepcopy(made.state_dict())
    assert ("gradient_scaler" in saved) == (precision == "float16")
    other = learner(precision)
    other.load_state_dict(made.policy.state_dict(), saved)
    assert other.precision.state_dict() == made.precision.state_dict()


def test_a_mixtures_actions_do_not_wait_for_the_device():
    """Policies mixed per step, DART noise, an exploring student and random actions, under torch's own check."""
    cfg = CollectionCfg(beta_per="step", dart_alpha=1.0, epsilon=0.1, noise_std=0.1, student_deterministic=False)
    mixture = PolicyMixture(LinearTeacher(torch.zeros(1, 2)), cfg, 256, 2, device="cuda")
    mixture.fit_noise(torch.randn(100, 2, device="cuda"))
    label = PolicyOutput(torch.zeros(256, 2, device="cuda"))
    student = PolicyOutput(torch.ones(256, 2, device="cuda"), torch.ones(256, 2, device="cuda"))
    mixture.actions(label, student, 0.5)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            mixture.actions(label, student, 0.5)
            mixture.begin_episodes(mixture.everywhere, 0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
