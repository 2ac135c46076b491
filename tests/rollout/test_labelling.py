"""Labels that are made after the rollout are those of step-by-step labelling."""

from __future__ import annotations

import pytest
import torch
from toy_env import ConstantStudent, CountingEnv

from foundation.config.distillation_cfg import CollectionCfg
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout import labelling
from foundation.rollout.collector import Collector
from foundation.students import make_student, student_cfg_class

LENGTHS = [[2, 7, 4], [7, 3, 3], [5, 5, 6], [1, 2, 7]]
POLICY = ObsSelector(["policy"])


@pytest.mark.parametrize("name", ["mlp", "gru", "lstm", "history"])
@pytest.mark.parametrize("block_rows", [1, 12, 10_000])
def test_late_labels_are_those_of_every_step(monkeypatch, name, block_rows):
    """Blocks of 1, 3 and all 8 steps of a chunk: each label is what the teacher, with its memory, says at that step.

    The teacher's memory is carried over blocks, chunks and epochs, forgets where episodes end, and goes on into an
    epoch in which the teacher acts.
    """
    monkeypatch.setattr(labelling, "BLOCK_ROWS", block_rows)
    torch.manual_seed(0)
    teacher = make_student(student_cfg_class(name)(), 3, 2).requires_grad_(False)
    env = CountingEnv(LENGTHS, 7)
    dataset = DistillationDataset(BufferSpec(3, env.num_envs, 10_000, {"mean": 2}, chunk_steps=8))
    student, cfg = ConstantStudent(3, [-1.0, -1.0]), CollectionCfg(staggered=False)
    collector = Collector(env, teacher, student, dataset, POLICY, POLICY, cfg, num_episodes=9, label_bound=0.3)
    for epoch, beta in enumerate((0.0, 0.0, 1.0, 0.0)):
        collector.collect(epoch, beta)
    chunks = dataset.rows[: dataset.num_chunks]
    stored = chunks.reshape(-1, env.num_envs, chunks.shape[-1])
    resets = dataset.resets[: dataset.num_chunks].reshape(-1, env.num_envs)
    state, expected = teacher.initial_state(env.num_envs), []
    for obs, begins in zip(stored[..., :3], resets, strict=True):
        output, state = teacher.step(obs, teacher.reset_state(state, begins))
        expected.append(output.mean.clamp(-0.3, 0.3))
    torch.testing.assert_close(stored[..., 3:], torch.stack(expected), atol=1e-6, rtol=0)
    assert resets[1:].any() and len(stored) >= 32
