"""Chunks of one size made from chunks of another: the same rows, in the same order of time within an environment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch

Block = dict[str, torch.Tensor]
"""Tensors of some chunks, each (chunks, steps, envs, ...)."""


def count_chunks(runs: Iterable[tuple[str, int]], shape: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, bool]:
    """Return how many chunks :func:`rechunk` makes, and whether some rows only fill up.

    Args:
        runs: The run and the number of chunks of each file, in order.
        shape: Env steps and environments of the chunks that there are.
        wanted: The same of those to make.
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
    lanes = sum(math.ceil(length / wanted[0]) for length in steps) * shape[1]
    chunks = math.ceil(lanes / wanted[1])
    return chunks, chunks * wanted[0] * wanted[1] > sum(steps) * shape[1]


def rechunk(blocks: Iterable[tuple[str, Block]], wanted: tuple[int, int]) -> Iterator[Block]:
    """Make chunks of other sizes. Rows that are wanting are filled up with copies of episode -1, which has no weight.

    Args:
        blocks: The run that each block is of, and its tensors, ``episode`` and ``resets`` among them. Blocks of one
            run follow each other in time.
        wanted: Env steps and environments of a chunk.

    Yields:
        Tensors of shape (chunks, *wanted, ...). Chunks that have the wanted sizes come out as they are.
    """
    lanes: Block | None = None
    for part in _cut(blocks, wanted[0]):
        if part["rows"].shape[2] == wanted[1] and lanes is None:
            yield part
            continue
        flat = {name: tensor.transpose(1, 2).flatten(0, 1) for name, tensor in part.items()}
        lanes = flat if lanes is None else {name: torch.cat([lanes[name], flat[name]]) for name in flat}
        whole = len(lanes["rows"]) // wanted[1] * wanted[1]
        if whole:
            yield _stack({name: tensor[:whole] for name, tensor in lanes.items()}, wanted[1])
        lanes = {name: tensor[whole:] for name, tensor in lanes.items()} if whole < len(lanes["rows"]) else None
    if lanes is not None:
        yield _stack(_filled(lanes, wanted[1]), wanted[1])


def _cut(blocks: Iterable[tuple[str, Block]], steps: int) -> Iterator[Block]:
    """Cut each run's time into stretches of ``steps``, the last of a run filled up."""
    rest: Block | None = None
    last = None
    for run, block in blocks:
        if run != last and rest is not None:
            yield {name: tensor.unsqueeze(0) for name, tensor in _filled(rest, steps).items()}
            rest = None
        last = run
        if rest is None and block["rows"].shape[1] == steps:
            yield block
            continue
        time = {name: tensor.flatten(0, 1) for name, tensor in block.items()}
        time = time if rest is None else {name: torch.cat([rest[name], time[name]]) for name in time}
        whole = len(time["rows"]) // steps * steps
        if whole:
            yield {name: tensor[:whole].unflatten(0, (-1, steps)) for name, tensor in time.items()}
        rest = {name: tensor[whole:] for name, tensor in time.items()} if whole < len(time["rows"]) else None
    if rest is not None:
        yield {name: tensor.unsqueeze(0) for name, tensor in _filled(rest, steps).items()}


def _filled(block: Block, length: int) -> Block:
    """Repeat the last entry of each tensor up to a length; what is repeated belongs to no episode."""
    missing = length - len(block["rows"])
    filled = {name: torch.cat([t, t[-1:].expand(missing, *t.shape[1:])]) for name, t in block.items()}
    if missing:
        filled["episode"][-missing:] = -1
        filled["resets"][-missing:] = True
    return filled


def _stack(lanes: Block, envs: int) -> Block:
    """Put stretches of time of one environment each, (lanes, steps, ...), side by side."""
    return {name: tensor.unflatten(0, (-1, envs)).transpose(1, 2).contiguous() for name, tensor in lanes.items()}
