"""How large a run's dataset is made."""

from __future__ import annotations

import pytest
import torch

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.dataset.build import CollectedData, build_dataset
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.prefetch import Prefetcher
from foundation.policies.obs_groups import ObsSelector


def built(cfg: DistillationCfg, num_obs: int, num_actions: int, **options) -> DistillationDataset:
    """Build the dataset of a run with eight environments and episodes of twelve steps."""
    obs, device = ObsSelector(["policy"]), torch.device("cpu")
    return build_dataset(cfg, CollectedData(obs, num_obs, {"mean": num_actions}, 8, 12, device, **options))[0]


@pytest.mark.parametrize(("state_size", "sequence_length"), [(0, 1), (64, 2), (512, 4)])
def test_what_is_allocated_stays_within_the_memory_budget(state_size, sequence_length):
    """The student's memory that is stored with the rows counts too, and the budget is used but for a chunk."""
    cfg = DistillationCfg(n_epochs=10_000)
    cfg.dataset.memory_gb = 0.01
    memory = torch.zeros(1, state_size) if state_size else None
    dataset = built(cfg, 26, 4, sequence_length=sequence_length, initial_state=memory)
    chunk = dataset.num_bytes / dataset.max_chunks
    assert 1e7 - chunk <= dataset.num_bytes <= 1e7


@pytest.mark.parametrize("device", [None, "auto", "cpu", "cpu:0"])
def test_rows_on_the_device_that_computes_are_not_fetched_ahead(device):
    """However that device is written, a minibatch that is there already is not copied."""
    cfg = DistillationCfg(n_epochs=1)
    cfg.dataset.device = device
    dataset = built(cfg, 2, 2)
    assert dataset.device == dataset.compute_device
    dataset.begin_chunk()
    dataset.commit_chunk()
    assert not isinstance(dataset.flat_minibatches(4, 2), Prefetcher)


def test_a_device_that_is_not_there_is_one_line():
    """Named as it was typed."""
    cfg = DistillationCfg(n_epochs=1)
    cfg.dataset.device = "cuda:77"
    with pytest.raises(UserError, match="cannot be on 'cuda:77' here"):
        built(cfg, 2, 2)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [("size", 3, "size=3"), ("memory_gb", 1e-6, "memory_gb=1e-06"), ("size", 256, None), ("memory_gb", 1.0, None)],
)
def test_less_room_than_a_chunk_is_said_with_the_room_that_there_is(setting, value, said, caplog):
    """A chunk is 32 steps in each of eight environments, 256 transitions: no dataset is smaller."""
    cfg = DistillationCfg(n_epochs=1)
    setattr(cfg.dataset, setting, value)
    with caplog.at_level("WARNING", logger="foundation.dataset.build"):
        dataset = built(cfg, 2, 2)
    assert dataset.capacity >= 256
    expected = (
        f"distill.dataset.{said} is less than a chunk, 32 env steps in 8 environments: the dataset has room for 256"
    )
    assert (expected in caplog.text) == (said is not None)
    assert bool(caplog.records) == (said is not None)
