"""Shapes of the outputs of a program's operations, derived from its weights before anything is computed.

A file of a few kilobytes can describe a program that doubles its values forty times. What an operation says that it
gives has to be what its weights and inputs make, and no more than a policy computes with.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy

from foundation.deploy.program import OBS, Operation, Program

MAX_ELEMENTS = 1 << 22
"""Numbers that a policy may compute with for one environment, all of its values together."""

Shape = tuple[int, ...]


def check_shapes(program: Program) -> None:
    """Check the shape that each operation says it gives.

    Args:
        program: As a file describes it.

    Raises:
        ValueError: Naming the first operation that gives something else, or more than a policy needs.
    """
    shapes: dict[str, Shape] = {OBS: (program.num_obs,)}
    left = MAX_ELEMENTS - program.num_obs
    for operation in program.operations:
        if operation.name in shapes:
            raise ValueError(f"two values have the name '{operation.name}'")
        inputs = [shapes[name] for name in operation.inputs]
        given = _SHAPES[operation.kind](operation, inputs) if operation.kind in _SHAPES else operation.shape
        left -= operation.size
        if given != operation.shape or left < 0:
            raise ValueError(f"operation '{operation.name}' gives shape {given}, not {operation.shape}")
        shapes[operation.name] = given


def _same(op: Operation, x: list[Shape]) -> Shape:
    return x[0]


def _element_wise(op: Operation, x: list[Shape]) -> Shape:
    return numpy.broadcast_shapes(x[0], *(array.shape for array in op.arrays.values()))


def _channels(op: Operation, x: list[Shape]) -> Shape:
    channels, _, _ = x[0]
    _need(op, all(array.size == channels for array in op.arrays.values()))
    return x[0]


def _columns(op: Operation, x: list[Shape]) -> Shape:
    start = int(op.number("start"))
    _need(op, start >= 0 and start + op.size <= prod(x[0]))
    return op.shape


def _concatenate(op: Operation, x: list[Shape]) -> Shape:
    return (sum(prod(shape) for shape in x),)


def _dense(op: Operation, x: list[Shape]) -> Shape:
    num_out, num_in = op.arrays["weight"].shape
    blocks = int(op.number("blocks"))
    _need(op, op.arrays["bias"].shape == (num_out,) and blocks >= 1 and blocks * num_in == prod(x[0]))
    return (blocks * num_out,)


def _convolution(op: Operation, x: list[Shape]) -> Shape:
    channels, *_ = x[0]
    filters, num_in, *kernel = op.arrays["weight"].shape
    _need(op, num_in == channels and op.arrays["bias"].shape == (filters,))
    sides = [
        _windows(op, *settings)
        for settings in zip(x[0][1:], kernel, op.pair("stride"), op.pair("padding"), op.pair("dilation"), strict=True)
    ]
    _need(op, prod(sides) * num_in * prod(kernel) <= MAX_ELEMENTS)
    return filters, *sides


def _add(op: Operation, x: list[Shape]) -> Shape:
    _need(op, len(x) == 2 and x[0] == x[1])
    return x[0]


def _spatial_softmax(op: Operation, x: list[Shape]) -> Shape:
    channels, *sides = x[0]
    _need(op, op.arrays["grid"].shape == (prod(sides), 2))
    return (2 * channels,)


def _max_pool(op: Operation, x: list[Shape]) -> Shape:
    channels, *sides = x[0]
    kernel, stride, padding = (int(op.number(name)) for name in ("kernel", "stride", "padding"))
    sides = [_windows(op, side, kernel, stride, padding, 1) for side in sides]
    _need(op, channels * prod(sides) * kernel**2 <= MAX_ELEMENTS)
    return channels, *sides


def _windows(op: Operation, side: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """Return how many windows fit into one side of an image."""
    reach = dilation * (kernel - 1) + 1
    _need(op, min(kernel, stride, dilation) >= 1 and 0 <= padding <= max(reach, side))
    return (side + 2 * padding - reach) // stride + 1


def _recurrent(op: Operation, x: list[Shape]) -> Shape:
    rows = {"gru": 3, "lstm": 4}[op.text("cell")] * op.size
    weights = {
        "weight_ih": (rows, prod(x[0])), "weight_hh": (rows, op.size), "bias_ih": (rows,), "bias_hh": (rows,)
    }  # fmt: skip
    _need(op, all(op.arrays[name].shape == shape for name, shape in weights.items()))
    return (op.size,)


def _window(op: Operation, x: list[Shape]) -> Shape:
    return (sum(memory.size for memory in op.memory) + prod(x[0]),)


def _need(op: Operation, fits: bool) -> None:
    if not fits:
        raise ValueError(f"operation '{op.name}' ({op.kind}) has settings or weights that do not go with its input")


_SHAPES: dict[str, Callable[[Operation, list[Shape]], Shape]] = {
    "activation": _same,
    "add": _add,
    "arg_max": lambda op, x: (1,),
    "beta_moment": lambda op, x: (prod(x[0]) // 2,),
    "channel_norm": _channels,
    "clamp": _element_wise,
    "columns": _columns,
    "concatenate": _concatenate,
    "convolution": _convolution,
    "dense": _dense,
    "global_pool": lambda op, x: (x[0][0], 1, 1),
    "layer_norm": _element_wise,
    "max_pool": _max_pool,
    "normalize": _element_wise,
    "recurrent": _recurrent,
    "scale": _element_wise,
    "spatial_softmax": _spatial_softmax,
    "window": _window,
}
