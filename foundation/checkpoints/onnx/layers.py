"""The larger ONNX operators in torch: recurrent layers, convolutions, pooling, normalisation.

Every function takes the node's attributes ``a`` and its inputs ``x``, in ONNX's order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

Value = torch.Tensor | None
_MAX_ELEMENTS = 1 << 24
_MAX_PIECES = 1 << 12
"""Pieces that one operator may cut its input into, or time steps of a recurrent layer."""
_PAD_MODES = {"constant": "constant", "edge": "replicate", "reflect": "reflect", "wrap": "circular"}


def integers(value: Value) -> list[int]:
    """Return a shape, axes or indices. They are constants, so that reading them does not wait for a device."""
    assert value is not None
    return [int(number) for number in value.reshape(-1).tolist()]


def optional(inputs: Sequence[Value], index: int) -> Value:
    """Return an input, None where it is left out."""
    return inputs[index] if index < len(inputs) else None


def bounded(shape: Sequence[int]) -> list[int]:
    """Return a shape, and raise for one that only a corrupt file asks for."""
    if math.prod(abs(size) for size in shape) > _MAX_ELEMENTS:
        raise ValueError(f"a tensor of shape {list(shape)} is too large")
    return list(shape)


def few(count: int) -> int:
    """Return a number of pieces, and raise for one that would take for ever, one piece after the other."""
    if count > _MAX_PIECES:
        raise ValueError(f"an operator with {count} pieces or steps is too large")
    return count


def _gates(a: dict[str, Any], x: Sequence[Any], count: int) -> tuple[torch.Tensor, ...]:
    """Return the weights and biases of the inputs and of the hidden state, of one direction; ``count`` gates each."""
    if (
        a.get("direction", "forward") != "forward"
        or "activations" in a
        or a.get("layout")
        or optional(x, 4) is not None
    ):
        raise ValueError("recurrent layers must be forward, with the default activations and no sequence lengths")
    size = a["hidden_size"]
    wanted = ((1, count * size, x[0].shape[-1]), (1, count * size, size), (1, 2 * count * size))
    given = [None if value is None else tuple(value.shape) for value in (*x[1:3], optional(x, 3))]
    if any(shape not in (None, right) for shape, right in zip(given, wanted, strict=True)):
        raise ValueError(f"recurrent weights have shapes {given}, not {wanted}")
    bias = x[3][0] if optional(x, 3) is not None else x[1].new_zeros(2 * count * size)
    return x[1][0], x[2][0], bias[: count * size], bias[count * size :]


def gru(a: dict[str, Any], x: Sequence[Any]) -> list[torch.Tensor]:
    """Run a GRU over time; gates in ONNX's order z, r, h. Shape of the first input: (num_steps, 1, num_in)."""
    weight_in, weight_hidden, bias_in, bias_hidden = _gates(a, x, 3)
    size = a["hidden_size"]
    outputs = []
    hidden = x[5][0] if optional(x, 5) is not None else x[0].new_zeros(x[0].shape[1], size)
    few(len(x[0]))
    for step in x[0].unbind(0):
        given = step @ weight_in.mT + bias_in
        kept = hidden @ weight_hidden.mT + bias_hidden
        update = (given[:, :size] + kept[:, :size]).sigmoid()
        reset = (given[:, size : 2 * size] + kept[:, size : 2 * size]).sigmoid()
        # The two definitions of a GRU differ in where the reset gate is applied; PyTorch's is the first.
        if a.get("linear_before_reset"):
            candidate = reset * kept[:, 2 * size :]
        else:
            candidate = (reset * hidden) @ weight_hidden[2 * size :].mT + bias_hidden[2 * size :]
        hidden = (1 - update) * (given[:, 2 * size :] + candidate).tanh() + update * hidden
        outputs.append(hidden)
    return [torch.stack(outputs).unsqueeze(1), hidden.unsqueeze(0)]


def lstm(a: dict[str, Any], x: Sequence[Any]) -> list[torch.Tensor]:
    """Run an LSTM over time; gates in ONNX's order i, o, f, c. Shape of the first input: (num_steps, 1, num_in)."""
    if optional(x, 7) is not None or a.get("input_forget"):
        raise ValueError("LSTM layers with peepholes are not understood")
    weight_in, weight_hidden, bias_in, bias_hidden = _gates(a, x, 4)
    size = a["hidden_size"]
    outputs = []
    hidden = x[5][0] if optional(x, 5) is not None else x[0].new_zeros(x[0].shape[1], size)
    cell = x[6][0] if optional(x, 6) is not None else torch.zeros_like(hidden)
    few(len(x[0]))
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
    half = len(pads) // 2
    flat = []
    for axis in reversed(range(half)):
        flat += [pads[axis], pads[axis + half]]
    return functional.pad(x, flat, value=value) if any(pads) else x


def pad(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    """Pad all axes with a constant, or the last two with copies of the input."""
    pads = integers(x[1]) if len(x) > 1 else a["pads"]
    mode = _PAD_MODES[a.get("mode", "constant")]
    if optional(x, 3) is not None or min(pads) < 0 or bounded([size + sum(pads) for size in x[0].shape]) is None:
        raise ValueError("this kind of padding is not understood")
    half = len(pads) // 2
    flat = []
    outer = 0 if mode == "constant" else half - 2  # torch copies into the two last axes only
    if any(pads[axis] or pads[axis + half] for axis in range(max(outer, 0))):
        raise ValueError("this kind of padding is not understood")
    for axis in reversed(range(max(outer, 0), half)):
        flat += [pads[axis], pads[axis + half]]
    value = 0.0 if optional(x, 2) is None else float(x[2])
    return functional.pad(x[0], flat, mode=mode, value=value if mode == "constant" else None)


def conv(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    """Convolve in one or two dimensions."""
    run = {3: functional.conv1d, 4: functional.conv2d}[x[1].dim()]
    rest = x[1].dim() - 2
    stride = a.get("strides", [1] * rest)
    dilation = a.get("dilations", [1] * rest)
    return run(_pads(a, x[0], 0.0), x[1], optional(x, 2), stride=stride, dilation=dilation, groups=a.get("group", 1))


def max_pool(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    """Take the maximum over windows of an image."""
    if a.get("ceil_mode") or len(a["kernel_shape"]) != 2:
        raise ValueError("this kind of pooling is not understood")
    padded = _pads(a, x[0], -math.inf)
    return functional.max_pool2d(padded, a["kernel_shape"], a.get("strides", [1, 1]), 0, a.get("dilations", [1, 1]))


def average_pool(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    """Take the mean over windows of an image."""
    if a.get("ceil_mode") or len(a["kernel_shape"]) != 2 or (any(a.get("pads", [])) and not a.get("count_include_pad")):
        raise ValueError("this kind of pooling is not understood")
    return functional.avg_pool2d(_pads(a, x[0], 0.0), a["kernel_shape"], a.get("strides", [1, 1]))


def batch_norm(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    """Normalise channels by stored moments."""
    shape = [1, -1] + [1] * (x[0].dim() - 2)
    scale, bias, mean, var = (value.reshape(shape) for value in x[1:5])
    return (x[0] - mean) * (var + a.get("epsilon", 1e-5)).rsqrt() * scale + bias


def layer_norm(a: dict[str, Any], x: Sequence[Any]) -> torch.Tensor:
    """Normalise the last axes by their own moments."""
    shape = x[0].shape[a.get("axis", -1) % x[0].dim() :]
    return functional.layer_norm(x[0], shape, x[1], optional(x, 2), a.get("epsilon", 1e-5))
