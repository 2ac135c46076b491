"""Bilinear forms of quaternions, batched over the last axis (components first, environments last).

A quaternion is (w, x, y, z) and turns body into world coordinates. Of a block, a bilinear form
``sum_ij C[k,i,j] a_i b_j`` is computed as one outer product and one product with a constant matrix: two operations
whatever the form, which is what makes the eager simulator fast. Of rows it is written out, term by term, for the
compiler.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import overload

import torch

from foundation.tasks.quadrotor.sim.rows import Rows, Vector, bilinear

_ROTATION_TERMS: dict[int, list[tuple[float, int, int]]] = {
    # Row-major R: entry -> (coefficient, i, j) over the products q_i q_j; the diagonal has 1 added.
    0: [(-2, 2, 2), (-2, 3, 3)],
    1: [(2, 1, 2), (-2, 0, 3)],
    2: [(2, 1, 3), (2, 0, 2)],
    3: [(2, 1, 2), (2, 0, 3)],
    4: [(-2, 1, 1), (-2, 3, 3)],
    5: [(2, 2, 3), (-2, 0, 1)],
    6: [(2, 1, 3), (-2, 0, 2)],
    7: [(2, 2, 3), (2, 0, 1)],
    8: [(-2, 1, 1), (-2, 2, 2)],
}


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # the cached tensors may be used under autograd later
def rotation_form(rows: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the constant matrix and offset of :func:`rotation_rows`.

    Args:
        rows: Which of the nine row-major entries of R.
        dtype: Of the result.
        device: Of the result.

    Returns:
        Matrix, shape (len(rows), 16), and offset, shape (len(rows), 1).
    """
    matrix = torch.zeros(len(rows), 16, dtype=torch.float64)
    offset = torch.zeros(len(rows), 1, dtype=torch.float64)
    for k, entry in enumerate(rows):
        offset[k] = 1.0 if entry in (0, 4, 8) else 0.0
        for value, i, j in _ROTATION_TERMS[entry]:
            matrix[k, 4 * i + j] += value
    return matrix.to(device, dtype), offset.to(device, dtype)


def contract(matrix: torch.Tensor, products: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
    """Sum products with constant coefficients.

    On CUDA this is an elementwise sum: a matrix product would round to TF32 where a user allows that for networks.

    Args:
        matrix: Coefficients. Shape: (num_out, num_products).
        products: Shape: (num_products, batch).
        offset: Added to the result. Shape: (num_out, 1).

    Returns:
        Shape: (num_out, batch).
    """
    if products.is_cuda:
        out = (matrix.unsqueeze(-1) * products).sum(1)
        return out if offset is None else out + offset
    return torch.mm(matrix, products) if offset is None else torch.addmm(offset, matrix, products)


@overload
def rotation_rows(quaternion: torch.Tensor, rows: tuple[int, ...] = ...) -> torch.Tensor: ...
@overload
def rotation_rows(quaternion: Rows, rows: tuple[int, ...] = ...) -> Rows: ...
def rotation_rows(quaternion: Vector, rows: tuple[int, ...] = tuple(range(9))) -> Vector:
    """Compute entries of the rotation matrix R (body to world), ``R = I - 2 (...)`` as rl-tools writes it.

    Args:
        quaternion: (w, x, y, z); need not be normalised. Shape: (4, batch), or four rows.
        rows: Which of the nine row-major entries.

    Returns:
        Shape: (len(rows), batch), or as many rows.
    """
    if not isinstance(quaternion, torch.Tensor):
        entries = {entry: bilinear(_ROTATION_TERMS[entry], quaternion, quaternion) for entry in rows}
        return [1.0 + entries[entry] if entry in (0, 4, 8) else entries[entry] for entry in rows]
    matrix, offset = rotation_form(rows, quaternion.dtype, quaternion.device)
    products = (quaternion.unsqueeze(1) * quaternion.unsqueeze(0)).view(16, -1)
    return contract(matrix, products, offset)


def to_body(rotation: Vector, vectors: Sequence[Vector]) -> list[Vector]:
    """Turn world-frame vectors into the body frame, ``R^T x``.

    Args:
        rotation: The nine row-major entries of R. Shape: (9, batch), or nine rows.
        vectors: Each of shape (3, batch), or three rows.

    Returns:
        As many vectors, in the body frame.
    """
    if isinstance(rotation, torch.Tensor):
        blocks = torch.stack(list(vectors), dim=1)  # pyright: ignore[reportArgumentType] (blocks, as the rotation is)
        # Entry (i, j) of R meets component i of x.
        turned = (rotation.view(3, 3, 1, -1) * blocks.unsqueeze(1)).sum(0)
        return [turned[:, index] for index in range(len(vectors))]
    r = rotation
    return [[r[i] * v[0] + r[3 + i] * v[1] + r[6 + i] * v[2] for i in range(3)] for v in vectors]


def normalize(quaternion: torch.Tensor) -> torch.Tensor:
    """Scale to unit length. Shape: (4, batch)."""
    return quaternion * quaternion.square().sum(0, keepdim=True).rsqrt()
