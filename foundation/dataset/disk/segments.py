"""Segments of a dataset as plain tensors, for the files that make ``--resume`` exact."""

from __future__ import annotations

from typing import Any

import torch

from foundation.core.errors import UserError
from foundation.dataset.dataset import DistillationDataset

CHUNK_TENSORS = ("rows", "resets", "teacher_index", "episode", "weights", "base_weights", "states")
"""What a chunk may hold: attributes of the dataset, each with the chunks first."""


def export_chunks(dataset: DistillationDataset, slots: list[int]) -> dict[str, Any]:
    """Return plain tensors of some chunks, for a shard on disk."""
    index = torch.tensor(slots, dtype=torch.int64, device=dataset.device)
    shard: dict[str, Any] = {"slots": slots}
    for name in (*CHUNK_TENSORS, "active"):
        tensor = getattr(dataset, name)
        if tensor is not None:
            shard[name] = tensor.index_select(0, index).cpu()
    return shard


def check_chunks(dataset: DistillationDataset, shard: dict[str, Any]) -> None:
    """Refuse a shard of a dataset that kept something else of its chunks.

    Raises:
        UserError: Naming what differs.
    """
    for name in CHUNK_TENSORS:
        own, found = (None if t is None else list(t.shape[1:]) for t in (getattr(dataset, name), shard.get(name)))
        if own != found:
            raise UserError(
                f"The run to resume kept '{name}' of each chunk in the shape {found}, this one {own}: resume with "
                "the same dataset.filter, dataset.save, dataset.sequence_start and sequence_length."
            )


def import_chunks(dataset: DistillationDataset, shard: dict[str, Any]) -> None:
    """Put the chunks of a shard back into their slots."""
    if "active" in shard:
        dataset.activate(shard["slots"], shard["active"])
    for name in CHUNK_TENSORS:
        if name in shard:
            getattr(dataset, name)[shard["slots"]] = shard[name].to(dataset.device)
