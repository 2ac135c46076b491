"""Load a dataset on disk into one in memory, whose chunks may have another size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from foundation.core.errors import UserError
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.disk.chunks import import_chunks
from foundation.dataset.disk.reader import SavedDataset
from foundation.dataset.episodes import EpisodeTable


def chunks_of(saved: SavedDataset, chunk_steps: int, num_envs: int) -> tuple[int, bool]:
    """Return how many chunks of a size a saved dataset takes, and whether any of them is padded.

    Args:
        saved: The dataset.
        chunk_steps: Env steps of a chunk in memory.
        num_envs: Environments of a chunk in memory.
    """
    runs = [(entry.run, entry.chunks) for entry in saved.files]
    return count_chunks(runs, (saved.layout.chunk_steps, saved.layout.num_envs), (chunk_steps, num_envs))


def check_targets(saved: SavedDataset, targets: Mapping[str, int]) -> None:
    """Raise for a dataset that lacks one of the teacher's outputs that the losses read.

    Args:
        saved: The dataset.
        targets: Output of the teacher -> its size.

    Raises:
        UserError: Naming what is missing.
    """
    for name, size in targets.items():
        found = saved.layout.sizes.get(name)
        if found != size:
            has = "has none" if found is None else f"has {found} of it"
            raise UserError(
                f"the loss needs the teacher's {name} ({size}) and the dataset '{saved.path}' {has}: choose another "
                "loss, or collect it again with one that stores it"
            )


def fill(
    saved: SavedDataset,
    datasets: Sequence[DistillationDataset],
    which: Sequence[int] | None = None,
    initial_state: torch.Tensor | None = None,
) -> EpisodeTable:
    """Write a dataset's chunks into those in memory, and its episodes into a table.

    Args:
        saved: Where to read.
        datasets: Where to write; their chunks are of one size, and they have room for all.
        which: For each chunk the index of its dataset, -1 for one that is left out. None: all go to the first.
        initial_state: A student's memory at an episode's start, stored for every training sequence until the student
            has computed better ones. Shape: (1, state_size).

    Returns:
        The outcomes of all episodes.

    Raises:
        UserError: If the saved dataset lacks a column.
    """
    first = datasets[0]
    tables: list[EpisodeTable] = []

    def parts() -> Iterator[tuple[str, ChunkTensors]]:
        for run, tensors, episodes in saved.contents():
            tables.append(episodes)
            yield run, {**tensors, "rows": _columns_of(first, saved, tensors["rows"])}

    number = 0
    for part in rechunk(parts(), (first.chunk_steps, first.num_envs)):
        for index in range(len(part["rows"])):
            chosen = 0 if which is None else which[number]
            number += 1
            if chosen >= 0:
                own = {name: tensor[index : index + 1] for name, tensor in part.items()}
                _put(datasets[chosen], own, initial_state)
    return EpisodeTable.join(tables)


def _put(dataset: DistillationDataset, tensors: ChunkTensors, initial_state: torch.Tensor | None) -> None:
    chunk = dataset.begin_chunk()
    if dataset.episode is None:
        tensors.pop("episode")
    if dataset.teacher_index is None:
        tensors.pop("teacher_index", None)
    missing = dataset.typed.keys() - tensors.keys()
    if missing:
        raise UserError(
            f"this run stores a column '{min(missing)}', which the dataset on disk does not have: collect it again"
        )
    weights = tensors.pop("weights", None)
    if weights is not None and dataset.weights is not None:
        if dataset.base_weights is None:
            dataset.base_weights = torch.ones_like(dataset.weights)
        dataset.base_weights[chunk] = dataset.weights[chunk] = weights[0].to(dataset.device).float()
    import_chunks(dataset, {"slots": [chunk], **tensors, "resets": tensors["resets"].bool()})
    if dataset.states is not None and initial_state is not None:
        dataset.states[chunk] = initial_state.to(dataset.device)
    dataset.commit_chunk()


def _columns_of(dataset: DistillationDataset, saved: SavedDataset, rows: torch.Tensor) -> torch.Tensor:
    """Return the saved columns in the order and the type of a dataset in memory. Shape: (..., row_size)."""
    there = saved.layout.columns
    if there == dataset.columns:
        return rows.to(dataset.dtype)
    missing = dataset.columns.keys() - there.keys()
    if missing:
        raise UserError(f"the dataset '{saved.path}' has no '{sorted(missing)[0]}' of type {saved.layout.dtype}")
    return torch.cat([rows[..., there[name]] for name in dataset.columns], dim=-1).to(dataset.dtype)


ChunkTensors = dict[str, torch.Tensor]
"""Tensors of some chunks, each (chunks, steps, envs, ...)."""


def count_chunks(runs: Iterable[tuple[str, int]], shape: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, bool]:
    """Return how many chunks :func:`rechunk` yields, and whether any of them is padded.

    Args:
        runs: The run and the number of chunks of each file, in order.
        shape: Env steps and environments of these chunks.
        wanted: Env steps and environments of the chunks to make.
    """
    if shape == wanted:
        return sum(number for _, number in runs), False
    steps: list[int] = []
    last = None
    for run, number in runs:
        if run != last:
            steps.append(0)
        steps[-1] += number * shape[0]
        last = run
    trajectories = sum(math.ceil(length / wanted[0]) for length in steps) * shape[1]
    chunks = math.ceil(trajectories / wanted[1])
    return chunks, chunks * wanted[0] * wanted[1] > sum(steps) * shape[1]


def rechunk(parts: Iterable[tuple[str, ChunkTensors]], wanted: tuple[int, int]) -> Iterator[ChunkTensors]:
    """Make chunks of another size; what is missing in the last ones is padded with copies that belong to episode -1.

    Transitions of episode -1 get no weight, so that none is learned from twice.

    Args:
        parts: Chunks, each with the run that they are of, ``episode`` and ``resets`` among their tensors. Those of one
            run follow each other in time.
        wanted: Env steps and environments of a chunk.

    Yields:
        Tensors of shape (chunks, *wanted, ...). Chunks that have the wanted size already are yielded as they are.
    """
    # First time is cut, for each environment alone; then the pieces, whichever environments they are from, are put side
    # by side.
    trajectories: ChunkTensors | None = None
    for part in _cut(parts, wanted[0]):
        if part["rows"].shape[2] == wanted[1] and trajectories is None:
            yield part
            continue
        flat = {name: tensor.transpose(1, 2).flatten(0, 1) for name, tensor in part.items()}
        if trajectories is not None:
            flat = {name: torch.cat([trajectories[name], tensor]) for name, tensor in flat.items()}
        trajectories = flat
        whole = len(trajectories["rows"]) // wanted[1] * wanted[1]
        if whole:
            yield _stack({name: tensor[:whole] for name, tensor in trajectories.items()}, wanted[1])
        left = {name: tensor[whole:] for name, tensor in trajectories.items()}
        trajectories = left if len(left["rows"]) else None
    if trajectories is not None:
        yield _stack(_filled(trajectories, wanted[1]), wanted[1])


def _cut(parts: Iterable[tuple[str, ChunkTensors]], steps: int) -> Iterator[ChunkTensors]:
    """Cut the time of each run into pieces of ``steps`` env steps; the last piece of a run is padded."""
    rest: ChunkTensors | None = None
    last = None
    for run, part in parts:
        if run != last and rest is not None:
            yield {name: tensor.unsqueeze(0) for name, tensor in _filled(rest, steps).items()}
            rest = None
        last = run
        if rest is None and part["rows"].shape[1] == steps:
            yield part
            continue
        time = {name: tensor.flatten(0, 1) for name, tensor in part.items()}
        time = time if rest is None else {name: torch.cat([rest[name], time[name]]) for name in time}
        whole = len(time["rows"]) // steps * steps
        if whole:
            yield {name: tensor[:whole].unflatten(0, (-1, steps)) for name, tensor in time.items()}
        rest = {name: tensor[whole:] for name, tensor in time.items()} if whole < len(time["rows"]) else None
    if rest is not None:
        yield {name: tensor.unsqueeze(0) for name, tensor in _filled(rest, steps).items()}


def _filled(part: ChunkTensors, length: int) -> ChunkTensors:
    """Pad tensors to a length by repeating their last entries, which then belong to episode -1."""
    missing = length - len(part["rows"])
    filled = {name: torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for name, t in part.items()}
    if missing:
        filled["episode"][-missing:] = -1
        filled["resets"][-missing:] = True
    return filled


def _stack(trajectories: ChunkTensors, envs: int) -> ChunkTensors:
    """Put trajectories of one environment each, (trajectories, steps, ...), side by side as environments of chunks."""
    return {name: tensor.unflatten(0, (-1, envs)).transpose(1, 2).contiguous() for name, tensor in trajectories.items()}
