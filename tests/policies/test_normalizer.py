"""Observation normalisation."""

from __future__ import annotations

import copy

import torch

from foundation.policies.normalizer import ObsNormalizer


def test_identity_until_fitted():
    """A normaliser without data changes nothing, bit for bit, also after a round trip through a state_dict."""
    x = torch.randn(50, 4) * 100
    first, second = ObsNormalizer(4), ObsNormalizer(4)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), x) and torch.equal(second(x), x)


def test_moments_are_those_of_all_rows():
    """Batches of any size and shape merge to the mean and variance of all rows together (NumPy in float64)."""
    data = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 50.0, 0.01]) + 7.0
    normalizer = ObsNormalizer(3)
    start = 0
    for size in (1, 3, 200, 496, 300):
        part = data[start : start + size]
        normalizer.update(part.reshape(2, -1, 3) if size % 2 == 0 else part)
        start += size
    every = data.double().numpy()
    assert torch.allclose(normalizer.mean, torch.tensor(every.mean(0)).float(), rtol=1e-6)
    assert torch.allclose(normalizer.var, torch.tensor(every.var(0)).float(), rtol=1e-5)
    assert normalizer.count == 1000
    expected = (every - every.mean(0)) / (every.std(0) + 1e-2)
    assert torch.allclose(normalizer(data).double(), torch.tensor(expected), atol=1e-4)


def test_state_dict_carries_all_of_it():
    """Another normaliser with the same state_dict normalises alike and goes on counting alike."""
    first, second = ObsNormalizer(5), ObsNormalizer(5)
    first.update(torch.randn(64, 5) * 3 + 1)
    second.load_state_dict(first.state_dict())
    more, x = torch.randn(32, 5), torch.randn(7, 5)
    assert torch.equal(first(x), second(x)) and torch.equal(first(x), copy.deepcopy(first)(x))
    first.update(more)
    second.update(more)
    assert torch.equal(first(x), second(x))


def test_constant_observation_is_finite():
    """An observation that never changes is divided by eps, not by zero."""
    normalizer = ObsNormalizer(1)
    normalizer.update(torch.full((10, 1), 3.0))
    assert torch.allclose(normalizer(torch.tensor([[3.01]])), torch.tensor([[1.0]]), atol=1e-3)
