"""Optimisers that treat a weight matrix as a matrix."""

from __future__ import annotations

import copy

import pytest
import torch

from foundation.learning.optimizers import OPTIMIZERS, Muon, Soap


def badly_conditioned() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs whose directions differ a thousandfold in size and lie across the axes, and a linear map of them."""
    generator = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(12, 12, generator=generator))[0]
    inputs = torch.randn(256, 12, generator=generator) * torch.logspace(0, -3, 12) @ turned.T
    return inputs, inputs @ torch.randn(12, 5, generator=generator)


def fit(name: str, steps: int, rate: float) -> float:
    """Return the loss of a linear fit after some steps with a falling step size."""
    inputs, targets = badly_conditioned()
    weight = torch.zeros(5, 12, requires_grad=True)
    optimizer = OPTIMIZERS[name]([weight], lr=rate)
    loss = torch.tensor(0.0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * (1.0 - step / steps)
        optimizer.zero_grad()
        loss = (inputs @ weight.T - targets).square().mean()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


def test_soap_fits_correlated_inputs_closer_than_adam():
    """After as many steps, at the best of three step sizes each, its loss is less than half of Adam's."""
    rates = (0.03, 0.1, 0.3)
    assert min(fit("soap", 300, rate) for rate in rates) < 0.5 * min(fit("adam", 300, rate) for rate in rates)


def soap_by_hand(gradients: list[torch.Tensor], longest: int, rate: float) -> torch.Tensor:
    """Return where Vyas et al.'s algorithm 3 ends from zero: the mean of the gradients is kept in their own axes."""
    sides = [side for side, size in enumerate(gradients[0].shape) if size <= longest]
    bases = [torch.eye(size, dtype=torch.float64) for size in gradients[0].shape]
    factors = [gradients[0] @ gradients[0].T, gradients[0].T @ gradients[0]]
    for side in sides:
        bases[side] = torch.linalg.eigh(factors[side])[1]
    mean, square, weight = (torch.zeros_like(gradients[0]) for _ in range(3))
    for number, gradient in enumerate(gradients[1:], 1):
        for side, factor in enumerate((gradient @ gradient.T, gradient.T @ gradient)):
            factors[side] = 0.95 * factors[side] + 0.05 * factor
            if side in sides and (number + 1) % 10 == 0:
                bases[side] = torch.linalg.qr(factors[side] @ bases[side])[0]
        left, right = bases
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.95 * square + 0.05 * (left.T @ gradient @ right) ** 2
        scale = (square / (1.0 - 0.95**number)).sqrt() + 1e-8
        weight -= rate * left @ (left.T @ mean @ right / (1.0 - 0.9**number) / scale) @ right.T
    return weight


@pytest.mark.parametrize("longest", [9, 5, 3])
def test_soap_is_its_papers_algorithm(longest, monkeypatch):
    """Both sides of a matrix turned, one of them, and neither; a basis is turned twice on the way."""
    monkeypatch.setattr("foundation.learning.optimizers.LARGEST_SIDE", longest)
    generator = torch.Generator().manual_seed(5)
    turned = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    gradients = [torch.randn(4, 6, generator=generator, dtype=torch.float64) @ turned for _ in range(25)]
    weight = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    optimizer = Soap([weight], lr=0.1)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(weight.detach(), soap_by_hand(gradients, longest, 0.1), rtol=1e-6, atol=1e-7)


def test_muon_steps_along_the_nearest_orthogonal_matrix():
    """Its iteration has the singular vectors of the matrix, as an SVD finds them, and singular values near 1."""
    matrix = torch.randn(6, 9, generator=torch.Generator().manual_seed(1))
    for one in (matrix, matrix.T.contiguous()):
        left, _, right = torch.linalg.svd(one, full_matrices=False)
        found = Muon([torch.zeros(2, 2)]).orthogonalised(one)
        inside = left.T @ found @ right.T
        assert float(inside.diagonal().min()) > 0.6 and float(inside.diagonal().max()) < 1.3
        torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=1e-4, rtol=0.0)


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_what_is_no_matrix_is_stepped_as_adamw_does(name):
    """Biases, and the same with weight decay: PyTorch's AdamW is the oracle."""
    generator = torch.Generator().manual_seed(2)
    own = torch.randn(7, generator=generator).requires_grad_()
    theirs = own.detach().clone().requires_grad_()
    optimizers = [
        OPTIMIZERS[name]([own], lr=0.01, weight_decay=0.1),
        torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1),
    ]
    for _ in range(20):
        gradient = torch.randn(7, generator=generator)
        for parameter, optimizer in zip((own, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(own, theirs)


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_a_saved_state_goes_on_bit_for_bit(name):
    """Steps after a load are those of the optimiser that was saved."""
    generator = torch.Generator().manual_seed(3)
    layer = torch.nn.Linear(5, 4)
    optimizer = OPTIMIZERS[name](layer.parameters(), lr=0.01)
    gradients = [torch.randn(4, 5, generator=generator) for _ in range(25)]

    def go(layer: torch.nn.Linear, optimizer: torch.optim.Optimizer, part: slice) -> None:
        for gradient in gradients[part]:
            layer.weight.grad = gradient.clone()
            layer.bias.grad = gradient.sum(dim=1)
            optimizer.step()

    go(layer, optimizer, slice(0, 13))
    other = copy.deepcopy(layer)
    resumed = OPTIMIZERS[name](other.parameters(), lr=0.01)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    go(layer, optimizer, slice(13, 25))
    go(other, resumed, slice(13, 25))
    assert torch.equal(layer.weight, other.weight) and torch.equal(layer.bias, other.bias)


def test_a_side_that_is_too_long_is_not_turned(monkeypatch):
    """The basis of a long side would cost its cube: none is kept, and the steps are finite."""
    monkeypatch.setattr("foundation.learning.optimizers.LARGEST_SIDE", 8)
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(4)).requires_grad_()
    optimizer = Soap([weight], lr=0.1)
    for _ in range(3):
        weight.grad = weight.detach().clone()
        optimizer.step()
    assert "basis0" in optimizer.state[weight] and "basis1" not in optimizer.state[weight]
    assert bool(weight.isfinite().all())
