"""Minibatches from the host to the device that learns, one ahead of the one that is learned from."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from foundation.dataset.transition import Minibatch
from foundation.policies.output import PolicyOutput


def deliver(batches: Iterator[Minibatch], source: torch.device, target: torch.device) -> Iterator[Minibatch]:
    """Return the minibatches on the target device; those that lie elsewhere are fetched ahead."""
    return batches if source == target else Prefetcher(batches, target)


class Prefetcher:
    """Iterates over minibatches on another device, each asked for while the one before it is learned from.

    To a CUDA device they go through pinned memory and over a stream of their own, so that gathering, copying and
    learning overlap. To any other device the same steps are made without the stream.

    Args:
        batches: What to fetch.
        device: Where to.
    """

    def __init__(self, batches: Iterator[Minibatch], device: torch.device):
        self.batches, self.device = batches, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: Minibatch | None = None
        self._begun = False

    def __iter__(self) -> Iterator[Minibatch]:
        return self

    def __next__(self) -> Minibatch:
        if not self._begun:
            self._begun, self._ready = True, self._fetch()
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

    def _fetch(self) -> Minibatch | None:
        batch = next(self.batches, None)
        if batch is None:
            return None
        if self.stream is None:
            return _moved(batch, self.device, pin=False)
        with torch.cuda.stream(self.stream):
            return _moved(batch, self.device, pin=True)


def _moved(batch: Minibatch, device: torch.device, pin: bool) -> Minibatch:
    """Copy a minibatch. Pinned memory is handed out again only when the copy is over: torch's allocator sees to it."""

    def move(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is None:
            return None
        return (tensor.pin_memory() if pin else tensor).to(device, non_blocking=pin)

    targets = PolicyOutput(*(move(value) for value in batch.targets))  # type: ignore[arg-type]
    obs = move(batch.obs)
    assert obs is not None
    return Minibatch(obs, targets, move(batch.weights), move(batch.resets), move(batch.state))


def _tensors(batch: Minibatch) -> list[torch.Tensor]:
    entries = (batch.obs, *batch.targets, batch.weights, batch.resets, batch.state)
    return [entry for entry in entries if entry is not None]
