"""Whether a storage fits, asked before it is allocated."""

from __future__ import annotations

import math

import torch

from foundation.errors import UserError


def check_memory(num_bytes: int, device: torch.device) -> None:
    """Refuse a storage that would not fit, before it is allocated.

    Raises:
        UserError: With the size and what to change.
    """
    available = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_host_memory()
    if num_bytes > available:
        raise UserError(
            f"The dataset would take {num_bytes / 1e9:.2f} GB but {device} has {available / 1e9:.2f} GB free: lower "
            "dataset.size or dataset.memory_gb, or store it as dataset.dtype=float16."
        )


def available_host_memory() -> float:
    """Return the memory that this process can still take [bytes]; infinite where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return float(line.split()[1]) * 1024.0
    except OSError:
        pass
    return math.inf
