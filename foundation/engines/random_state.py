"""The process's random numbers, kept apart for environments that draw from the global generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class RandomState:
    """The process's random numbers, kept apart for one user of them.

    The environments of Isaac Lab and mjlab draw from the global generators (and seed them). Inside :meth:`active` these
    are this object's; outside they go on as if nothing had been drawn. So an evaluation does not disturb learning, and
    the same seed gives the same episodes whatever else draws numbers.
    """

    def __init__(self) -> None:
        self._state = _global_random_state()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Use this state in the ``with`` block, and put the others' back after it."""
        outside = _global_random_state()
        _set_global_random_state(self._state)
        try:
            yield
        finally:
            self._state = _global_random_state()
            _set_global_random_state(outside)


def _global_random_state() -> tuple[Any, ...]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda


def _set_global_random_state(state: tuple[Any, ...]) -> None:
    python, numpy, cpu, cuda = state
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda is not None:
        torch.cuda.set_rng_state(cuda)
