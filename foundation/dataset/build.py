"""Build the dataset of a run: its size, the transitions that it begins with (``--dataset``), the folder to save to."""

from __future__ import annotations

import logging
import math
from typing import Any

import torch

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import DTYPES, DistillationDataset
from foundation.dataset.disk.format import DatasetLayout
from foundation.dataset.disk.load import check_targets, chunks_of, fill
from foundation.dataset.disk.reader import SavedDataset
from foundation.dataset.disk.writer import DatasetWriter
from foundation.dataset.episode_log import ChunkRecorder
from foundation.dataset.episodes import EpisodeTable, is_filtering, weigh
from foundation.dataset.memory import free_memory
from foundation.dataset.transition import dtype_name
from foundation.policies.obs_groups import ObsSelector

logger = logging.getLogger(__name__)

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
    saved: SavedDataset | None = None,
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
        saved: The rows that the run begins with.

    Returns:
        A dataset with room for what the run can collect, or for what the memory budget holds.

    Raises:
        UserError: If ``dataset.size`` does not fit the budget, or the budget not the machine.
    """
    chunk_steps = whole_windows(
        cfg.dataset.chunk_steps or (saved.layout.chunk_steps if saved else SHORT_CHUNK), window_steps
    )
    rows_to_load, fills_up = 0, False
    if saved is not None:
        chunks, fills_up = chunks_of(saved, chunk_steps, env.num_envs)
        rows_to_load = chunks * chunk_steps * env.num_envs
    filtering = is_filtering(cfg.dataset.filter)
    weighted = filtering or fills_up or (saved is not None and saved.layout.weighted)
    tracking = weighted or cfg.dataset.save is not None
    extras = (num_teachers > 1) + weighted + tracking
    stored_state = state_size if window_steps > 1 and cfg.dataset.sequence_start == "stored" else 0
    row_bytes = (num_obs + sum(targets.values())) * DTYPES[cfg.dataset.dtype].itemsize + 1 + 4 * extras
    row_bytes += 4 * stored_state / window_steps
    budget_rows = int(cfg.dataset.memory_gb * 1e9 // row_bytes)
    if cfg.dataset.size is not None and cfg.dataset.size > budget_rows:
        raise UserError(
            f"dataset.size={cfg.dataset.size} rows take {cfg.dataset.size * row_bytes / 1e9:.2f} GB, more than "
            f"dataset.memory_gb={cfg.dataset.memory_gb:g}: lower dataset.size, raise dataset.memory_gb, or set "
            "dataset.dtype=float16."
        )
    wanted = cfg.dataset.size or most_rows(cfg, env, mode, chunk_steps) + rows_to_load
    capacity = min(wanted, budget_rows)
    if rows_to_load > capacity:
        logger.warning(
            "The dataset has room for %d rows and --dataset holds %d: of those some make room for others "
            "(dataset.memory_gb or dataset.size asks for more).",
            capacity,
            rows_to_load,
        )
    return DistillationDataset(
        num_obs,
        env.num_envs,
        capacity,
        targets,
        chunk_steps=chunk_steps,
        window_steps=window_steps,
        state_size=stored_state,
        num_teachers=num_teachers,
        device=storage_device(cfg.dataset.device, capacity * row_bytes, torch.device(env.device)),
        compute_device=env.device,
        track_episodes=tracking,
        weighted=weighted,
        dtype=cfg.dataset.dtype,
        eviction=cfg.dataset.eviction,
        seed=cfg.seed,
    )


def whole_windows(chunk_steps: int, window_steps: int) -> int:
    """Round the steps of a chunk up to whole training sequences."""
    return window_steps * math.ceil(chunk_steps / window_steps)


def storage_device(asked: str | None, num_bytes: float, compute_device: torch.device) -> torch.device | str:
    """Return the device for the rows: the one that is asked for; None or ``auto`` leave it to :func:`where_it_fits`."""
    return where_it_fits(num_bytes, compute_device) if asked in (None, "auto") else asked


def where_it_fits(num_bytes: float, device: torch.device) -> torch.device:
    """Return the device for a storage: the one that computes, or the host where that has too little memory."""
    if device.type == "cuda" and num_bytes > free_memory(device):
        logger.info("The dataset (%.1f GB) does not fit %s: it is kept in host memory.", num_bytes / 1e9, device)
        return torch.device("cpu")
    return device


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


def open_saved(
    cfg: DistillationCfg, student_obs: ObsSelector, targets: dict[str, int], num_teachers: int = 1
) -> SavedDataset | None:
    """Open the dataset that a run begins with (``--dataset``), and check that it is of this task and these groups.

    Sets ``cfg.dataset.load_files``, so that a resumed run begins with the same files whatever was appended since.

    Raises:
        UserError: Naming what differs.
    """
    if cfg.dataset.load is None:
        return None
    saved = SavedDataset(cfg.dataset.load).first(cfg.dataset.load_files)
    cfg.dataset.load_files = len(saved.files)
    here: dict[str, Any] = {"task": cfg.task, "obs_groups": list(student_obs.groups)}
    here["obs_slice"] = None if student_obs.obs_slice is None else list(student_obs.obs_slice)
    if num_teachers > 1:
        here["num_teachers"] = num_teachers
    for name, value in here.items():
        found = getattr(saved.layout, name)
        if found != value:
            raise UserError(f"the dataset '{saved.path}' has {name} {found}, this run {value}: they cannot be mixed")
    check_targets(saved, targets)
    return saved


def connect(
    cfg: DistillationCfg,
    dataset: DistillationDataset,
    saved: SavedDataset | None,
    student_obs: ObsSelector,
    *,
    run: str,
    teacher: Any = None,
    label_bound: float | None = None,
    initial_state: torch.Tensor | None = None,
) -> ChunkRecorder:
    """Fill a dataset with the saved rows, and return what follows, filters and saves those that come.

    Args:
        cfg: The run's configuration.
        dataset: What :func:`foundation.dataset.build.make_dataset` made.
        saved: What the run begins with.
        student_obs: The student's observation groups.
        run: Names the run, the same after ``--resume``.
        teacher: Described in the dataset that is saved.
        label_bound: Labels are clipped to it.
        initial_state: A student's memory at an episode's start. Shape: (1, state_size).
    """
    table = EpisodeTable.empty()
    if saved is not None:
        table = fill(saved, [dataset], initial_state=initial_state)
        if dataset.weights is not None:
            weigh(dataset, table.number[:0])
        logger.info("The dataset begins with %d rows of '%s'.", saved.num_rows, saved.path)
    writer = None
    if cfg.dataset.save is not None:
        layout = DatasetLayout(
            str(cfg.task),
            list(student_obs.groups),
            None if student_obs.obs_slice is None else list(student_obs.obs_slice),
            dataset.num_obs,
            {name: part.stop - part.start for name, part in dataset.columns.items() if name != "obs"},
            dtype_name(dataset.dtype),
            dataset.chunk_steps,
            dataset.num_envs,
            dataset.num_teachers,
            clip_actions=label_bound,
        )
        describe = getattr(teacher, "describe", None)
        writer = DatasetWriter(cfg.dataset.save, layout, run, describe() if describe is not None else None)
    first = max(0 if saved is None else max(f.next_episode for f in saved.files), writer.next_episode if writer else 0)
    if dataset.episode is not None and dataset.num_chunks:
        first = max(first, 1 + int(dataset.episode[: dataset.num_chunks].max()))
    return ChunkRecorder(dataset, cfg.dataset.filter, writer, first, table)
