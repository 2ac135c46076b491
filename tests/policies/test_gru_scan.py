"""A GRU layer over time with its gradient written out, against torch's cell and autograd."""

from __future__ import annotations

import pytest
import torch

from foundation.policies.gru_scan import gru_scan

STEPS, ENVS, INPUTS, SIZE = 13, 7, 5, 6


def case(seed: int = 0, dtype: torch.dtype = torch.float64):
    """Return inputs, state, weights, resets and the learned state, all but the resets with gradients."""
    torch.manual_seed(seed)
    layer = torch.nn.GRU(INPUTS, SIZE, dtype=dtype)
    x, state = torch.randn(STEPS, ENVS, INPUTS, dtype=dtype), torch.randn(ENVS, SIZE, dtype=dtype)
    initial, resets = torch.randn(SIZE, dtype=dtype), torch.rand(STEPS, ENVS) < 0.2
    return x.requires_grad_(), state.requires_grad_(), layer.all_weights[0], resets, initial.requires_grad_()


def by_cells(x, state, weights, resets, initial):
    """Do the same with torch's cell, step by step."""
    outputs = []
    for step in range(x.shape[0]):
        if resets is not None:
            state = torch.where(resets[step].unsqueeze(-1), initial, state)
        state = torch.gru_cell(x[step], state, *weights)
        outputs.append(state)
    return torch.stack(outputs), state


@pytest.mark.parametrize("reset_rate", [None, 0.0, 0.2, 1.0])
def test_values_and_every_gradient_equal_autograds(reset_rate):
    """Outputs, last state and all seven gradients agree with autograd through torch's cell to 1e-12 in float64."""
    x, state, weights, _, initial = case()
    resets = None if reset_rate is None else torch.rand(STEPS, ENVS) < reset_rate
    leaves = [x, state, initial, *weights]
    results = []
    for function in (by_cells, gru_scan):
        out, last = function(x, state, weights, resets, initial)
        loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum() + last.square().sum()
        results.append([out, last, *torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_many_passes_do_not_share_memory():
    """Several passes forward before the first one back, and passes without gradients in between, stay apart."""
    cases = [case(seed) for seed in range(3)]
    outputs = [gru_scan(*c)[0] for c in cases]
    with torch.no_grad():
        spare = gru_scan(*case(9))[0]
        kept = spare.clone()
    for inputs, out in zip(cases, outputs, strict=True):
        expected = by_cells(*inputs)[0]
        torch.testing.assert_close(out, expected)
        ours = torch.autograd.grad(out.square().sum(), inputs[0])[0]
        torch.testing.assert_close(ours, torch.autograd.grad(expected.square().sum(), inputs[0])[0])
    assert torch.equal(spare, kept)


def test_gradient_can_be_taken_once():
    """A second pass back is refused instead of answered wrongly."""
    inputs = case()
    loss = gru_scan(*inputs)[0].sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


def test_mixed_precision_computes_in_float32():
    """Under autocast a layer fed with bfloat16 gives float32 and the same numbers to bfloat16's rounding."""
    x, state, weights, resets, initial = case(dtype=torch.float32)
    expected = by_cells(x, state, weights, resets, initial)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, _ = gru_scan(x.bfloat16(), state, weights, resets, initial)
    assert out.dtype == torch.float32
    assert (out - expected).abs().max() < 0.02
