"""A program's operations in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from foundation.core.errors import suggest
from foundation.deploy.golden import FloatArray
from foundation.deploy.program import OBS, Operation, Program

Numbers = NDArray[numpy.floating]
"""Intermediate values by name. Weights and observations are float32, and so are all of these."""
Compute = Callable[[list[Numbers]], Numbers]
"""Makes a value of those that an operation reads. Shape: (num_envs, ...) each."""
Remember = Callable[[Numbers, list[Numbers]], tuple[Numbers, list[Numbers]]]
"""The same with the operation's memories, (num_envs, size) each, passed in and returned."""


@dataclass(frozen=True)
class _Step:
    name: str
    inputs: tuple[str, ...]
    compute: Compute | None
    remember: Remember | None
    spans: tuple[slice, ...]


class NumpyProgram:
    """Computes one step of a policy, for any number of environments at once."""

    def __init__(self, program: Program) -> None:
        """Prepare the operations.

        Args:
            program: What to compute.
        """
        self.initial_state = program.initial_state
        self._output = program.output
        self._steps = [self._prepare(operation) for operation in program.operations]

    @staticmethod
    def _prepare(operation: Operation) -> _Step:
        spans = tuple(slice(memory.start, memory.start + memory.size) for memory in operation.memory)
        if operation.kind in _WITH_MEMORY:
            remember = _WITH_MEMORY[operation.kind](operation)
            return _Step(operation.name, operation.inputs, None, remember, spans)
        if operation.kind not in _KINDS:
            raise ValueError(f"operation '{operation.kind}' is not known. {suggest(operation.kind, _KINDS)}")
        return _Step(operation.name, operation.inputs, _KINDS[operation.kind](operation), None, spans)

    def run(self, obs: FloatArray, state: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Act for one step.

        Args:
            obs: Shape: (num_envs, num_obs).
            state: Shape: (num_envs, state_size).

        Returns:
            Actions, shape (num_envs, num_actions), and the next state.
        """
        values: dict[str, Numbers] = {OBS: obs}
        after = state.copy() if state.size else state
        for step in self._steps:
            inputs = [values[name] for name in step.inputs]
            if step.compute is not None:
                values[step.name] = step.compute(inputs)
            elif step.remember is not None:
                values[step.name], kept = step.remember(inputs[0], [state[:, span] for span in step.spans])
                for span, memory in zip(step.spans, kept, strict=True):
                    after[:, span] = memory
        actions = values[self._output]
        if actions.ndim != 2 or actions.dtype != numpy.float32:
            actions = actions.reshape(len(obs), -1).astype(numpy.float32)
        return actions, after


def _dense(operation: Operation) -> Compute:
    weight = numpy.ascontiguousarray(operation.arrays["weight"].T)
    bias = operation.arrays["bias"]
    num_in, num_out = weight.shape
    blocks = int(operation.number("blocks"))
    if blocks == 1:
        return lambda x: numpy.dot(x[0] if x[0].ndim == 2 else x[0].reshape(-1, num_in), weight) + bias
    return lambda x: (x[0].reshape(-1, num_in) @ weight + bias).reshape(-1, blocks * num_out)


_ZERO = numpy.float32(0)
"""Faster than a Python number, which each call would convert."""


def _sigmoid(x: Numbers) -> Numbers:
    return 0.5 * numpy.tanh(0.5 * x) + numpy.float32(0.5)


def _softplus(x: Numbers, beta: float = 1.0, threshold: float = 20.0) -> Numbers:
    scaled = beta * x
    return numpy.where(scaled > threshold, x, numpy.logaddexp(0, numpy.minimum(scaled, threshold)) / beta)


def _expm1_below_zero(x: Numbers) -> Numbers:
    return numpy.expm1(numpy.minimum(x, _ZERO))


def _elu(x: Numbers, alpha: float) -> Numbers:
    below = _expm1_below_zero(x)
    # With alpha 1 the larger of the two is the one that holds: two calls less for the usual activation.
    return numpy.maximum(x, below) if alpha == 1.0 else numpy.maximum(x, 0) + alpha * below


_SQRT_HALF = math.sqrt(0.5)
_SELU_ALPHA = 1.6732632423543772
_SELU_SCALE = 1.0507009873554805
_ERF = numpy.vectorize(math.erf, otypes=[numpy.float32])


def _fast_tanh(x: Numbers) -> Numbers:
    x = numpy.clip(x, -3.0, 3.0)
    square = x * x
    return x * (27 + square) / (27 + 9 * square)


_FUNCTIONS: dict[str, Callable[..., Numbers]] = {
    "celu": lambda x, alpha: numpy.maximum(x, 0) + alpha * _expm1_below_zero(x / alpha),
    "elu": _elu,
    "exp": lambda x: numpy.exp(x),
    "fast_tanh": _fast_tanh,
    "gelu": lambda x: 0.5 * x * (1 + _ERF(x * _SQRT_HALF)),
    "leaky_relu": lambda x, negative_slope: numpy.where(x > 0, x, negative_slope * x),
    "mish": lambda x: x * numpy.tanh(_softplus(x)),
    "relu": lambda x: numpy.maximum(x, _ZERO),
    "selu": lambda x: _SELU_SCALE * (numpy.maximum(x, 0) + _SELU_ALPHA * _expm1_below_zero(x)),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": _softplus,
    "tanh": lambda x: numpy.tanh(x),
}


def _activation(operation: Operation) -> Compute:
    name = operation.text("function")
    if name not in _FUNCTIONS:
        raise ValueError(f"activation '{name}' is not known. {suggest(name, _FUNCTIONS)}")
    function = _FUNCTIONS[name]
    constants = {key: operation.number(key) for key in operation.options if key != "function"}
    return lambda x: function(x[0], **constants)


def _normalize(operation: Operation) -> Compute:
    mean = operation.arrays["mean"]
    scale = operation.arrays["scale"]
    return lambda x: (x[0] - mean) * scale


def _scale(operation: Operation) -> Compute:
    scale = operation.arrays["scale"]
    shift = operation.arrays["shift"]
    return lambda x: x[0] * scale + shift


def _clamp(operation: Operation) -> Compute:
    low = operation.arrays["low"]
    high = operation.arrays["high"]
    return lambda x: numpy.minimum(numpy.maximum(x[0], low), high)


def _layer_norm(operation: Operation) -> Compute:
    weight = operation.arrays["weight"]
    bias = operation.arrays["bias"]
    eps = operation.number("eps")
    axes = tuple(range(1, 1 + len(operation.shape)))

    def compute(x: list[Numbers]) -> Numbers:
        centred = x[0] - x[0].mean(axes, keepdims=True)
        variance = numpy.square(centred).mean(axes, keepdims=True)
        return centred / numpy.sqrt(variance + eps) * weight + bias

    return compute


def _columns(operation: Operation) -> Compute:
    start = int(operation.number("start"))
    size = operation.size
    shape = operation.shape
    return lambda x: x[0].reshape(len(x[0]), -1)[:, start : start + size].reshape(-1, *shape)


def _concatenate(operation: Operation) -> Compute:
    return lambda x: numpy.concatenate([part.reshape(len(part), -1) for part in x], axis=1)


def _arg_max(operation: Operation) -> Compute:
    return lambda x: x[0].argmax(axis=1, keepdims=True).astype(numpy.float32)


def _beta_moment(operation: Operation) -> Compute:
    if operation.text("moment") != "mean":
        raise ValueError("the standard deviation of a Beta distribution is no action")
    low = operation.number("low")
    width = operation.number("width")

    def compute(x: list[Numbers]) -> Numbers:
        alpha, beta = numpy.split(_softplus(x[0]) + 1, 2, axis=1)
        return alpha / (alpha + beta) * width + low

    return compute


_PAD_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _windows(x: Numbers, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> Numbers:
    """Return a view of an image's windows. Shape: (num_envs, channels, rows, columns, *kernel)."""
    reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True))
    views = numpy.lib.stride_tricks.sliding_window_view(x, reach, axis=(2, 3))
    return views[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def _convolution(operation: Operation) -> Compute:
    weight = operation.arrays["weight"]
    bias = operation.arrays["bias"]
    stride = operation.pair("stride")
    dilation = operation.pair("dilation")
    padding = operation.pair("padding")
    kernel = (weight.shape[2], weight.shape[3])
    pads = [(0, 0), (0, 0), (padding[0], padding[0]), (padding[1], padding[1])]
    mode = _PAD_MODES[operation.text("padding_mode")]

    def compute(x: list[Numbers]) -> Numbers:
        padded = numpy.pad(x[0], pads, mode=mode) if any(padding) else x[0]  # type: ignore[call-overload]
        windows = _windows(padded, kernel, stride, dilation)
        product = numpy.tensordot(windows, weight, axes=([1, 4, 5], [1, 2, 3]))
        return numpy.ascontiguousarray(numpy.moveaxis(product + bias, -1, 1))

    return compute


def _channel_norm(operation: Operation) -> Compute:
    mean, scale, shift = (operation.arrays[name].reshape(-1, 1, 1) for name in ("mean", "scale", "shift"))
    return lambda x: (x[0] - mean) * scale + shift


def _max_pool(operation: Operation) -> Compute:
    kernel, stride, padding = (int(operation.number(name)) for name in ("kernel", "stride", "padding"))
    pads = [(0, 0), (0, 0), (padding, padding), (padding, padding)]

    def compute(x: list[Numbers]) -> Numbers:
        padded = numpy.pad(x[0], pads, constant_values=-numpy.inf)
        return _windows(padded, (kernel, kernel), (stride, stride), (1, 1)).max(axis=(4, 5))

    return compute


def _global_pool(operation: Operation) -> Compute:
    if operation.text("pooling") == "max":
        return lambda x: x[0].max(axis=(2, 3), keepdims=True)
    return lambda x: x[0].mean(axis=(2, 3), keepdims=True)


def _spatial_softmax(operation: Operation) -> Compute:
    grid = operation.arrays["grid"]

    def compute(x: list[Numbers]) -> Numbers:
        pixels = x[0].reshape(*x[0].shape[:2], -1)
        shares = numpy.exp(pixels - pixels.max(axis=2, keepdims=True))
        shares = shares / shares.sum(axis=2, keepdims=True)
        return (shares @ grid).reshape(len(pixels), -1)

    return compute


def _recurrent(operation: Operation) -> Remember:
    weights = [numpy.ascontiguousarray(operation.arrays[name].T) for name in ("weight_ih", "weight_hh")]
    biases = [operation.arrays[name] for name in ("bias_ih", "bias_hh")]
    size = operation.size

    def gru(x: Numbers, memory: list[Numbers]) -> tuple[Numbers, list[Numbers]]:
        given = x @ weights[0] + biases[0]
        kept = memory[0] @ weights[1] + biases[1]
        switches = _sigmoid(given[:, : 2 * size] + kept[:, : 2 * size])
        reset = switches[:, :size]
        update = switches[:, size:]
        new = numpy.tanh(given[:, 2 * size :] + reset * kept[:, 2 * size :])
        hidden = new + update * (memory[0] - new)
        return hidden, [hidden]

    def lstm(x: Numbers, memory: list[Numbers]) -> tuple[Numbers, list[Numbers]]:
        gates = x @ weights[0] + biases[0] + (memory[0] @ weights[1] + biases[1])
        enter = _sigmoid(gates[:, :size])
        forget = _sigmoid(gates[:, size : 2 * size])
        candidate = numpy.tanh(gates[:, 2 * size : 3 * size])
        leave = _sigmoid(gates[:, 3 * size :])
        cell = forget * memory[1] + enter * candidate
        hidden = leave * numpy.tanh(cell)
        return hidden, [hidden, cell]

    return {"gru": gru, "lstm": lstm}[operation.text("cell")]


def _window(operation: Operation) -> Remember:
    def remember(x: Numbers, memory: list[Numbers]) -> tuple[Numbers, list[Numbers]]:
        window = numpy.concatenate([*memory, x], axis=1)
        return window, [window[:, x.shape[1] :] for _ in memory]

    return remember


_KINDS: dict[str, Callable[[Operation], Compute]] = {
    "activation": _activation,
    "add": lambda operation: lambda x: x[0] + x[1],
    "arg_max": _arg_max,
    "beta_moment": _beta_moment,
    "channel_norm": _channel_norm,
    "clamp": _clamp,
    "columns": _columns,
    "concatenate": _concatenate,
    "convolution": _convolution,
    "dense": _dense,
    "global_pool": _global_pool,
    "layer_norm": _layer_norm,
    "max_pool": _max_pool,
    "normalize": _normalize,
    "scale": _scale,
    "spatial_softmax": _spatial_softmax,
}
_WITH_MEMORY: dict[str, Callable[[Operation], Remember]] = {"recurrent": _recurrent, "window": _window}
KINDS = tuple(sorted((*_KINDS, *_WITH_MEMORY)))
"""Every operation that is understood."""
