"""Build the dataset of a run: its size, the transitions that it begins with (``--dataset``), the folder to save to."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict

from foundation.config.derived_cfg import DerivedGroup, write_derived
from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.core.memory import free_memory
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.disk.format import DatasetLayout
from foundation.dataset.disk.load import check_targets, chunks_of, fill
from foundation.dataset.disk.reader import SavedDataset
from foundation.dataset.disk.writer import DatasetWriter
from foundation.dataset.episode_log import EpisodeLog, check_weights, log_outcome
from foundation.dataset.episodes import EpisodeTable, FilterOutcome, filter_outcome, is_filtering, left_out, weigh
from foundation.dataset.spec import BufferSpec
from foundation.dataset.transition import Column, image_column, stored_column
from foundation.policies.obs_groups import ObsSelector

logger = logging.getLogger(__name__)

SHORT_CHUNK = 32
"""Env steps of a chunk where no training sequence asks for more."""
ANNOUNCED_BYTES = 1e8
"""Size from which a dataset is announced before it is allocated."""


@dataclass(frozen=True)
class CollectedData:
    """Shapes and settings of a collection from which its dataset is built."""

    obs: ObsSelector
    """The student's observation groups."""
    num_obs: int
    """Size of the student's observation but for its images; 0 where ``typed`` has a column ``obs``."""
    targets: Mapping[str, int]
    """Size of each of the teacher's outputs to store."""
    num_envs: int
    """Environments that are collected in."""
    max_episode_length: int
    """Longest episode [env steps]."""
    device: torch.device
    """Device that computes."""
    mode: str = "steps"
    """How an epoch collects: ``steps`` or ``episodes``."""
    sequence_length: int = 1
    """Steps of a training sequence."""
    initial_state: torch.Tensor | None = None
    """The student's memory at an episode's start; None without memory. Shape: (1, state_size)."""
    num_teachers: int = 1
    """With more than one, each transition keeps its teacher's index."""
    run: str = ""
    """Names the run in a dataset on disk, the same after ``--resume``."""
    teacher: Mapping[str, Any] | None = None
    """Describes the teacher in a dataset on disk, in plain values."""
    label_bound: float | None = None
    """Labels are clipped to it [action units]."""
    derived: Mapping[str, DerivedGroup] = field(default_factory=dict)
    """Observation groups that were made for the student, by name."""
    typed: Mapping[str, Column] | None = None
    """Columns stored as they are: images, indices."""
    rank: int = 0
    """Rank of this process, which takes every ``world_size``-th chunk of a dataset on disk."""
    world_size: int = 1


class OfflineData(NamedTuple):
    """A dataset on disk in memory, a part of it held out."""

    train: DistillationDataset
    held_out: DistillationDataset
    num_episodes: int
    """Episodes that have ended."""
    num_left_out: int
    """Episodes that the filter leaves out."""
    filtered: FilterOutcome | None
    """Result of the filter; None without one."""


def build_dataset(cfg: DistillationCfg, data: CollectedData) -> tuple[DistillationDataset, EpisodeLog]:
    """Build the dataset of a run that collects.

    Args:
        cfg: The run's configuration; ``dataset.load_files`` is filled in.
        data: What it collects.

    Returns:
        The dataset with the transitions that it begins with, and the log that numbers, saves and filters episodes.

    Raises:
        UserError: If sizes do not fit the memory, or a folder on disk does not fit the run.
    """
    saved = open_saved(cfg, data)
    spec = plan_spec(cfg, data, saved)
    device = storage_device(cfg.dataset.device, spec.num_bytes, data.device)
    if spec.num_bytes >= ANNOUNCED_BYTES:
        size = spec.num_bytes / 1e9
        place = torch.device(device)
        logger.info("The dataset takes up to %.2f GB on %s (%d transitions).", size, place, spec.capacity)
    dataset = DistillationDataset(spec, device, data.device, cfg.seed + data.rank)
    table = EpisodeTable.empty()
    if saved is not None:
        number = chunks_of(saved, spec.chunk_steps, data.num_envs)[0]
        which = deal([0] * number, data.rank, data.world_size)
        table = fill(saved, [dataset], which, initial_state=data.initial_state)
        if dataset.weights is not None:
            weigh(dataset, table.number[:0])
        logger.info("The dataset begins with %d transitions of '%s'.", saved.num_rows, saved.path)
    writer = None
    if cfg.dataset.save is not None:
        writer = DatasetWriter(cfg.dataset.save, layout_of(cfg, data, spec), data.run, data.teacher)
    return dataset, EpisodeLog(dataset, cfg.dataset.filter, writer, first_episode(dataset, saved, writer), table)


