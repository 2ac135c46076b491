"""Random numbers drawn in C are torch's own."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import pytest
import torch

from foundation.accel import uniform


def test_numbers_and_generator_are_those_of_torch():
    """Whatever is drawn in between by either, numbers and the generator's state are equal to the bit."""
    assert uniform.library() is not None, "this machine has no C compiler"
    ours, theirs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for shape in ((11, 16, 40), (3000,), (5,), (2, 4097), (1, 1)):
        drawn = uniform.uniform(shape, ours)
        assert torch.equal(drawn, torch.rand(*shape, generator=theirs))
        assert drawn.shape == shape
        assert torch.equal(torch.randn(3, generator=ours), torch.randn(3, generator=theirs))
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_torchs_defaults_do_not_matter():
    """Numbers are float32 on the generator's device, whatever a program has made torch's defaults."""
    drawn = [uniform.uniform((count,), torch.Generator().manual_seed(6)) for count in (5, 5000)]
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        again = [uniform.uniform((count,), torch.Generator().manual_seed(6)) for count in (5, 5000)]
        assert uniform._same_as_torch(uniform.library())
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert all(torch.equal(*both) for both in zip(drawn, again, strict=True))


def test_without_the_c_code_torch_draws(monkeypatch):
    """The same numbers come where nothing can be compiled."""
    drawn = uniform.uniform((5000,), torch.Generator().manual_seed(4))
    monkeypatch.setattr(uniform, "library", lambda: None)
    assert torch.equal(drawn, uniform.uniform((5000,), torch.Generator().manual_seed(4)))


def test_a_torch_with_another_generator_is_noticed(monkeypatch, caplog):
    """Code that draws other numbers, or reads another state, is not used."""
    function = uniform.library()
    assert not uniform._same_as_torch(lambda *args: None)
    # One that is right up to the end of the first words, and one that leaves the state as it was after the last ones.
    assert not uniform._same_as_torch(lambda state, out, count: function(state, out, min(count, 600)))

    def forgets(state, out, count):
        copied = ctypes.create_string_buffer(ctypes.string_at(state, uniform._STATE_BYTES), uniform._STATE_BYTES)
        function(copied if count == 1300 else state, out, count)

    assert not uniform._same_as_torch(forgets)
    monkeypatch.setattr(uniform, "_STATE_BYTES", 16)
    assert not uniform._same_as_torch(function)
    caplog.set_level("INFO")
    uniform.library.cache_clear()
    try:
        assert uniform.library() is None
    finally:
        uniform.library.cache_clear()
    assert "has another generator" in caplog.text


def test_a_generator_of_another_device_draws_by_itself(monkeypatch):
    """The C code reads the CPU's alone."""
    monkeypatch.setattr(uniform, "_draw", lambda *args: pytest.fail("the generator is not of the CPU"))
    monkeypatch.setattr(uniform, "_draw_by_torch", lambda shape, generator: (shape, generator))
    generator = SimpleNamespace(device=torch.device("cuda"))
    assert uniform.uniform((5000,), generator) == ((5000,), generator)
