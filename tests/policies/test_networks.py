"""Perceptrons, recurrent cores, action distributions."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from foundation.core.errors import UserError
from foundation.policies.distribution import Beta, Gaussian, Heteroscedastic
from foundation.policies.mlp import build_mlp, resolve_activation
from foundation.policies.rnn import RecurrentCore


def test_mlp_layers():
    """A [5, 3] perceptron is Linear, activation, Linear, activation, Linear, in RSL-RL's numbering."""
    net = build_mlp(2, [5, 3], 4, "lrelu")
    assert [type(layer) for layer in net] == [nn.Linear, nn.LeakyReLU, nn.Linear, nn.LeakyReLU, nn.Linear]
    assert net(torch.zeros(7, 6, 2)).shape == (7, 6, 4)
    assert build_mlp(2, [], 4)(torch.zeros(1, 2)).shape == (1, 4)


def test_unknown_activation_names_the_nearest():
    """A misspelt activation is answered with the one that was meant."""
    with pytest.raises(UserError, match="'relu'"):
        resolve_activation("reluu")


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_core_is_torchs_own(kind, layers):
    """Step by step with resets, the core equals nn.GRU / nn.LSTM run by hand on every episode alone."""
    torch.manual_seed(layers)
    core = RecurrentCore(kind, 5, 6, layers)
    steps, envs = 30, 4
    x, resets = torch.randn(steps, envs, 5), torch.rand(steps, envs) < 0.2
    expected = torch.empty(steps, envs, 6)
    for env in range(envs):
        begins = [0, *[t for t in range(1, steps) if resets[t, env]], steps]
        for start, end in pairwise(begins):
            expected[start:end, env] = core.rnn(x[start:end, env])[0]
    state, out = core.initial_state(envs), []
    for t in range(steps):
        state = core.reset_state(state, resets[t])
        y, state = core.step(x[t], state)
        out.append(y)
    assert torch.allclose(torch.stack(out), expected, atol=1e-6)
    fused, final = core.sequence(x, core.initial_state(envs), resets)
    assert torch.allclose(fused, expected, atol=1e-6) and torch.allclose(final, state, atol=1e-6)
    packed, final = core._split(x, core.initial_state(envs), resets)  # what a GPU does
    assert torch.allclose(packed, expected, atol=1e-6) and torch.allclose(final, state, atol=1e-6)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
@pytest.mark.parametrize("path", ["sequence", "_split"])
def test_core_gradients_do_not_cross_resets(kind, path):
    """Gradients of the fused sequence equal those of the step loop, and none flows back over an episode's start."""
    torch.manual_seed(0)
    core = RecurrentCore(kind, 3, 4, 2, learn_initial_state=True)
    resets = torch.zeros(8, 2, dtype=torch.bool)
    resets[5, 0] = resets[0, 1] = True
    x = torch.randn(8, 2, 3, requires_grad=True)
    state = core.reset_state(torch.randn(2, core.state_size), resets[0])
    getattr(core, path)(x, state, resets)[0][7, 0].sum().backward()
    assert x.grad is not None
    assert bool((x.grad[:5] == 0).all()) and bool((x.grad[:, 1] == 0).all()) and bool((x.grad[5:, 0] != 0).all())
    assert core.initial is not None and core.initial.grad is not None and bool((core.initial.grad != 0).any())
    fused = [p.grad.clone() for p in core.parameters() if p.grad is not None]
    core.zero_grad()
    state, out = torch.zeros(2, core.state_size), torch.empty(0)
    for t in range(8):
        out, state = core.step(x[t], core.reset_state(state, resets[t]))
    out[0].sum().backward()
    looped = [p.grad for p in core.parameters() if p.grad is not None]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(fused, looped, strict=True))


def test_beta_moments_and_samples():
    """Mean and deviation are those of torch.distributions.Beta scaled to the range; samples have them too."""
    head, raw = Beta((-2.0, 4.0)), torch.tensor([[0.3, -1.0, 2.0, 0.5]])
    mean, std = head(raw)
    params = nn.functional.softplus(raw) + 1
    reference = torch.distributions.Beta(params[:, :2], params[:, 2:])
    assert torch.allclose(mean, reference.mean * 6 - 2) and torch.allclose(std, reference.stddev * 6)
    generator = torch.Generator().manual_seed(0)
    draws = head.sample(mean.expand(100_000, 2), std.expand(100_000, 2), generator)
    assert torch.allclose(draws.mean(0), mean[0], atol=0.03) and torch.allclose(draws.std(0), std[0], atol=0.03)
    assert draws.min() >= -2 and draws.max() <= 4


def test_gaussian_samples_follow_the_generator():
    """The same generator seed gives the same draws, another seed others; their moments are as stated."""
    head = Gaussian(torch.tensor([0.5, 2.0]))
    mean, std = head(torch.zeros(50_000, 2))
    first, again, other = (head.sample(mean, std, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.allclose(first.std(0), torch.tensor([0.5, 2.0]), rtol=0.02)


def test_heteroscedastic_splits_and_bounds():
    """The first half is the mean, the second the deviation or its logarithm, within the bounds."""
    raw = torch.tensor([[1.0, 2.0, 0.5, 100.0]])
    mean, std = Heteroscedastic(False, (0.1, 3.0))(raw)
    assert mean.tolist() == [[1.0, 2.0]] and std.tolist() == [[0.5, 3.0]]
    _, std = Heteroscedastic(True, (0.1, 3.0))(raw)
    assert torch.allclose(std, torch.tensor([[0.5, 100.0]]).exp().clamp(0.1, 3.0))
    assert Heteroscedastic(None, (0.1, 3.0))(raw)[1] is None
