"""How large a run's dataset is made."""

from __future__ import annotations

import pytest
from toy_env import RegulatorEnv

from foundation.config.distillation_cfg import DistillationCfg
from foundation.data.plan import make_dataset


@pytest.mark.parametrize(("state_size", "window_steps"), [(0, 1), (64, 2), (512, 4)])
def test_what_is_allocated_stays_within_the_memory_budget(state_size, window_steps):
    """The student's memory that is stored with the rows counts too, and the budget is used but for a chunk."""
    cfg = DistillationCfg(n_epochs=10_000)
    cfg.dataset.memory_gb = 0.01
    options = {"mode": "steps", "window_steps": window_steps, "state_size": state_size}
    dataset = make_dataset(cfg, RegulatorEnv(8), 26, {"mean": 4}, **options)
    chunk = dataset.num_bytes / dataset.max_chunks
    assert 1e7 - chunk <= dataset.num_bytes <= 1e7