def open_saved(cfg: DistillationCfg, data: CollectedData) -> SavedDataset | None:
    """Open the dataset that a run begins with (``--dataset``), and check that it is of this task and these groups.

    Sets ``cfg.dataset.load_files``, so that a resumed run begins with the same files whatever was appended since.

    Raises:
        UserError: Naming what differs.
    """
    if cfg.dataset.load is None:
        return None
    saved = SavedDataset(cfg.dataset.load).first(cfg.dataset.load_files)
    cfg.dataset.load_files = len(saved.files)
    here: dict[str, Any] = {"task": cfg.task, "obs_groups": list(data.obs.groups), "obs_slice": _plain(data.obs)}
    here["derived_groups"] = write_derived(data.derived, data.obs.groups)
    if data.num_teachers > 1:
        here["num_teachers"] = data.num_teachers
    if "estimate" in data.targets:
        here["predicted_group"] = predicted_group(cfg)
    for name, value in here.items():
        found = getattr(saved.layout, name)
        if found != value:
            raise UserError(f"the dataset '{saved.path}' has {name} {found}, this run {value}: they cannot be mixed")
    for name, column in (data.typed or {}).items():
        found = saved.layout.typed.get(name)
        if found is not None and found != column:
            raise UserError(
                f"the dataset '{saved.path}' has '{name}' as {found.dtype} {list(found.shape)}, this run as "
                f"{column.dtype} {list(column.shape)}: they cannot be mixed"
            )
    check_targets(saved, data.targets)
    return saved


