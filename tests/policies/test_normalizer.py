"""Observation normalisation."""

from __future__ import annotations

import copy

import pytest
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


@pytest.mark.parametrize("noise", [0.0, 5e-4])
def test_an_observation_that_has_not_varied_is_not_scaled(noise):
    """A command that is (almost) 3 in all data and 4 later comes in as 1, not as 100; its neighbour as ever."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(1000, 2, generator=generator)
    data[:, 0] = 3.0 + noise * data[:, 0]
    normalizer = ObsNormalizer(2)
    for part in data.split([1, 299, 700]):
        normalizer.update(part)
    later = normalizer(torch.tensor([[4.0, 2.0]]))
    assert later[0, 0] == pytest.approx(1.0, abs=1e-3)
    expected = (2.0 - data[:, 1].mean()) / (data[:, 1].std(correction=0) + 1e-2)
    assert later[0, 1] == pytest.approx(float(expected), rel=1e-5)
    assert normalizer.unvaried.tolist() == [True, False]


def test_an_observation_that_varies_in_later_data_of_the_fit_has_their_deviation():
    """Constant in the first hundred rows, +-1 in the next hundred: mean 0, deviation sqrt(1/2) (by hand)."""
    normalizer = ObsNormalizer(1)
    normalizer.update(torch.zeros(100, 1))
    assert normalizer(torch.ones(1, 1)).item() == 1.0
    normalizer.update(torch.tensor([[1.0], [-1.0]]).repeat(50, 1))
    assert normalizer(torch.ones(1, 1)).item() == pytest.approx(1.0 / (0.5**0.5 + 1e-2), rel=1e-6)


def test_what_hardly_varied_at_first_is_rescaled_once_it_varies():
    """Columns: constant and then of deviation 50, constant and then 2, deviation 0.005 and then 1, 1 and then 30."""
    generator = torch.Generator().manual_seed(1)
    normalizer = ObsNormalizer(4)
    normalizer.update(torch.randn(500, 4, generator=generator) * torch.tensor([0.0, 0.0, 0.005, 1.0]))
    before = normalizer.state_dict()["var"].clone()
    later = torch.randn(2000, 4, generator=generator) * torch.tensor([50.0, 2.0, 1.0, 30.0])
    assert normalizer.rescale_outliers(later) == [0, 2]
    size = normalizer(later).square().mean(0).sqrt()
    assert size[[0, 2]].tolist() == pytest.approx([1.0, 1.0], abs=0.02)
    assert torch.equal(normalizer.var[[1, 3]], before[[1, 3]])  # 2 is not much; what varied at first is frozen
    assert normalizer.rescale_outliers(later) == []


def test_moments_of_another_library_are_taken_as_they_are():
    """RSL-RL divides an observation of deviation 0 by 1e-2, and a teacher of RSL-RL's goes on doing so."""
    normalizer = ObsNormalizer(1)
    normalizer.set_moments(torch.zeros(1), torch.zeros(1))
    assert normalizer(torch.ones(1, 1)).item() == pytest.approx(100.0)
