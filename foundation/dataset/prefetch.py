"""Copy batches from the host to the device that learns, one ahead of the one in use."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from foundation.dataset.transition import Batch
from foundation.policies.output import map_output


def deliver(batches: Iterator[Batch], source: torch.device, target: torch.device) -> Iterator[Batch]:
    """Return the batches on the target device; those that lie elsewhere are fetched ahead."""
    return batches if source == target else Prefetcher(batches, target)


class Prefetcher:
    """Iterates over batches on another device, each asked for while the one before it is learned from.

    To a CUDA device they go through pinned memory and over a stream of their own, so that gathering, copying and
    learning overlap. To any other device the same steps are made without the stream.

    Args:
        batches: What to fetch.
        device: Where to.
    """

    def __init__(self, batches: Iterator[Batch], device: torch.device):
        self.batches = batches
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: Batch | None = None
        self._begun = False

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._begun:
            self._begun = True
            self._ready = self._fetch()
        batch = self._ready
        if batch is None:
            raise StopIteration
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for tensor in _tensors(batch):
                tensor.record_stream(current)
        self._ready = self._fetch()
        return batch

    def _fetch(self) -> Batch | None:
        batch = next(self.batches, None)
        if batch is None:
            return None
        if self.stream is None:
            return _moved(batch, self.device, pin=False)
        with torch.cuda.stream(self.stream):
            return _moved(batch, self.device, pin=True)


def _moved(batch: Batch, device: torch.device, pin: bool) -> Batch:
    """Copy a batch. Pinned memory is handed out again only when the copy is over: torch's allocator sees to it."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=pin)

    def move_if_any(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else move(tensor)

    return Batch(
        obs=move(batch.obs),
        targets=map_output(move, batch.targets),
        weights=move_if_any(batch.weights),
        resets=move_if_any(batch.resets),
        state=move_if_any(batch.state),
        extra=None if batch.extra is None else {name: move(part) for name, part in batch.extra.items()},
    )


def _tensors(batch: Batch) -> list[torch.Tensor]:
    extra = () if batch.extra is None else batch.extra.values()
    entries = (batch.obs, *batch.targets, batch.weights, batch.resets, batch.state, *extra)
    return [entry for entry in entries if entry is not None]
