"""Free memory, checked before a large allocation."""

from __future__ import annotations

import math

import torch

from foundation.core.errors import UserError


def refuse_beyond_memory(num_bytes: float, device: torch.device | str, what: str, advice: str) -> None:
    """Raise ``UserError`` for an allocation that would not fit, before it is made.

    Args:
        num_bytes: Lower bound of its size [bytes].
        device: Where it would be allocated.
        what: What the user asked for, such as ``--num_envs 100000000``.
        advice: What to do.

    Raises:
        UserError: If it does not fit, with both sizes.
    """
    available = free_memory(torch.device(device))
    if num_bytes > available:
        raise UserError(
            f"{what} would take at least {num_bytes / 1e9:.1f} GB and {device} has {available / 1e9:.1f} GB free: "
            f"{advice}"
        )


def available_host_memory() -> float:
    """Return the memory that this process can still take [bytes]; infinite where the system does not state it."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024.0
    except OSError:
        pass
    return math.inf


def free_memory(device: torch.device) -> float:
    """Return the free memory of a device [bytes]."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_host_memory()
