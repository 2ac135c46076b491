"""The processes that share a run: what one tells the others, what they add up, and what happens when one is lost."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from foundation.core.errors import RunInterrupted, UserError
from foundation.core.text import shorten

Value = TypeVar("Value")

SECONDS_TO_LEAVE = 8.0
"""After a signal a process leaves within this time, though it may be waiting for another that answers no more [s]."""
_GIVEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that ``torchrun`` sets."""
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "Timed out", "timed out", "Socket", "NCCL", "Connection")
"""Parts of the messages of libraries that can no longer reach a process."""


class RankLostError(UserError):
    """Another process of the run has ended, or answers no more."""


class Ranks:
    """A run in one process: there is nobody to tell anything. :class:`ProcessGroup` is one in several.

    Whatever several processes do together they do in the same order: a call of one waits for the same call of the
    others. ``together`` is the way out of work that they do each for itself, such as a rollout.

    Args:
        rank: Number of this process; the first one, 0, writes the files.
        world_size: Number of processes.
    """

    def __init__(self, rank: int = 0, world_size: int = 1):
        self.rank = rank
        self.world_size = world_size

    @property
    def is_first(self) -> bool:
        """Whether this process speaks and writes for all."""
        return self.rank == 0

    def share_of(self, number: int) -> int:
        """Return how much of a number each process does, rounded up."""
        return -(-number // self.world_size)

    def place(self, device: str) -> str:
        """Return the device of this process, where all were given the same."""
        return device

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in order of rank: plain values and tensors; of several, on the CPU."""
        return [value]

    def gather_to_first(self, value: Any) -> list[Any]:
        """Return the values of all processes in the first one, an empty list in the others."""
        return [value]

    def together(self, work: Callable[[], Value]) -> list[Value]:
        """Do work that takes each process its own time; return the results of all, in order of rank.

        Args:
            work: Returns plain values and tensors. What stops one process stops all of them.

        Raises:
            UserError: In every process, where one has raised it.
            RunInterrupted: In every process, where one was asked to stop.
        """
        return [work()]

    def from_first(self, work: Callable[[], Value]) -> Value:
        """Do work in the first process alone, and return its result in all; its ``UserError`` is raised in all."""
        return work()

    def any_of(self, text: str) -> str:
        """Return the first text of all processes that is not empty, or ""."""
        return text

    def total(self, numbers: Sequence[float]) -> list[float]:
        """Return each number's sum over the processes."""
        return list(numbers)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Add a tensor up over the processes, in place."""
        return tensor

    def mean_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Average a tensor over the processes, in place."""
        return tensor

    def average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace the gradients of what an optimiser steps by their mean over the processes."""

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give tensors the first process's values, in place."""

    def share_modules(self, modules: Iterable[nn.Module]) -> None:
        """Give modules the first process's parameters and buffers, in place."""

    def speaks(self, message: str) -> bool:
        """Whether this process is the one to print a message that others may have too.

        Args:
            message: What it would print. "": news that is worth saying only if nobody has said anything.
        """
        return True

    def leave(self) -> None:
        """Leave the other processes; nothing can be shared afterwards."""


class ProcessGroup(Ranks):
    """Several processes that ``torchrun`` has started: gloo carries what is on the CPU, NCCL what is on CUDA devices.

    Values travel as files of tensors do: nothing in them is executed.
    """

    def __init__(self) -> None:
        missing = [name for name in _GIVEN if name not in os.environ]
        if missing:
            raise UserError(f"{missing[0]} is not set: start several processes by torchrun")
        self.local_rank = _number("LOCAL_RANK")
        self.local_world_size = _number("LOCAL_WORLD_SIZE")
        super().__init__(_number("RANK"), _number("WORLD_SIZE"))
        on_cuda = torch.cuda.is_available() and dist.is_nccl_available()
        with _talking():
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_cuda else "gloo")
            self._store = dist.distributed_c10d._get_default_store()

    def place(self, device: str) -> str:
        """Return the CPU, or this process's own CUDA device."""
        if torch.device(device).type != "cuda":
            return device
        count = torch.cuda.device_count()
        if self.local_world_size > count:
            raise UserError(
                f"--distributed: {self.local_world_size} processes on this machine and {count} CUDA devices, of which "
                f"each takes one: start torchrun with --nproc_per_node={count}, or give --device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return f"cuda:{self.local_rank}"

    def gather(self, value: Any) -> list[Any]:
        """See :class:`Ranks`."""
        own, sizes = self._sized(value)
        parts = [torch.empty_like(own) for _ in sizes]
        with _talking():
            dist.all_gather(parts, own)
        return [_decode(part[:size]) for part, size in zip(parts, sizes, strict=True)]

    def gather_to_first(self, value: Any) -> list[Any]:
        """See :class:`Ranks`."""
        own, sizes = self._sized(value)
        parts = [torch.empty_like(own) for _ in sizes] if self.is_first else []
        with _talking():
            dist.gather(own, parts or None)
        return [_decode(part[:size]) for part, size in zip(parts, sizes if parts else [], strict=True)]

    def _sized(self, value: object) -> tuple[torch.Tensor, list[int]]:
        """Return a value as bytes, as long as the longest of all, and the sizes of all."""
        own = _encode(value)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world_size)]
        with _talking():
            dist.all_gather(sizes, torch.tensor([len(own)]))
        numbers = [int(size) for size in sizes]
        return nn.functional.pad(own, (0, max(numbers) - len(own))), numbers

    def together(self, work: Callable[[], Value]) -> list[Value]:
        """See :class:`Ranks`."""
        outcome: dict[str, Any]
        try:
            outcome = {"value": work()}
        except RankLostError:
            raise
        except UserError as error:
            outcome = {"error": str(error)}
        except RunInterrupted as reason:
            outcome = {"reason": str(reason)}
        outcomes = self.gather(outcome)
        errors = [(rank, entry["error"]) for rank, entry in enumerate(outcomes) if "error" in entry]
        if errors:
            rank, text = errors[0]
            raise UserError(text if len(errors) == self.world_size else f"process {rank}: {text}")
        reasons = [entry["reason"] for entry in outcomes if "reason" in entry]
        if reasons:
            raise RunInterrupted(reasons[0])
        return [entry["value"] for entry in outcomes]

    def from_first(self, work: Callable[[], Value]) -> Value:
        """See :class:`Ranks`."""
        outcome: dict[str, Any] = {}
        if self.is_first:
            try:
                outcome = {"value": work()}
            except UserError as error:
                outcome = {"error": str(error)}
        outcome = self.gather(outcome)[0]
        if "error" in outcome:
            raise UserError(outcome["error"])
        return outcome["value"]

    def any_of(self, text: str) -> str:
        """See :class:`Ranks`."""
        if not self.total([bool(text)])[0]:
            return ""
        return next(filter(None, self.gather(text)))

    def total(self, numbers: Sequence[float]) -> list[float]:
        """See :class:`Ranks`."""
        return self.sum_(torch.tensor(numbers, dtype=torch.float64)).tolist()

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Ranks`."""
        with _talking():
            dist.all_reduce(tensor)
        return tensor

    def mean_(self, tensor: torch.Tensor) -> torch.Tensor:
        """See :class:`Ranks`."""
        return self.sum_(tensor).div_(self.world_size)

    @torch.no_grad()
    def average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """See :class:`Ranks`."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        # One message for all: what a small student's gradients cost is the number of messages, not their size.
        flat = self.mean_(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """See :class:`Ranks`."""
        for tensor in tensors:
            if tensor.numel():
                whole = tensor.contiguous()
                with _talking():
                    dist.broadcast(whole, 0)
                tensor.copy_(whole)

    def share_modules(self, modules: Iterable[nn.Module]) -> None:
        """See :class:`Ranks`."""
        for module in modules:
            self.share([*module.parameters(), *module.buffers()])

    def speaks(self, message: str) -> bool:
        """See :class:`Ranks`."""
        with contextlib.suppress(RuntimeError):
            number = self._store.add("said", 1)
            if not message:
                return number == 1
            return self._store.add(f"said/{hashlib.sha256(message.encode()).hexdigest()}", 1) == 1
        return True  # the store has gone: twice is better than never

    def leave(self) -> None:
        """See :class:`Ranks`."""
        dist.destroy_process_group()


ALONE = Ranks()
"""A run in one process."""
_current: list[Ranks] = []


def current() -> Ranks:
    """Return the processes that this one shares its run with."""
    return _current[-1] if _current else ALONE


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` has started, within this context; of one process it is a run like any other.

    Raises:
        UserError: If there is no ``torchrun``.
    """
    if os.environ.get("WORLD_SIZE") == "1":
        yield ALONE
        return
    group = ProcessGroup()
    _current.append(group)
    try:
        yield group
        group.leave()  # not after an error: it may wait for a process that has gone
    finally:
        _current.remove(group)


def leave_in_time(seconds: float = SECONDS_TO_LEAVE) -> None:
    """End this process some time after Ctrl-C, SIGTERM or SIGHUP, though it waits for others and no handler is called.

    Args:
        seconds: Until then it may leave by itself.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    # Python's own handlers have to wait until a call of a library returns. This descriptor is written to at once.
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def watch() -> None:
        writer.fileno()  # keeps it open
        while True:
            number = reader.recv(1)[0]
            if number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                time.sleep(seconds)
                os.write(2, b"\nanother process of this run does not answer: leaving, what was saved stays\n")
                os._exit(128 + number)

    threading.Thread(target=watch, daemon=True).start()


def _number(name: str) -> int:
    text = os.environ[name]
    if not text.isdecimal():
        raise UserError(f"{name} is '{text}', it must be a number: start several processes by torchrun")
    return int(text)


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """Say in one line that a process has gone, which each library says in its own way."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(part in text for part in _LOST):
            raise
        why = "" if "by peer" in text else f" ({shorten(' '.join(text.split()), 200)})"
        raise RankLostError(
            f"another process of this run has ended, or does not answer{why}: this one ends too"
        ) from error


def _encode(value: object) -> torch.Tensor:
    """Return plain values and tensors as bytes. Shape: (num_bytes,)."""
    file = io.BytesIO()
    torch.save(value, file)
    return torch.frombuffer(file.getbuffer(), dtype=torch.uint8)


def _decode(data: torch.Tensor) -> Any:
    return torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=True)
