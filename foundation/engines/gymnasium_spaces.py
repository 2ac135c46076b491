"""Spaces of gymnasium as tensors: observation groups of a space, and actions from [-1, 1] or an index to a space."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from foundation.core.errors import UserError


class Leaf(NamedTuple):
    """A part of the observation, a group of its own."""

    name: str
    path: tuple[Any, ...]
    convert: Callable[[np.ndarray], np.ndarray]
    """From (num_envs, *shape) to the group, a copy."""


class Observations:
    """From batches of a space's observations to named groups.

    One part alone is the group ``policy``; those of a ``Dict`` have its keys, dots between nested ones. Images (uint8,
    0 to 255, of two or three dimensions) stay uint8, channels first. All else is flat: bool and other uint8 as uint8,
    ``Discrete`` and ``MultiDiscrete`` one-hot, and numbers as float32.
    """

    def __init__(self, space: spaces.Space, task: str):
        self.leaves = list(_leaves(space, (), task))

    def __call__(self, obs: Any) -> dict[str, np.ndarray]:
        """Convert a batch. Shape of each group: (num_envs, ...)."""
        groups: dict[str, np.ndarray] = {}
        for leaf in self.leaves:
            part = obs
            for key in leaf.path:
                part = part[key]
            groups[leaf.name] = leaf.convert(np.asarray(part))
        return groups


def _leaves(space: spaces.Space, path: tuple[Any, ...], task: str) -> Iterator[Leaf]:
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from _leaves(part, (*path, key), task)
        return
    if isinstance(space, spaces.Tuple):
        for index, part in enumerate(space.spaces):
            yield from _leaves(part, (*path, index), task)
        return
    name = ".".join(map(str, path)) or "policy"
    if isinstance(space, spaces.Box):
        yield Leaf(name, path, _convert_box(space))
    elif isinstance(space, spaces.Discrete):
        yield Leaf(name, path, lambda x: _one_hot(x[:, None] - space.start, [int(space.n)]))
    elif isinstance(space, spaces.MultiDiscrete):
        start = space.start.reshape(-1)
        counts = [int(n) for n in space.nvec.reshape(-1)]
        yield Leaf(name, path, lambda x: _one_hot(x.reshape(len(x), -1) - start, counts))
    elif isinstance(space, spaces.MultiBinary):
        yield Leaf(name, path, lambda x: x.reshape(len(x), -1).astype(np.uint8))
    else:
        where = f" ('{name}')" if path else ""
        raise UserError(
            f"--task {task}: observations{where} of {type(space).__name__} have no fixed size: not supported"
        )


def _convert_box(space: spaces.Box) -> Callable[[np.ndarray], np.ndarray]:
    kind = np.uint8 if space.dtype in (np.uint8, np.bool_) else np.float32
    is_image = (
        space.dtype == np.uint8 and len(space.shape) in (2, 3) and space.low.min() == 0 and space.high.max() == 255
    )
    if not is_image:
        return lambda x: x.reshape(len(x), -1).astype(kind)
    if len(space.shape) == 2:
        return lambda x: x[:, None].astype(np.uint8)
    if space.shape[-1] < space.shape[0]:
        return lambda x: x.transpose(0, 3, 1, 2).copy()
    return lambda x: x.astype(np.uint8)


def _one_hot(indices: np.ndarray, counts: list[int]) -> np.ndarray:
    """Shape: (num_envs, len(counts)) to (num_envs, sum(counts))."""
    parts = [np.eye(count, dtype=np.float32)[indices[:, i]] for i, count in enumerate(counts)]
    return np.concatenate(parts, axis=1)


class Actions(NamedTuple):
    """From this project's actions to a batch of a space's."""

    size: int
    """Numbers of an action."""
    choices: tuple[int, ...] | None
    """Choices of each number that is an index; None where actions are continuous."""
    range: tuple[tuple[float, float], ...] | None
    """Lowest and highest of each continuous action; None where they are indices."""
    convert: Callable[[torch.Tensor], np.ndarray]

    def __call__(self, actions: torch.Tensor) -> np.ndarray:
        """Convert. Shape: (num_envs, size) to (num_envs, *shape of the space)."""
        return self.convert(actions)


def make_actions(space: spaces.Space, task: str, how: str) -> Actions:
    """Return what converts actions for a space.

    Indices are rounded, and those beyond the choices are the nearest choice; what is NaN is 0. Continuous actions are
    clipped to the bounds, after they are mapped from [-1, 1] to them where ``how`` is ``scale``.

    Raises:
        UserError: If the space is of another kind, or ``scale`` meets an action without bounds.
    """
    if isinstance(space, spaces.Discrete):
        counts = np.array([space.n])
        start = np.array([space.start])
        shape = ()
    elif isinstance(space, spaces.MultiDiscrete):
        counts = space.nvec.reshape(-1)
        start = space.start.reshape(-1)
        shape = space.shape
    elif isinstance(space, spaces.MultiBinary):
        counts = np.full(int(np.prod(space.shape)), 2)
        start = np.zeros(1, dtype=int)
        shape = space.shape
    elif isinstance(space, spaces.Box):
        return _continuous(space, task, how)
    else:
        raise UserError(
            f"--task {task}: actions of {type(space).__name__} are not supported; flatten them in a wrapper"
        )

    def indices(actions: torch.Tensor) -> np.ndarray:
        chosen = np.nan_to_num(actions.detach().cpu().double().numpy()).round().clip(0, counts - 1)
        return (chosen.astype(np.int64) + start).reshape(len(chosen), *shape)

    return Actions(len(counts), tuple(int(n) for n in counts), None, indices)


def _continuous(space: spaces.Box, task: str, how: str) -> Actions:
    low, high = (bound.reshape(-1).astype(np.float64) for bound in (space.low, space.high))
    scaled = how == "scale"
    if scaled and not np.isfinite(high - low).all():
        raise UserError(f"env.actions=scale: an action of {task} has no bounds; use env.actions=clip")
    is_whole = np.issubdtype(space.dtype, np.integer)

    def bounded(actions: torch.Tensor) -> np.ndarray:
        values = actions.detach().cpu().double().numpy()
        if scaled:
            values = low + (values.clip(-1.0, 1.0) + 1.0) * 0.5 * (high - low)
        values = values.clip(low, high)
        return (values.round() if is_whole else values).astype(space.dtype).reshape(len(values), *space.shape)

    ends = [(-1.0, 1.0)] * len(low) if scaled else [(float(a), float(b)) for a, b in zip(low, high, strict=True)]
    return Actions(len(low), None, tuple(ends), bounded)
