"""Uniform random numbers on the CPU, the same as ``torch.rand`` draws, in less time where C can be compiled.

torch calls its Mersenne Twister once for every number; the C source beside this file makes many at once, with the
generator's own state.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from foundation.accel import native

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("uniform.c")
FEW = 2048
"""Numbers up to which to read and set the generator's state takes longer than torch."""
_STATE_BYTES = 5056
"""Size of the state that the C source knows."""


@cache
def library() -> Any:
    """Return the compiled function; None where it cannot be had, or does not draw what this torch draws."""
    without = "initial states are drawn by torch, one number at a time"
    loaded = native.load(SOURCE, without)
    if loaded is None:
        return None
    function = loaded.uniform_float
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    function.restype = None
    if _same_as_torch(function):
        return function
    logger.info("%s: torch %s has another generator than the one that is known", without, torch.__version__)
    return None


def _same_as_torch(function: Any) -> bool:
    """Return whether numbers and states agree, in the middle of the generator's words and across their end."""
    ours, theirs = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    if len(ours.get_state()) != _STATE_BYTES:
        return False
    same = [torch.equal(_draw(function, (n,), ours), _draw_by_torch((n,), theirs)) for n in (5, 619, 1, 1300)]
    return all(same) and torch.equal(ours.get_state(), theirs.get_state())


def _draw(function: Any, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    # What the C source writes, whatever torch's defaults are.
    out = torch.empty(shape, dtype=torch.float32, device="cpu")
    state = generator.get_state()
    function(state.data_ptr(), out.data_ptr(), out.numel())
    generator.set_state(state)
    return out


def _draw_by_torch(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator, device=generator.device, dtype=torch.float32)


def uniform(shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """Return ``torch.rand(shape)`` of a generator, on its device, in float32; both go on alike from there."""
    few = torch.Size(shape).numel() <= FEW
    if few or generator.device.type != "cpu" or library() is None:
        return _draw_by_torch(shape, generator)
    return _draw(library(), shape, generator)
