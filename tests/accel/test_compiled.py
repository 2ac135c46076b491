"""Functions that are compiled for one set of sizes."""

from __future__ import annotations

import pytest
import torch

from foundation.accel import compiled


def test_a_function_is_traced_once_and_computes_the_same(monkeypatch):
    """The second call, with other numbers, does not run the function again."""
    monkeypatch.setattr(compiled, "generate_code", lambda graph, tensors, options: graph)
    calls = []

    def function(a, b):
        calls.append(a.shape)
        return a + b, (a * b).sum()

    made = compiled.CompiledFunction(function, torch.device("cpu"))
    for seed in range(2):
        a, b = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed)).unbind()
        total, product = made(a, b)
        assert torch.equal(total, a + b)
        torch.testing.assert_close(product, (a * b).sum())
    assert calls == [(5,)]


def test_a_branch_on_values_is_refused():
    """What is compiled must not depend on numbers: tracing stops instead of keeping the branch of the first call."""
    made = compiled.CompiledFunction(lambda a: (a if a.sum() > 0 else -a,), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="data-dependent"):
        made(torch.ones(3))
