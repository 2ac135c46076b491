"""Check whether a storage fits before it is allocated."""

from __future__ import annotations

import logging

import torch

from foundation.core.errors import UserError
from foundation.core.memory import free_memory

logger = logging.getLogger(__name__)


def located(device: torch.device | str) -> torch.device:
    """Return a device as its tensors name it: ``cuda`` is ``cuda:0``, or whichever is current.

    Raises:
        UserError: If there is no such device here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"The dataset cannot be on '{device}' here: {str(error).splitlines()[0]}") from None


def check_memory(num_bytes: int, device: torch.device) -> None:
    """Refuse a storage that would not fit, before it is allocated.

    Raises:
        UserError: With the size and what to change.
    """
    available = free_memory(device)
    if num_bytes > available:
        raise UserError(
            f"The dataset would take {num_bytes / 1e9:.2f} GB but {device} has {available / 1e9:.2f} GB free: lower "
            "dataset.size or dataset.memory_gb, or store it as dataset.dtype=float16."
        )


def empty_pinned(
    shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, compute_device: torch.device
) -> torch.Tensor:
    """Allocate a tensor; on the host, for a GPU that computes, in pinned memory where the system gives it."""
    if device.type == "cpu" and compute_device.type == "cuda":
        try:
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        except RuntimeError as error:
            logger.warning("No pinned memory for the dataset (%s): transfers are slower.", str(error).splitlines()[0])
    return torch.empty(shape, dtype=dtype, device=device)
