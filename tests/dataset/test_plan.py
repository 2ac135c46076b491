"""How large a run's dataset is made."""

from __future__ import annotations

import pytest
from toy_env import RegulatorEnv

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.dataset.build import make_dataset
from foundation.dataset.prefetch import Prefetcher


@pytest.mark.parametrize(("state_size", "window_steps"), [(0, 1), (64, 2), (512, 4)])
def test_what_is_allocated_stays_within_the_memory_budget(state_size, window_steps):
    """The student's memory that is stored with the rows counts too, and the budget is used but for a chunk."""
    cfg = DistillationCfg(n_epochs=10_000)
    cfg.dataset.memory_gb = 0.01
    options = {"mode": "steps", "window_steps": window_steps, "state_size": state_size}
    dataset = make_dataset(cfg, RegulatorEnv(8), 26, {"mean": 4}, **options)
    chunk = dataset.num_bytes / dataset.max_chunks
    assert 1e7 - chunk <= dataset.num_bytes <= 1e7


@pytest.mark.parametrize("device", [None, "auto", "cpu", "cpu:0"])
def test_rows_on_the_device_that_computes_are_not_fetched_ahead(device):
    """However that device is written, a minibatch that is there already is not copied."""
    cfg = DistillationCfg(n_epochs=1)
    cfg.dataset.device = device
    options = {"mode": "steps", "window_steps": 1, "state_size": 0}
    dataset = make_dataset(cfg, RegulatorEnv(8), 2, {"mean": 2}, **options)
    assert dataset.device == dataset.compute_device
    dataset.begin_chunk()
    dataset.commit_chunk()
    assert not isinstance(dataset.flat_minibatches(4, 2), Prefetcher)


def test_a_device_that_is_not_there_is_one_line():
    """Named as it was typed."""
    cfg = DistillationCfg(n_epochs=1)
    cfg.dataset.device = "cuda:77"
    with pytest.raises(UserError, match="cannot be on 'cuda:77' here"):
        make_dataset(cfg, RegulatorEnv(8), 2, {"mean": 2}, mode="steps", window_steps=1, state_size=0)
