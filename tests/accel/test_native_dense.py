"""Stacked perceptrons in C compute what torch computes, whatever their sizes, and without a compiler torch does it."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

from foundation.accel import native_dense

NETWORKS = 5


def layers(sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(NETWORKS, a, b, generator=generator) * 0.3 for a, b in pairwise(sizes)]
    return weights, [torch.randn(NETWORKS, 1, b, generator=generator) for b in sizes[1:]]


def by_torch(x, weights, biases, activation):
    x = x.double()
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = activation(torch.baddbmm(bias.double(), x, weight.double()))
    return torch.baddbmm(biases[-1].double(), x, weights[-1].double()), x


@pytest.mark.parametrize("activation", [nn.ELU(), nn.ReLU(), nn.Identity()])
@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("sizes", [(26, 64, 64, 4), (26, 256, 128, 4), (3, 5, 1), (22, 100, 17, 2), (9, 3), (7, 64)])
def test_the_c_code_is_the_product_and_the_activation(sizes, rows, activation):
    """Panels, odd widths and odd numbers of rows agree with double precision to a few float32 roundings."""
    assert native_dense.library() is not None, "this machine has no C compiler"
    weights, biases = layers(sizes)
    x = torch.randn(rows, NETWORKS, sizes[0], generator=torch.Generator().manual_seed(1)).transpose(0, 1)
    mlp = native_dense.StackedMlp(weights, biases, native_dense.fused(activation))
    wanted, hidden = by_torch(x, weights, biases, activation)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            y, features = mlp(x)
        finally:
            torch.set_num_threads(1)
        torch.testing.assert_close(y.double(), wanted, rtol=2e-6, atol=2e-6 * float(wanted.abs().max()))
        assert (features is None) == (len(sizes) == 2)
        if features is not None:
            torch.testing.assert_close(features.double(), hidden, rtol=2e-6, atol=2e-6 * float(hidden.abs().max()))
    assert torch.equal(mlp(x, with_features=False)[0], y)


def test_elu_is_exact_over_its_range_and_carries_nan():
    """The exponential is within 1e-7 of double precision from -100 to 0; NaN stays NaN, and infinities their limits."""
    x = torch.cat([torch.linspace(-100.0, 4.0, 20_001), torch.tensor([float("nan"), float("inf"), float("-inf")])])
    rows = x.view(1, -1, 1)
    one = torch.ones(1, 1, 1)
    y = native_dense.StackedMlp([one, one], [0 * one, 0 * one], 1)(rows)[0].flatten()
    torch.testing.assert_close(y.double(), nn.functional.elu(x.double()), rtol=1e-7, atol=1e-7, equal_nan=True)


def test_without_the_c_code_the_stack_gives_the_same(tmp_path):
    """With ``FOUNDATION_NATIVE=0`` nothing is compiled, and a stack's outputs agree to rounding."""
    script = (
        "import sys, torch; from foundation.accel import native_dense;"
        "from foundation.teachers.ensemble import load_ensemble;"
        "from foundation.teachers.manifest import find_teachers;"
        "teachers = load_ensemble(find_teachers(sys.argv[1]));"
        "obs = torch.linspace(-1, 1, 6 * 26).view(6, 26);"
        "torch.save((native_dense.library() is not None, teachers(obs)), sys.argv[2])"
    )
    from many_teachers import write_set

    folder = str(write_set(tmp_path, 3).parent)
    results = []
    for native in ("0", "1"):
        env = os.environ | {"FOUNDATION_NATIVE": native, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        subprocess.run([sys.executable, "-c", script, folder, str(tmp_path / native)], check=True, env=env)
        results.append(torch.load(tmp_path / native))
    assert [found for found, _ in results] == [False, True]
    assert len(list((tmp_path / "cache").rglob("*.so"))) == 1
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-5, atol=1e-6)
