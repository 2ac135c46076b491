"""What a run's dataset has to do with those on disk: the one it begins with, and the one that it saves to."""

from __future__ import annotations

import logging
from typing import Any

import torch

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.dataset.columns import dtype_name
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.disk.layout import DatasetLayout
from foundation.dataset.disk.prefill import check_targets, fill
from foundation.dataset.disk.recorder import ChunkRecorder
from foundation.dataset.disk.saved import SavedDataset
from foundation.dataset.disk.saving import DatasetWriter
from foundation.dataset.episode_table import EpisodeTable, weigh
from foundation.policies.obs_groups import ObsSelector

logger = logging.getLogger(__name__)


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
        dataset: What :func:`foundation.dataset.plan.make_dataset` made.
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