def plan_spec(cfg: DistillationCfg, data: CollectedData, saved: SavedDataset | None = None) -> BufferSpec:
    """Return the sizes of a run's dataset: room for what it can collect, or for what the memory budget holds.

    Args:
        cfg: The run's configuration.
        data: What it collects.
        saved: The transitions that it begins with.

    Raises:
        UserError: If ``dataset.size`` does not fit the budget.
    """
    wanted_steps = cfg.dataset.chunk_steps or (saved.layout.chunk_steps if saved else SHORT_CHUNK)
    chunk_steps = whole_sequences(wanted_steps, data.sequence_length)
    rows_to_load = 0
    fills_up = False
    if saved is not None:
        chunks, fills_up = chunks_of(saved, chunk_steps, data.num_envs)
        rows_to_load = -(-chunks // data.world_size) * chunk_steps * data.num_envs
    weighted = is_filtering(cfg.dataset.filter) or fills_up or (saved is not None and saved.layout.weighted)
    stores_state = data.initial_state is not None and data.sequence_length > 1
    state_size = 0
    if stores_state and data.initial_state is not None and cfg.dataset.sequence_start == "stored":
        state_size = data.initial_state.shape[-1]
    sizes: dict[str, Any] = {
        "num_obs": data.num_obs,
        "num_envs": data.num_envs,
        "targets": dict(data.targets),
        "chunk_steps": chunk_steps,
        "sequence_length": data.sequence_length,
        "state_size": state_size,
        "num_teachers": data.num_teachers,
        "track_episodes": weighted or cfg.dataset.save is not None,
        "weighted": weighted,
        "dtype": cfg.dataset.dtype,
        "eviction": cfg.dataset.eviction,
        "typed": dict(data.typed or {}),
    }
    row_bytes = BufferSpec(capacity=1, **sizes).transition_bytes
    budget_rows = int(cfg.dataset.memory_gb * 1e9 // row_bytes)
    if cfg.dataset.size is not None and cfg.dataset.size > budget_rows:
        raise UserError(
            f"dataset.size={cfg.dataset.size} transitions take {cfg.dataset.size * row_bytes / 1e9:.2f} GB, more than "
            f"dataset.memory_gb={cfg.dataset.memory_gb:g}: lower dataset.size, raise dataset.memory_gb, or set "
            "dataset.dtype=float16."
        )
    capacity = min(cfg.dataset.size or most_rows(cfg, data, chunk_steps) + rows_to_load, budget_rows)
    if rows_to_load and cfg.dataset.newest_epochs and not (cfg.offline or cfg.on_policy):
        logger.warning(
            "The transitions of --dataset are learned from until %d epochs have collected others "
            "(distill.dataset.newest_epochs; null learns from all).",
            cfg.dataset.newest_epochs,
        )
    if rows_to_load > capacity:
        logger.warning(
            "The dataset has room for %d transitions and --dataset holds %d: of those some make room for others "
            "(dataset.memory_gb or dataset.size asks for more).",
            capacity,
            rows_to_load,
        )
    spec = BufferSpec(capacity=capacity, **sizes)
    if capacity < spec.rows_per_chunk:
        is_typed = cfg.dataset.size == capacity
        logger.warning(
            "distill.dataset.%s is less than a chunk, %d env steps in %d environments: the dataset has room for %d "
            "transitions (fewer --num_envs or a smaller %s ask for less).",
            f"size={capacity}" if is_typed else f"memory_gb={cfg.dataset.memory_gb:g}",
            chunk_steps,
            data.num_envs,
            spec.rows_per_chunk,
            "distill.dataset.chunk_steps" if data.sequence_length == 1 else "--sequence_length",
        )
    return spec


def layout_of(cfg: DistillationCfg, data: CollectedData, spec: BufferSpec) -> DatasetLayout:
    """Return the head of the dataset that a run saves."""
    return DatasetLayout(
        task=str(cfg.task),
        obs_groups=list(data.obs.groups),
        obs_slice=_plain(data.obs),
        num_obs=spec.num_obs,
        targets={name: part.stop - part.start for name, part in spec.columns.items() if name != "obs"},
        dtype=spec.dtype,
        chunk_steps=spec.chunk_steps,
        num_envs=spec.num_envs,
        num_teachers=spec.num_teachers,
        clip_actions=data.label_bound,
        predicted_group=predicted_group(cfg),
        derived_groups=write_derived(data.derived, data.obs.groups),
        typed=dict(spec.typed),
    )


def typed_columns(selector: ObsSelector, obs: TensorDict, load: str | None) -> dict[str, Column]:
    """Return the parts of the student's observation that keep their own type: images, or all of it if it is bytes.

    Args:
        selector: The student's observation groups.
        obs: Observations of the environment, by group.
        load: The dataset that the run begins with, which may hold bytes as numbers; None: there is none.

    Raises:
        UserError: If two image groups would have columns of one name.
    """
    images = [name for name in selector.groups if name in selector.images]
    columns = {image_column(name): stored_column(obs[name], name) for name in images}
    if len(columns) < len(images):
        raise UserError(f"the image groups {images} need names that differ in their letters: rename one")
    if images:
        return columns
    own = selector(obs)
    as_numbers = load is not None and "obs" not in SavedDataset(load).layout.typed
    return {} if own.dtype != torch.uint8 or as_numbers else {"obs": Column(tuple(own.shape[1:]), "uint8")}


def predicted_group(cfg: DistillationCfg) -> str | None:
    """Return the observation group that the student predicts, if it predicts one."""
    term = cfg.loss.prediction
    return None if term is None else term.group


def first_episode(dataset: DistillationDataset, saved: SavedDataset | None, writer: DatasetWriter | None) -> int:
    """Return a number above those of all episodes that are in memory or on disk."""
    first = 0 if writer is None else writer.next_episode
    if saved is not None:
        first = max(first, *(entry.next_episode for entry in saved.files))
    if dataset.episode is not None and dataset.num_chunks:
        first = max(first, 1 + int(dataset.episode[: dataset.num_chunks].max()))
    return first


def deal(which: Sequence[int], rank: int, world_size: int) -> list[int]:
    """Return what each chunk of a dataset on disk is for, -1 for those that other processes read."""
    return [use if index % world_size == rank else -1 for index, use in enumerate(which)]


def load_offline(
    cfg: DistillationCfg,
    saved: SavedDataset,
    needed: set[str],
    kept: set[str],
    sequence_length: int,
    rank: int = 0,
    world_size: int = 1,
) -> OfflineData:
    """Read a dataset for ``--offline``, a random share of its chunks into a dataset that is not learned from.

    Args:
        cfg: The run's configuration.
        saved: Where to read.
        needed: The teacher's outputs that the losses read.
        kept: The teacher's outputs that are kept where they are there.
        sequence_length: Steps of a training sequence.
        rank: Rank of this process, which reads every ``world_size``-th chunk.
        world_size: Processes that share the dataset.

    Raises:
        UserError: If a target is missing, the dataset does not fit ``dataset.memory_gb``, or nothing passes the filter.
    """
    layout = saved.layout
    device = torch.device(cfg.device)
    if "estimate" in needed:
        _check_predicted_group(saved, predicted_group(cfg))
    targets = {name: size for name, size in layout.targets.items() if name in kept}
    missing = {name: layout.sizes["mean"] if name == "std" else 1 for name in needed if name not in layout.sizes}
    check_targets(saved, {} if "logits" in layout.sizes else missing)
    steps = whole_sequences(layout.chunk_steps, sequence_length)
    chunks, fills_up = chunks_of(saved, steps, layout.num_envs)
    if world_size > 1 and chunks < 2 * world_size:
        raise UserError(
            f"the dataset '{saved.path}' has {chunks} chunks, and each of {world_size} processes needs two, one of "
            f"them to hold out: start at most {max(1, chunks // 2)}, or collect more"
        )
    which = [-1] * chunks  # which dataset a chunk goes to; -1: another process's
    which[rank::world_size] = split(len(range(rank, chunks, world_size)), cfg.dataset.held_out, cfg.seed + rank)
    weighted = is_filtering(cfg.dataset.filter) or fills_up or layout.weighted

    def spec(number: int) -> BufferSpec:
        return BufferSpec(
            num_obs=layout.num_obs,
            num_envs=layout.num_envs,
            capacity=number * steps * layout.num_envs,
            targets=targets,
            chunk_steps=steps,
            sequence_length=sequence_length,
            track_episodes=weighted,
            weighted=weighted,
            dtype=cfg.dataset.dtype,
            typed=layout.typed,
        )

    size = spec(-(-chunks // world_size)).num_bytes
    if size > cfg.dataset.memory_gb * 1e9:
        raise UserError(
            f"the dataset '{saved.path}' takes {size / 1e9:.2f} GB, more than dataset.memory_gb="
            f"{cfg.dataset.memory_gb:g}: raise it, or set dataset.dtype=float16"
        )
    storage = storage_device(cfg.dataset.device, size, device)
    train, held_out = (
        DistillationDataset(spec(which.count(index)), storage, device, cfg.seed + rank) for index in (0, 1)
    )
    table = fill(saved, [train, held_out], which)
    bad = left_out(table, cfg.dataset.filter)
    filtered = _filter(cfg, train, held_out, table, bad) if weighted else None
    return OfflineData(train, held_out, len(table.number), len(bad), filtered)


def split(chunks: int, share: float, seed: int) -> list[int]:
    """Choose the chunks to hold out: 1 for each of those, 0 for the others, at least one of either.

    Raises:
        UserError: If there is only one chunk.
    """
    if chunks < 2:
        raise UserError("the dataset has one chunk only, and one has to be held out: collect more, with more episodes")
    number = min(chunks - 1, max(1, round(share * chunks)))
    order = torch.randperm(chunks, generator=torch.Generator().manual_seed(seed))
    which = torch.zeros(chunks, dtype=torch.int64)
    which[order[:number]] = 1
    return which.tolist()


def whole_sequences(chunk_steps: int, sequence_length: int) -> int:
    """Round the steps of a chunk up to whole training sequences."""
    return sequence_length * math.ceil(chunk_steps / sequence_length)


def storage_device(asked: str | None, num_bytes: float, compute_device: torch.device) -> torch.device | str:
    """Return the device to store on: the one that is asked for; None or ``auto`` leave it to :func:`where_it_fits`."""
    if asked is None or asked == "auto":
        return where_it_fits(num_bytes, compute_device)
    return asked


def where_it_fits(num_bytes: float, device: torch.device) -> torch.device:
    """Return the device for a storage: the one that computes, or the host where that has too little memory."""
    if device.type == "cuda" and num_bytes > free_memory(device):
        logger.info("The dataset (%.1f GB) does not fit %s: it is kept in host memory.", num_bytes / 1e9, device)
        return torch.device("cpu")
    return device


def most_rows(cfg: DistillationCfg, data: CollectedData, chunk_steps: int) -> int:
    """Return how many transitions a run can collect, if every episode is as long as can be."""
    longest = data.max_episode_length + 1
    if data.mode == "episodes":
        steps = math.ceil(cfg.num_episodes / data.num_envs) * longest
    else:
        steps = math.ceil(cfg.num_episodes * longest / data.num_envs)
    chunks = math.ceil(steps / chunk_steps) + 1
    epochs = 1 if cfg.on_policy else cfg.n_epochs
    return epochs * chunks * chunk_steps * data.num_envs


def _plain(obs: ObsSelector) -> list[int] | None:
    return None if obs.obs_slice is None else list(obs.obs_slice)


def _filter(
    cfg: DistillationCfg,
    train: DistillationDataset,
    held_out: DistillationDataset,
    table: EpisodeTable,
    bad: torch.Tensor,
) -> FilterOutcome | None:
    """Give what is not to be learned from the weight 0, and return what a filter left out; None without one."""
    for dataset in (train, held_out):
        weigh(dataset, bad)
    outcome = None
    if is_filtering(cfg.dataset.filter):
        outcome = filter_outcome([train, held_out], table, bad)
        log_outcome(outcome, cfg.dataset.filter)
    for dataset in (train, held_out):
        check_weights(dataset)
    return outcome


def _check_predicted_group(saved: SavedDataset, group: str | None) -> None:
    there = saved.layout.predicted_group
    if there != group:
        holds = f"holds '{there}'" if there else "holds no group"
        raise UserError(
            f"distill.loss.auxiliary.predict.group is '{group}' and the dataset '{saved.path}' {holds} "
            "to predict: collect it again with this term"
        )
