"""Random numbers drawn in C are torch's own."""

from __future__ import annotations

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


def test_without_the_c_code_torch_draws(monkeypatch):
    """The same numbers come where nothing can be compiled."""
    drawn = uniform.uniform((5000,), torch.Generator().manual_seed(4))
    monkeypatch.setattr(uniform, "library", lambda: None)
    assert torch.equal(drawn, uniform.uniform((5000,), torch.Generator().manual_seed(4)))


def test_a_torch_with_another_generator_is_noticed(monkeypatch):
    """Code that draws other numbers, or reads another state, is not used."""
    function = uniform.library()
    assert not uniform._same_as_torch(lambda *args: None)
    monkeypatch.setattr(uniform, "_STATE_BYTES", 16)
    assert not uniform._same_as_torch(function)
