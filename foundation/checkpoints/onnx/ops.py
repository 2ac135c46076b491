"""ONNX operators in torch, for one environment; callers map them over all environments.

Each takes the node's attributes and its inputs (None: left out) and returns its outputs. What decides a shape, such as
axes, is never computed from observations, so that reading it needs no synchronisation with a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from foundation.checkpoints.onnx.layers import (
    average_pool,
    batch_norm,
    bounded,
    conv,
    few,
    gru,
    integers,
    layer_norm,
    lstm,
    max_pool,
    optional,
    pad,
)

Operator = Callable[[dict[str, Any], Sequence[Any]], Any]
_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def _axes(attributes: dict[str, Any], inputs: Sequence[Any], index: int = 1) -> list[int] | None:
    """Return axes from an input (newer operator sets) or an attribute (older ones)."""
    given = optional(inputs, index)
    return integers(given) if given is not None else attributes.get("axes")


def _gemm(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    left = x[0].mT if a.get("transA") else x[0]
    right = x[1].mT if a.get("transB") else x[1]
    out = left @ right
    if a.get("alpha", 1.0) != 1.0:
        out = out * a["alpha"]
    bias = optional(x, 2)
    if bias is None:
        return out
    return out + (bias if a.get("beta", 1.0) == 1.0 else bias * a["beta"])


def _reshape(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    shape = integers(x[1])
    if not a.get("allowzero"):
        shape = [x[0].shape[index] if size == 0 else size for index, size in enumerate(shape)]
    return x[0].reshape(shape)


def _squeeze(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    axes = _axes(a, x)
    out = x[0]
    if axes is None:
        axes = [axis for axis, size in enumerate(out.shape) if size == 1]
    for axis in sorted((axis % out.dim() for axis in axes), reverse=True):
        if out.shape[axis] != 1:
            raise ValueError(f"axis {axis} of shape {list(out.shape)} cannot be squeezed")
        out = out.squeeze(axis)
    return out


def _unsqueeze(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    axes = _axes(a, x) or []
    out = x[0]
    for axis in sorted(axis % (out.dim() + len(axes)) for axis in axes):
        out = out.unsqueeze(axis)
    return out


def _slice(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    out = x[0]
    starts = integers(x[1]) if len(x) > 1 else a["starts"]
    ends = integers(x[2]) if len(x) > 2 else a["ends"]
    axes = _axes(a, x, 3) or list(range(len(starts)))
    steps = [1] * len(starts) if optional(x, 4) is None else integers(optional(x, 4))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        begin, stop, stride = slice(start, end, step).indices(out.shape[axis])
        chosen = range(begin, stop, stride)
        if stride == 1:
            out = out.narrow(axis, begin, len(chosen))
        else:
            few(len(chosen))
            out = torch.stack([out.select(axis, index) for index in chosen], dim=axis)
    return out


def _gather(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    source = x[0]
    index = x[1]
    axis = a.get("axis", 0)
    few(index.numel())
    numbers = integers(index)
    if index.dim() == 0:
        return source.select(axis, numbers[0])
    picked = torch.stack([source.select(axis, number) for number in numbers], dim=axis)
    return picked.unflatten(axis, tuple(index.shape)) if index.dim() > 1 else picked


def _flatten(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    axis = a.get("axis", 1) % (x[0].dim() + 1)
    return x[0].reshape(math.prod(x[0].shape[:axis]), math.prod(x[0].shape[axis:]))


def _split(a: dict[str, Any], x: Sequence[Any]) -> list[torch.Tensor]:
    axis = a.get("axis", 0)
    sizes = optional(x, 1)
    sizes = integers(sizes) if sizes is not None else a.get("split")
    if sizes is None:
        total = x[0].shape[axis]
        count = a["num_outputs"]
        sizes = [min(math.ceil(total / count), total - index * math.ceil(total / count)) for index in range(count)]
    return list(x[0].split(sizes, dim=axis))


def _reduce(function: Callable[..., torch.Tensor]) -> Operator:
    def run(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
        axes = _axes(a, x)
        if axes is None and a.get("noop_with_empty_axes"):
            return x[0]
        return function(x[0], dim=tuple(axes or range(x[0].dim())), keepdim=bool(a.get("keepdims", 1)))

    return run


def _clip(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    low = optional(x, 1)
    high = optional(x, 2)
    out = x[0] if low is None else torch.maximum(x[0], low)
    out = out if high is None else torch.minimum(out, high)
    if "min" in a or "max" in a:
        out = out.clamp(a.get("min"), a.get("max"))
    return out


def _constant_of_shape(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    value = a.get("value", torch.zeros(1))
    return value.reshape(()).expand(bounded(integers(x[0]))).clone()


def _expand(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    shape = torch.broadcast_shapes(x[0].shape, bounded(integers(x[1])))
    return x[0].expand(shape)


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Operator:
    return lambda a, x: function(x[0])


def _binary(function: Callable[[Any, Any], Any]) -> Operator:
    return lambda a, x: function(x[0], x[1])


def _fold(function: Callable[[Any, Any], Any]) -> Operator:
    def run(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
        out = x[0]
        for other in x[1:]:
            out = function(out, other)
        return out

    return run


def _divide(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    whole = not left.is_floating_point() and not right.is_floating_point()
    return torch.div(left, right, rounding_mode="trunc") if whole else left / right


ROWWISE: dict[str, Operator] = {
    "Gemm": _gemm,
    "MatMul": _binary(torch.matmul),
    "Add": _binary(torch.add),
    "Sub": _binary(torch.sub),
    "Mul": _binary(torch.mul),
    "Div": _binary(_divide),
    "Max": _fold(torch.maximum),
    "Min": _fold(torch.minimum),
    "Clip": _clip,
    "Greater": _binary(torch.gt),
    "Less": _binary(torch.lt),
    "GreaterOrEqual": _binary(torch.ge),
    "LessOrEqual": _binary(torch.le),
    "Where": lambda a, x: torch.where(x[0].bool(), x[1], x[2]),
    "Elu": lambda a, x: functional.elu(x[0], a.get("alpha", 1.0)),
    "Celu": lambda a, x: functional.celu(x[0], a.get("alpha", 1.0)),
    "Selu": _unary(functional.selu),
    "Relu": _unary(torch.relu),
    "LeakyRelu": lambda a, x: functional.leaky_relu(x[0], a.get("alpha", 0.01)),
    "Gelu": lambda a, x: functional.gelu(x[0], approximate=a.get("approximate", "none")),
    "Mish": _unary(functional.mish),
    "Softplus": _unary(functional.softplus),
    "Softsign": _unary(functional.softsign),
    "Swish": lambda a, x: x[0] * (x[0] * a.get("alpha", 1.0)).sigmoid(),
    "Sigmoid": _unary(torch.sigmoid),
    "HardSigmoid": lambda a, x: (x[0] * a.get("alpha", 0.2) + a.get("beta", 0.5)).clamp(0.0, 1.0),
    "HardSwish": _unary(functional.hardswish),
    "Tanh": _unary(torch.tanh),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Log": _unary(torch.log),
    "Neg": _unary(torch.neg),
    "Abs": _unary(torch.abs),
    "Sign": _unary(torch.sign),
    "Sqrt": _unary(torch.sqrt),
    "Reciprocal": _unary(torch.reciprocal),
    "Sin": _unary(torch.sin),
    "Cos": _unary(torch.cos),
    "Pow": _binary(torch.pow),
    "Identity": _unary(lambda x: x),
    "Dropout": _unary(lambda x: x),
    "Cast": lambda a, x: x[0].to(_DTYPES[a["to"]]),
}
"""Operators that treat every row of (num_envs, num_columns) alike, so that all rows can be given at once."""

OPERATORS: dict[str, Operator] = ROWWISE | {
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
    "Gather": _gather,
    "Flatten": _flatten,
    "Transpose": lambda a, x: x[0].permute(a.get("perm", list(reversed(range(x[0].dim()))))),
    "Concat": lambda a, x: torch.cat(list(x), dim=a["axis"]),
    "Split": _split,
    "Expand": _expand,
    "Shape": lambda a, x: torch.tensor(x[0].shape)[a.get("start", 0) : a.get("end")],
    "ConstantOfShape": _constant_of_shape,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "ArgMax": lambda a, x: x[0].argmax(dim=a.get("axis", 0), keepdim=bool(a.get("keepdims", 1))),
    "Softmax": lambda a, x: x[0].softmax(dim=a.get("axis", -1)),
    "LogSoftmax": lambda a, x: x[0].log_softmax(dim=a.get("axis", -1)),
    "Equal": _binary(torch.eq),
    "Not": _unary(torch.logical_not),
    "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or),
    "GRU": gru,
    "LSTM": lstm,
    "Pad": pad,
    "Conv": conv,
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": lambda a, x: x[0].mean(dim=tuple(range(2, x[0].dim())), keepdim=True),
    "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm,
}
"""Every operator that is understood."""
