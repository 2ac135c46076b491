"""Rotation rows against independent formulas."""

from __future__ import annotations

import pytest
import torch

from foundation.tasks.quadrotor.sim.rotation import contract, normalize, rotation_form, rotation_rows


def test_rotation_matrix_turns_vectors_as_the_quaternion_product_does():
    """R v equals q v q*, computed by cross products, for random unit quaternions."""
    generator = torch.Generator().manual_seed(0)
    q = normalize(torch.randn(4, 50, generator=generator, dtype=torch.float64))
    v = torch.randn(3, 50, generator=generator, dtype=torch.float64)
    rotated = (rotation_rows(q).view(3, 3, 50) * v).sum(1)
    axis = q[1:]
    expected = v + 2 * torch.linalg.cross(axis, torch.linalg.cross(axis, v, dim=0) + q[0] * v, dim=0)
    torch.testing.assert_close(rotated, expected)


def test_selected_rows_are_rows():
    """Asking for some entries gives those of the whole matrix, also for an unnormalised quaternion."""
    q = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(rotation_rows(q, (2, 5, 8)), rotation_rows(q)[[2, 5, 8]])


def test_the_cuda_form_of_the_contraction_is_the_same():
    """The elementwise sum used on CUDA equals the matrix product used on the CPU."""

    class Pretend(torch.Tensor):
        @property
        def is_cuda(self):
            return True

    generator = torch.Generator().manual_seed(2)
    matrix, products, offset = (torch.randn(s, generator=generator) for s in ((7, 21), (21, 5), (7, 1)))
    other = contract(matrix, products.as_subclass(Pretend), offset)
    torch.testing.assert_close(torch.Tensor(other), contract(matrix, products, offset))


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_normalize(scale):
    """A scaled quaternion comes back with unit length and its direction."""
    q = torch.tensor([[0.5], [0.5], [-0.5], [0.5]]) * scale
    torch.testing.assert_close(normalize(q), torch.tensor([[0.5], [0.5], [-0.5], [0.5]]))


def test_constants_made_under_inference_mode_can_be_differentiated_through():
    """RSL-RL steps environments in inference mode; what is kept from then serves a gradient later."""
    rotation_form.cache_clear()
    with torch.inference_mode():
        matrix, offset = rotation_form((0, 4, 8), torch.float64, torch.device("cpu"))
    products = torch.rand(16, 2, dtype=torch.float64, requires_grad=True)
    (matrix @ products + offset).sum().backward()
    assert products.grad is not None and products.grad.abs().sum() > 0
