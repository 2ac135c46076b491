"""A dataset whose teacher is linear in the observation."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.policies.output import PolicyOutput

GAIN = torch.tensor([[1.0, 0.5], [-0.5, 0.25], [0.0, -1.0]])


def filled(
    chunks: int = 4, window: int = 1, value: bool = False, seed: int = 0, begins: Sequence[int] = ()
) -> DistillationDataset:
    """Chunks of 64 transitions: 3 observations, 2 actions of deviation 0.3, perhaps a value.

    ``begins`` are the chunks with which an epoch begins.
    """
    targets = {"mean": 2, "std": 2} | ({"value": 1} if value else {})
    dataset = DistillationDataset(BufferSpec(3, 8, 10_000, targets, chunk_steps=8, sequence_length=window), seed=seed)
    generator = torch.Generator().manual_seed(1)
    for chunk in range(chunks):
        if chunk in begins:
            dataset.begin_epoch()
        dataset.begin_chunk()
        for step in range(8):
            obs = torch.randn(8, 3, generator=generator)
            target = PolicyOutput(obs @ GAIN, torch.full((8, 2), 0.3), obs.sum(-1, keepdim=True))
            dataset.write(step, obs, target, torch.full((8,), step == 0))
        dataset.commit_chunk()
    return dataset
