"""How large a run's dataset has to be, decided and refused before anything is allocated."""

from __future__ import annotations

import math
from typing import Any

from foundation.config.distillation_cfg import DistillationCfg
from foundation.data.dataset import DTYPES, DistillationDataset
from foundation.errors import UserError

SHORT_CHUNK = 32
"""Env steps per chunk [env steps] where no training sequence asks for more."""


def make_dataset(
    cfg: DistillationCfg,
    env: Any,
    num_obs: int,
    targets: dict[str, int],
    *,
    mode: str,
    window_steps: int,
    state_size: int,
    num_teachers: int = 1,
) -> DistillationDataset:
    """Build the dataset of a run.

    Args:
        cfg: The run's configuration.
        env: The environment to collect in.
        num_obs: Columns of the student's observation.
        targets: Size of each target to store.
        mode: How an epoch collects: ``steps`` or ``episodes``.
        window_steps: Steps of a training sequence.
        state_size: Size of the student's memory.
        num_teachers: With more than one, each row keeps its teacher's index.

    Returns:
        A dataset with room for what the run can collect, or for what the memory budget holds.

    Raises:
        UserError: If ``dataset.size`` does not fit the budget, or the budget not the machine.
    """
    # A chunk holds whole training sequences.
    chunk_steps = window_steps * math.ceil((cfg.dataset.chunk_steps or SHORT_CHUNK) / window_steps)
    row_bytes = (num_obs + sum(targets.values())) * DTYPES[cfg.dataset.dtype].itemsize + 1 + 4 * (num_teachers > 1)
    budget_rows = int(cfg.dataset.memory_gb * 1e9 // row_bytes)
    if cfg.dataset.size is not None and cfg.dataset.size > budget_rows:
        raise UserError(
            f"dataset.size={cfg.dataset.size} rows take {cfg.dataset.size * row_bytes / 1e9:.2f} GB, more than "
            f"dataset.memory_gb={cfg.dataset.memory_gb:g}: lower dataset.size, raise dataset.memory_gb, or set "
            "dataset.dtype=float16."
        )
    wanted = cfg.dataset.size or most_rows(cfg, env, mode, chunk_steps)
    return DistillationDataset(
        num_obs,
        env.num_envs,
        min(wanted, budget_rows),
        targets,
        chunk_steps=chunk_steps,
        window_steps=window_steps,
        state_size=state_size if window_steps > 1 and cfg.dataset.sequence_start == "stored" else 0,
        num_teachers=num_teachers,
        device=cfg.dataset.device or env.device,
        dtype=cfg.dataset.dtype,
        eviction=cfg.dataset.eviction,
        seed=cfg.seed,
    )


def most_rows(cfg: DistillationCfg, env: Any, mode: str, chunk_steps: int) -> int:
    """Return how many rows a run can collect, if every episode is as long as can be."""
    longest = int(env.max_episode_length) + 1
    if mode == "episodes":
        steps = math.ceil(cfg.num_episodes / env.num_envs) * longest
    else:
        steps = math.ceil(cfg.num_episodes * longest / env.num_envs)
    chunks = math.ceil(steps / chunk_steps) + 1
    epochs = 1 if cfg.on_policy else cfg.n_epochs
    return epochs * chunks * chunk_steps * env.num_envs
