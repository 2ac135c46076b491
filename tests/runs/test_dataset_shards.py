"""The dataset of a run on disk, read by as many processes as wrote it, or by others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from foundation.core.distributed import Ranks
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.policies.output import PolicyOutput
from foundation.runs.dataset_shards import DatasetShards
from foundation.runs.run_dir import RunDir

EPOCHS = [1, 2, 1, 1]
"""Chunks that each of two processes writes in an epoch."""


def empty() -> DistillationDataset:
    return DistillationDataset(BufferSpec(1, 2, 64, {"mean": 1}, chunk_steps=1))


def write(folder: Path, rank: int) -> DatasetShards:
    """Write chunks whose observations are the number of their epoch."""
    dataset = empty()
    shards = DatasetShards(dataset, RunDir(folder), 1.0, ranks=Ranks(rank, 2))
    for epoch, chunks in enumerate(EPOCHS):
        dataset.begin_epoch()
        slots = []
        for _ in range(chunks):
            slots.append(dataset.begin_chunk())
            values = torch.full((2, 1), float(epoch))
            dataset.write(0, values, PolicyOutput(values), torch.zeros(2, dtype=torch.bool))
            dataset.commit_chunk()
        shards.append(epoch, slots)
    return shards


def drawn(dataset: DistillationDataset, newest: int) -> Counter[float]:
    """Return how often each epoch's observations are in one pass over the newest ones."""
    dataset.draw_newest(newest)
    [batch] = dataset.flat_minibatches(dataset._num_drawn() * 2, 1)
    return Counter(batch.obs.flatten().tolist())


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_the_newest_epochs_are_the_same_for_another_number_of_processes(tmp_path: Path, world_size: int) -> None:
    """Together the processes draw those epochs' transitions and no others; an epoch of which one has none counts."""
    states = [write(tmp_path, rank).state_dict() for rank in range(2)]
    found = {newest: Counter() for newest in (1, 2, 3, 9)}
    for rank in range(world_size):
        dataset = empty()
        shards = DatasetShards(dataset, RunDir(tmp_path), 1.0, ranks=Ranks(rank, world_size))
        assert shards.redistribute(states, len(EPOCHS))
        for newest, values in found.items():
            own = drawn(dataset, newest) if newest > 2 or world_size < 3 else Counter()
            values.update(own)
            assert all(value >= len(EPOCHS) - newest for value in own)
    assert found[9] == Counter({float(epoch): 4 * chunks for epoch, chunks in enumerate(EPOCHS)})
    assert found[3] == Counter({float(epoch): 4 * EPOCHS[epoch] for epoch in (1, 2, 3)})
    if world_size < 3:
        assert found[1] == Counter({3.0: 4}) and found[2] == Counter({2.0: 4, 3.0: 4})
