"""A policy as a list of plain operations with their numbers, which needs no PyTorch: what exported files are made from.

An operation reads values by name: ``"obs"``, or what an earlier one gives. Those with a memory own some of the columns
of the policy's state. The kinds are the layers of :mod:`foundation.policies.layers`, by the same names and formulas.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy

from foundation.deploy.golden import FloatArray

OBS = "obs"
"""Name of the observation among the values that operations read."""

Option = str | int | float | tuple[int, ...]
"""A setting of an operation that is no array."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """Columns of the state that belong to one operation."""

    start: int
    """The first of them."""
    initial: FloatArray
    """Their values when an episode begins. Shape: (size,)."""

    @property
    def size(self) -> int:
        """Number of columns."""
        return self.initial.size


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One layer."""

    kind: str
    """Such as ``dense``; see :mod:`foundation.policies.layers`."""
    name: str
    """Name of its output."""
    inputs: tuple[str, ...]
    """Names of the values that it reads."""
    shape: tuple[int, ...]
    """Shape of its output, without the dimension of environments."""
    memory: tuple[Memory, ...] = ()
    """What it remembers."""
    arrays: Mapping[str, FloatArray] = field(default_factory=dict)
    """Its weights by name."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """Its other settings by name."""

    @property
    def size(self) -> int:
        """Number of elements of its output."""
        return prod(self.shape)

    def number(self, name: str) -> float:
        """Return a setting that is a number."""
        value = self.options[name]
        if not isinstance(value, int | float):
            raise TypeError(f"{self.kind}: {name} is no number")
        return float(value)

    def text(self, name: str) -> str:
        """Return a setting that is a word."""
        value = self.options[name]
        if not isinstance(value, str):
            raise TypeError(f"{self.kind}: {name} is no word")
        return value

    def pair(self, name: str) -> tuple[int, int]:
        """Return a setting that is two integers."""
        value = self.options[name]
        if not isinstance(value, tuple):
            raise TypeError(f"{self.kind}: {name} is no pair")
        first, second = value
        return first, second


@dataclass(frozen=True, kw_only=True, eq=False)
class Program:
    """The operations of one policy, each after those that it reads."""

    num_obs: int
    """Size of the observation."""
    operations: tuple[Operation, ...]
    """In the order in which they are computed."""
    output: str
    """The value that is the action."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each value, without the dimension of environments."""
        return {OBS: (self.num_obs,)} | {operation.name: operation.shape for operation in self.operations}

    @property
    def num_actions(self) -> int:
        """Size of the action."""
        return prod(self.shapes[self.output])

    @property
    def state_size(self) -> int:
        """Number of columns of the state."""
        return sum(memory.size for operation in self.operations for memory in operation.memory)

    @property
    def initial_state(self) -> FloatArray:
        """The state when an episode begins. Shape: (state_size,)."""
        state = numpy.zeros(self.state_size, numpy.float32)
        for operation in self.operations:
            for memory in operation.memory:
                state[memory.start : memory.start + memory.size] = memory.initial
        return state

    @property
    def num_weights(self) -> int:
        """Number of weights, normaliser and bounds included."""
        return sum(array.size for operation in self.operations for array in operation.arrays.values())
