"""A device is one that torch computes on here; ``auto`` is the first GPU, or the CPU."""

from __future__ import annotations

import pytest
import torch

from foundation.core.devices import check_device, resolve_device
from foundation.core.errors import UserError


@pytest.mark.parametrize(("gpus", "device"), [(0, "cpu"), (2, "cuda:0")])
def test_auto_is_the_first_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, gpus: int, device: str) -> None:
    """Without a GPU it is the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    assert resolve_device("auto") == device


def test_a_device_beyond_those_that_torch_sees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two GPUs, ``cuda:1`` is the last; ``cuda`` is the first."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for device in ("cuda", "cuda:1", "cpu"):
        assert resolve_device(device) == device
    with pytest.raises(UserError, match=r"--device cuda:2: torch sees 2 CUDA devices here; use --device cpu"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("device", ["mps", "xpu", "xpu:3"])
def test_a_kind_of_device_that_this_machine_lacks_is_refused(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's and Intel's too: torch itself would end in a traceback of its own."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: False)
    with pytest.raises(UserError, match=f"--device {device}: torch sees no such device here; use --device cpu"):
        check_device(device)


def test_the_cpu_is_one_device() -> None:
    """Torch names tensors ``cpu:9`` and cannot load a file onto them: refused before a run trains for hours."""
    check_device("cpu:0")
    with pytest.raises(UserError, match=r"--device cpu:9: torch has one CPU device; use --device cpu"):
        check_device("cpu:9")


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:x", "CPU", ""])
def test_what_does_not_compute_is_no_device(device: str) -> None:
    """Neither other spellings, nor torch's ``meta``, whose tensors hold no numbers."""
    with pytest.raises(UserError, match="not a torch device"):
        check_device(device)
