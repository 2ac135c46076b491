"""Vectors of many environments, as one block or row by row: one formula for eager torch and for the compiler.

A vector of k components is either a BLOCK, one tensor of shape (k, num_envs), or ROWS, a sequence of k tensors of
shape (num_envs,). Eager torch is fast on blocks: an operation touches everything at once. ``torch.compile`` is fast on
rows: it makes ONE loop over the environments, without a matrix product or a buffer in between. Both are indexed and
iterated alike, so that a formula is written once; what differs is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from foundation.accel.compiled import compiler_options

Rows = Sequence[torch.Tensor]
"""k tensors of shape (num_envs,)."""
Vector = torch.Tensor | Rows
"""A block or rows."""


def norm(vector: Vector, softness: float = 0.0) -> torch.Tensor:
    """Return the Euclidean norm ``|x|``, or ``sqrt(|x|^2 + s^2) - s``, which has a finite gradient at zero.

    Args:
        vector: A block or rows.
        softness: ``s``, in the units of the vector; 0 for the norm itself.

    Returns:
        Shape: (num_envs,).
    """
    if isinstance(vector, torch.Tensor):
        square = vector.square().sum(0)
    else:
        square = vector[0] * vector[0]
        for row in vector[1:]:
            square = square + row * row
    if softness == 0.0:
        return square.sqrt()
    return (square + softness * softness).sqrt() - softness


def difference(a: Vector, b: Vector) -> Vector:
    """Subtract two blocks, or two vectors of rows."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a - b
    return [x - y for x, y in zip(a, b, strict=True)]


def columns(parts: Sequence[Vector]) -> torch.Tensor:
    """Join vectors to the columns of an observation group. Shape: (num_envs, total number of components)."""
    if all(isinstance(part, torch.Tensor) for part in parts):
        joined = torch.cat(list(parts))  # pyright: ignore[reportArgumentType] (every part is a block here)
    else:
        joined = torch.stack([row for part in parts for row in part])
    return joined.T.contiguous()


def bilinear(terms: Sequence[tuple[float, int, int]], a: Rows, b: Rows) -> torch.Tensor:
    """Sum ``coefficient * a[i] * b[j]`` over the terms ``(coefficient, i, j)``, by rows. Shape: (num_envs,)."""
    total = None
    for coefficient, i, j in terms:
        product = a[i] * b[j]
        if coefficient != 1.0:
            product = float(coefficient) * product  # an integer would keep the loop from being vectorised
        total = product if total is None else total + product
    assert total is not None, "a bilinear form has at least one term"
    return total


def compile_rows(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Compile a function of rows, with its gradients, for the sizes that it is called with.

    Raises:
        UserError: If that needs a C++ compiler and there is none.
    """
    return torch.compile(function, fullgraph=True, dynamic=False, options=compiler_options(device))
