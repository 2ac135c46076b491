"""ONNX operators in torch, for one row at a time: whoever calls them maps them over the environments.

Each takes the node's attributes and its inputs (None: left out) and returns its outputs. What decides a shape, such as
axes, is never computed from observations, so that reading it needs no synchronisation with a device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

Value = torch.Tensor | None
Operator = Callable[[dict[str, Any], Sequence[Any]], Any]
_MAX_NUMBERS = 1 << 24
_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip


def _ints(value: Value) -> list[int]:
    assert value is not None
    return [int(number) for number in value.reshape(-1).tolist()]


def _at(inputs: Sequence[Value], index: int) -> Value:
    return inputs[index] if index < len(inputs) else None


def _axes(attributes: dict[str, Any], inputs: Sequence[Value], index: int = 1) -> list[int] | None:
    """Return axes from an input (newer operator sets) or an attribute (older ones)."""
    given = _at(inputs, index)
    return _ints(given) if given is not None else attributes.get("axes")


def _bounded(shape: Sequence[int]) -> list[int]:
    if math.prod(abs(size) for size in shape) > _MAX_NUMBERS:
        raise ValueError(f"a tensor of shape {list(shape)} is too large")
    return list(shape)


def _gemm(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    left = x[0].mT if a.get("transA") else x[0]
    right = x[1].mT if a.get("transB") else x[1]
    out = left @ right
    if a.get("alpha", 1.0) != 1.0:
        out = out * a["alpha"]
    bias = _at(x, 2)
    if bias is None:
        return out
    return out + (bias if a.get("beta", 1.0) == 1.0 else bias * a["beta"])


def _reshape(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    shape = _ints(x[1])
    if not a.get("allowzero"):
        shape = [x[0].shape[index] if size == 0 else size for index, size in enumerate(shape)]
    return x[0].reshape(shape)


def _squeeze(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    axes, out = _axes(a, x), x[0]
    if axes is None:
        axes = [axis for axis, size in enumerate(out.shape) if size == 1]
    for axis in sorted((axis % out.dim() for axis in axes), reverse=True):
        if out.shape[axis] != 1:
            raise ValueError(f"axis {axis} of shape {list(out.shape)} cannot be squeezed")
        out = out.squeeze(axis)
    return out


def _unsqueeze(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    axes, out = _axes(a, x) or [], x[0]
    for axis in sorted(axis % (out.dim() + len(axes)) for axis in axes):
        out = out.unsqueeze(axis)
    return out


def _slice(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    out = x[0]
    starts = _ints(x[1]) if len(x) > 1 else a["starts"]
    ends = _ints(x[2]) if len(x) > 2 else a["ends"]
    axes = _axes(a, x, 3) or list(range(len(starts)))
    steps = [1] * len(starts) if _at(x, 4) is None else _ints(_at(x, 4))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        begin, stop, stride = slice(start, end, step).indices(out.shape[axis])
        chosen = list(range(begin, stop, stride))
        if stride == 1:
            out = out.narrow(axis, begin, len(chosen))
        else:
            out = torch.stack([out.select(axis, index) for index in chosen], dim=axis)
    return out


def _gather(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    source, index, axis = x[0], x[1], a.get("axis", 0)
    numbers = _ints(index)
    if index.dim() == 0:
        return source.select(axis, numbers[0])
    picked = torch.stack([source.select(axis, number) for number in numbers], dim=axis)
    return picked.unflatten(axis, tuple(index.shape)) if index.dim() > 1 else picked


def _flatten(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    axis = a.get("axis", 1) % (x[0].dim() + 1)
    return x[0].reshape(math.prod(x[0].shape[:axis]), math.prod(x[0].shape[axis:]))


def _split(a: dict[str, Any], x: Sequence[Any]) -> list[torch.Tensor]:
    axis, sizes = a.get("axis", 0), _at(x, 1)
    sizes = _ints(sizes) if sizes is not None else a.get("split")
    if sizes is None:
        total, count = x[0].shape[axis], a["num_outputs"]
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
    low, high = _at(x, 1), _at(x, 2)
    out = x[0] if low is None else torch.maximum(x[0], low)
    out = out if high is None else torch.minimum(out, high)
    if "min" in a or "max" in a:
        out = out.clamp(a.get("min"), a.get("max"))
    return out


def _gates(a: dict[str, Any], x: Sequence[Any], count: int) -> tuple[torch.Tensor, ...]:
    """Return input and hidden weights and biases of one direction, and the number of units."""
    if a.get("direction", "forward") != "forward" or "activations" in a or a.get("layout") or _at(x, 4) is not None:
        raise ValueError("recurrent layers in another direction, with own activations or lengths, are not understood")
    size = a["hidden_size"]
    bias = x[3][0] if _at(x, 3) is not None else x[1].new_zeros(2 * count * size)
    return x[1][0], x[2][0], bias[: count * size], bias[count * size :]


def _gru(a: dict[str, Any], x: Sequence[Any]) -> list[torch.Tensor]:
    weight_in, weight_hidden, bias_in, bias_hidden = _gates(a, x, 3)
    size, outputs = a["hidden_size"], []
    hidden = x[5][0] if _at(x, 5) is not None else x[0].new_zeros(x[0].shape[1], size)
    for step in x[0].unbind(0):
        given, kept = step @ weight_in.mT + bias_in, hidden @ weight_hidden.mT + bias_hidden
        update = (given[:, :size] + kept[:, :size]).sigmoid()
        reset = (given[:, size : 2 * size] + kept[:, size : 2 * size]).sigmoid()
        if a.get("linear_before_reset"):
            candidate = reset * kept[:, 2 * size :]
        else:
            candidate = (reset * hidden) @ weight_hidden[2 * size :].mT + bias_hidden[2 * size :]
        hidden = (1 - update) * (given[:, 2 * size :] + candidate).tanh() + update * hidden
        outputs.append(hidden)
    return [torch.stack(outputs).unsqueeze(1), hidden.unsqueeze(0)]


def _lstm(a: dict[str, Any], x: Sequence[Any]) -> list[torch.Tensor]:
    if _at(x, 7) is not None or a.get("input_forget"):
        raise ValueError("LSTM layers with peepholes are not understood")
    weight_in, weight_hidden, bias_in, bias_hidden = _gates(a, x, 4)
    size, outputs = a["hidden_size"], []
    hidden = x[5][0] if _at(x, 5) is not None else x[0].new_zeros(x[0].shape[1], size)
    cell = x[6][0] if _at(x, 6) is not None else torch.zeros_like(hidden)
    for step in x[0].unbind(0):
        gates = step @ weight_in.mT + bias_in + hidden @ weight_hidden.mT + bias_hidden
        enter, leave, forget, candidate = gates.split(size, dim=-1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * candidate.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        outputs.append(hidden)
    return [torch.stack(outputs).unsqueeze(1), hidden.unsqueeze(0), cell.unsqueeze(0)]


def _pads(a: dict[str, Any], x: torch.Tensor, value: float) -> torch.Tensor:
    if a.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise ValueError("automatic padding is not understood")
    pads = a.get("pads") or [0, 0]
    half, flat = len(pads) // 2, []
    for axis in reversed(range(half)):
        flat += [pads[axis], pads[axis + half]]
    return functional.pad(x, flat, value=value) if any(pads) else x


def _conv(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    run = {3: functional.conv1d, 4: functional.conv2d}[x[1].dim()]
    rest = x[1].dim() - 2
    stride, dilation = a.get("strides", [1] * rest), a.get("dilations", [1] * rest)
    return run(_pads(a, x[0], 0.0), x[1], _at(x, 2), stride=stride, dilation=dilation, groups=a.get("group", 1))


def _max_pool(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    if a.get("ceil_mode") or len(a["kernel_shape"]) != 2:
        raise ValueError("this kind of pooling is not understood")
    padded = _pads(a, x[0], -math.inf)
    return functional.max_pool2d(padded, a["kernel_shape"], a.get("strides", [1, 1]), 0, a.get("dilations", [1, 1]))


def _average_pool(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    if a.get("ceil_mode") or len(a["kernel_shape"]) != 2 or (any(a.get("pads", [])) and not a.get("count_include_pad")):
        raise ValueError("this kind of pooling is not understood")
    return functional.avg_pool2d(_pads(a, x[0], 0.0), a["kernel_shape"], a.get("strides", [1, 1]))


def _batch_norm(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    shape = [1, -1] + [1] * (x[0].dim() - 2)
    scale, bias, mean, var = (value.reshape(shape) for value in x[1:5])
    return (x[0] - mean) * (var + a.get("epsilon", 1e-5)).rsqrt() * scale + bias


def _layer_norm(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    shape = x[0].shape[a.get("axis", -1) % x[0].dim() :]
    return functional.layer_norm(x[0], shape, x[1], _at(x, 2), a.get("epsilon", 1e-5))


def _constant_of_shape(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    value = a.get("value", torch.zeros(1))
    return value.reshape(()).expand(_bounded(_ints(x[0]))).clone()


def _expand(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    shape = torch.broadcast_shapes(x[0].shape, _bounded(_ints(x[1])))
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
    "Softmax": lambda a, x: x[0].softmax(dim=a.get("axis", -1)),
    "LogSoftmax": lambda a, x: x[0].log_softmax(dim=a.get("axis", -1)),
    "Equal": _binary(torch.eq),
    "Not": _unary(torch.logical_not),
    "And": _binary(torch.logical_and),
    "Or": _binary(torch.logical_or),
    "GRU": _gru,
    "LSTM": _lstm,
    "Conv": _conv,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalAveragePool": lambda a, x: x[0].mean(dim=tuple(range(2, x[0].dim())), keepdim=True),
    "BatchNormalization": _batch_norm,
    "LayerNormalization": _layer_norm,
}
"""Every operator that is understood."""
