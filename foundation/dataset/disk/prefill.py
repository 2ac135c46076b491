"""From a dataset on disk into the one that is learned from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from foundation.core.errors import UserError
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.disk.rechunk import Block, count_chunks, rechunk
from foundation.dataset.disk.saved import SavedDataset
from foundation.dataset.disk.shards import import_chunks
from foundation.dataset.episode_table import EpisodeTable


def chunks_of(saved: SavedDataset, chunk_steps: int, num_envs: int) -> tuple[int, bool]:
    """Return how many chunks of these sizes hold a dataset, and whether rows are needed that only fill up."""
    runs = [(entry.run, entry.chunks) for entry in saved.files]
    return count_chunks(runs, (saved.layout.chunk_steps, saved.layout.num_envs), (chunk_steps, num_envs))


def check_targets(saved: SavedDataset, targets: dict[str, int]) -> None:
    """Refuse a dataset that lacks one of the teacher's outputs that are learned from.

    Raises:
        UserError: Naming what is missing.
    """
    for name, size in targets.items():
        found = saved.layout.targets.get(name)
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
        datasets: Where to write; all have the same sizes of chunks, and room.
        which: For each chunk the number of its dataset. None: all go to the first.
        initial_state: A student's memory at an episode's start, which is what its stored memory begins with. Shape:
            (1, state_size).

    Returns:
        The outcomes of all episodes.
    """
    first = datasets[0]
    tables: list[EpisodeTable] = []

    def blocks() -> Iterator[tuple[str, Block]]:
        for run, tensors, episodes in saved.blocks():
            tables.append(episodes)
            yield run, {**tensors, "rows": _columns_of(first, saved, tensors["rows"])}

    number = 0
    for block in rechunk(blocks(), (first.chunk_steps, first.num_envs)):
        for index in range(len(block["rows"])):
            dataset = datasets[0 if which is None else which[number]]
            _put(dataset, {name: tensor[index : index + 1] for name, tensor in block.items()}, initial_state)
            number += 1
    return EpisodeTable.join(tables)


def _put(dataset: DistillationDataset, chunk: Block, initial_state: torch.Tensor | None) -> None:
    slot = dataset.begin_chunk()
    if dataset.episode is None:
        chunk.pop("episode")
    if dataset.teacher_index is None:
        chunk.pop("teacher_index", None)
    weights = chunk.pop("weights", None)
    if weights is not None and dataset.weights is not None:
        if dataset.base_weights is None:
            dataset.base_weights = torch.ones_like(dataset.weights)
        dataset.base_weights[slot] = dataset.weights[slot] = weights[0].to(dataset.device).float()
    import_chunks(dataset, {"slots": [slot], **chunk, "resets": chunk["resets"].bool()})
    if dataset.states is not None and initial_state is not None:
        dataset.states[slot] = initial_state.to(dataset.device)
    dataset.commit_chunk()


def _columns_of(dataset: DistillationDataset, saved: SavedDataset, rows: torch.Tensor) -> torch.Tensor:
    """Take the columns that a dataset keeps, of the dataset's type."""
    there = saved.layout.columns
    if there == dataset.columns:
        return rows.to(dataset.dtype)
    return torch.cat([rows[..., there[name]] for name in dataset.columns], dim=-1).to(dataset.dtype)
