"""Many small multi-layer perceptrons on the CPU, in C where there is a compiler.

With few rows per network a layer is bound by reading its weights, and the batched product of a BLAS copies them first.
The C source beside this file is compiled once per machine into the user's cache; without a compiler, or with
``FOUNDATION_NATIVE=0`` in the environment, the same is computed by ``torch.baddbmm``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foundation.accel import native

SOURCE = Path(__file__).with_name("stacked_dense.c")
PANEL = 64
"""Columns of a panel of weights."""
MAX_ROWS = 32
"""Rows per network beyond which a BLAS is as fast."""


@cache
def library() -> Any:
    """Return the compiled function; None where it cannot be had."""
    loaded = native.load(SOURCE, "stacked teachers run on torch alone, about half as fast")
    if loaded is None:
        return None
    function = loaded.stacked_mlp
    pointer = ctypes.c_void_p
    number = ctypes.c_long
    head = [pointer, number, number, pointer, pointer, pointer, number, ctypes.c_int]
    function.argtypes = [*head, pointer, number, pointer, pointer, number, number, number]
    function.restype = None
    return function


def fused(activation: nn.Module) -> int:
    """Return the C code's number of an activation; -1 for one that it does not know."""
    if isinstance(activation, nn.ELU):
        return 1 if activation.alpha == 1.0 else -1
    if isinstance(activation, nn.ReLU):
        return 2
    return 0 if isinstance(activation, nn.Identity) else -1


def panels(weights: torch.Tensor) -> torch.Tensor:
    """Reorder weights for the C code: panels of 64 columns where these divide the width. Shape kept.

    Args:
        weights: Shape: (num_networks, num_in, num_out).
    """
    networks, inputs, outputs = weights.shape
    if outputs % PANEL or outputs == PANEL:
        return weights.contiguous()
    cut = weights.reshape(networks, inputs, outputs // PANEL, PANEL).transpose(1, 2)
    return cut.contiguous().view(networks, inputs, outputs)


def usable(x: torch.Tensor) -> bool:
    """Return whether the C code computes this faster: few rows of float32 on the CPU, nothing differentiated."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not (torch.is_grad_enabled() and x.requires_grad)
    return plain and x.shape[1] <= MAX_ROWS and not torch.compiler.is_compiling() and library() is not None


class StackedMlp:
    """Multi-layer perceptrons of the same shape, computed network by network.

    Args:
        weights: Of each layer. Shape: (num_networks, num_in, num_out).
        biases: Of each layer. Shape: (num_networks, 1, num_out).
        activation: Of the hidden layers, what :func:`fused` returned.
    """

    def __init__(self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor], activation: int):
        self.weights = torch.cat([panels(weight).flatten(1) for weight in weights], dim=1)
        self.biases = torch.cat([bias.flatten(1) for bias in biases], dim=1)
        self.activation = activation
        self.layers = len(weights)
        self.sizes = [weights[0].shape[1], *(weight.shape[2] for weight in weights)]
        self._sizes = (ctypes.c_long * len(self.sizes))(*self.sizes)
        self._scratch = torch.empty(0)

    def __call__(self, x: torch.Tensor, with_features: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the outputs and the last hidden layer.

        Args:
            x: Shape: (num_networks, rows, num_in).
            with_features: Whether the last hidden layer is wanted; it is None otherwise.
        """
        x = x if x.stride(-1) == 1 else x.contiguous()
        networks, rows, _ = x.shape
        most = rows * max(self.sizes)
        threads = min(torch.get_num_threads(), networks)
        if self._scratch.numel() < threads * 2 * most:
            self._scratch = torch.empty(threads * 2 * most)
        y = torch.empty(networks, rows, self.sizes[-1])
        features = torch.empty(networks, rows, self.sizes[-2]) if with_features and self.layers > 1 else None
        head = x.data_ptr(), x.stride(0), x.stride(1), self.weights.data_ptr(), self.biases.data_ptr()
        head += self._sizes, self.layers, self.activation
        tail = None if features is None else features.data_ptr(), y.data_ptr()
        edges = [networks * part // threads for part in range(threads + 1)]

        def run(part: int) -> None:
            scratch = self._scratch.data_ptr() + 4 * part * 2 * most
            library()(*head, scratch, most, *tail, edges[part], edges[part + 1], rows)

        if threads == 1:
            run(0)
        else:
            list(_pool(threads).map(run, range(threads)))
        return y, features


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
