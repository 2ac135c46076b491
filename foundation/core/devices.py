"""Names of devices: check one, and resolve ``auto``."""

from __future__ import annotations

import torch

from foundation.core.errors import UserError

_KINDS = ("cpu", "cuda", "mps", "xpu")
"""Devices that compute: torch also has names such as ``meta``, whose tensors hold no numbers."""


def resolve_device(device: str) -> str:
    """Return the device to compute on; ``auto`` is the first GPU where there is one.

    Raises:
        UserError: If torch knows no such device, or does not see it here.
    """
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    check_device(device)
    return device


def check_device(device: str) -> None:
    """Refuse a device that torch does not have.

    Raises:
        UserError: If torch knows no such device, or does not see it here.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError:
        parsed = None
    if parsed is None or parsed.type not in _KINDS:
        raise UserError(f"--device {device}: not a torch device; use cpu or cuda:0")
    if parsed.type == "cpu" and parsed.index:
        raise UserError(f"--device {device}: torch has one CPU device; use --device cpu")
    if parsed.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (parsed.index or 0) >= count:
            raise UserError(f"--device {device}: torch sees {count} CUDA devices here; use --device cpu")
    elif parsed.type != "cpu" and not _is_there(parsed):
        raise UserError(f"--device {device}: torch sees no such device here; use --device cpu")


def _is_there(device: torch.device) -> bool:
    """Whether torch can compute on a device of Apple's or Intel's."""
    if device.type == "mps":
        return torch.backends.mps.is_available() and not device.index
    return torch.xpu.is_available() and (device.index or 0) < torch.xpu.device_count()
