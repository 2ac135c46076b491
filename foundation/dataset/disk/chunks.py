"""Chunks of a dataset as plain tensors, for the files that make ``--resume`` exact."""

from __future__ import annotations

from typing import Any

import torch

from foundation.core.errors import UserError
from foundation.dataset.dataset import DistillationDataset

CHUNK_TENSORS = ("rows", "resets", "teacher_index", "episode", "weights", "base_weights", "states")
"""Tensors of a chunk: attributes of the dataset, each with the chunks first."""


def export_chunks(dataset: DistillationDataset, chunks: list[int]) -> dict[str, Any]:
    """Return plain tensors of some chunks, for a file on disk."""
    index = torch.tensor(chunks, dtype=torch.int64, device=dataset.device)
    shard: dict[str, Any] = {"slots": chunks}
    for name, tensor in _tensors(dataset).items():
        if tensor is not None:
            shard[name] = tensor.index_select(0, index).cpu()
    if dataset.active is not None:
        shard["active"] = dataset.active.index_select(0, index).cpu()
    return shard


def _tensors(dataset: DistillationDataset) -> dict[str, torch.Tensor | None]:
    """Return what a dataset keeps of its chunks, each with the chunks first; None where it keeps none."""
    return {name: getattr(dataset, name) for name in CHUNK_TENSORS} | dataset.typed


def check_chunks(dataset: DistillationDataset, shard: dict[str, Any]) -> None:
    """Refuse a file of a dataset that kept something else of its chunks.

    Raises:
        UserError: Naming what differs.
    """
    for name, tensor in _tensors(dataset).items():
        own = _shape(tensor)
        found = _shape(shard.get(name))
        if own != found:
            raise UserError(
                f"The run to resume kept '{name}' of each chunk in the shape {found}, this one {own}: resume with "
                "the same dataset.filter, dataset.save, dataset.sequence_start and sequence_length."
            )
        saved = shard.get(name)
        if tensor is not None and saved is not None and saved.dtype != tensor.dtype:
            raise UserError(
                f"The run to resume kept '{name}' of each chunk in {_kind(saved)}, this one in {_kind(tensor)}: resume "
                "with the same dataset.dtype."
            )


def _shape(tensor: torch.Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape[1:])


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def import_chunks(dataset: DistillationDataset, shard: dict[str, Any]) -> None:
    """Put the chunks of a file back into their places."""
    if "active" in shard:
        dataset.activate(shard["slots"], shard["active"])
    for name, tensor in _tensors(dataset).items():
        if name in shard and tensor is not None:
            tensor[shard["slots"]] = shard[name].to(dataset.device)
