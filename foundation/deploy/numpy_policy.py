"""A program's operations in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from math import prod

import numpy
from numpy.typing import NDArray

from foundation.core.errors import suggest
from foundation.deploy.golden import FloatArray
from foundation.deploy.program import OBS, Operation, Program

Numbers = NDArray[numpy.floating]
"""Intermediate values by name. Weights and observations are float32, and so are all of these."""
Call = Callable[[], object]
"""Computes into arrays that were given before."""
Compute = Callable[[list[Numbers]], Numbers]
"""Makes a value of those that an operation reads. Shape: (num_envs, ...) each."""


class NumpyProgram:
    """Computes one step of a policy, for any number of environments at once.

    All arrays are made when a number of environments is first seen, so that a step of one robot costs little more than
    its arithmetic. Not for several threads at once.
    """

    def __init__(self, program: Program) -> None:
        """Look at the operations.

        Args:
            program: What to compute.
        """
        for operation in program.operations:
            if operation.kind not in KINDS:
                raise ValueError(f"operation '{operation.kind}' is not known. {suggest(operation.kind, KINDS)}")
        self.initial_state = program.initial_state
        self._program = program
        self._plan = _Plan(program, 1)

    @property
    def values(self) -> Mapping[str, Numbers]:
        """Every value of the last step, by name: the next step writes over them."""
        return self._plan.values

    def run(self, obs: FloatArray, state: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Act for one step.

        Args:
            obs: Shape: (num_envs, num_obs).
            state: Shape: (num_envs, state_size).

        Returns:
            Actions, shape (num_envs, num_actions), and the next state.
        """
        plan = self._plan
        if plan.num_envs != len(obs):
            plan = self._plan = _Plan(self._program, len(obs))
        plan.obs[...] = obs
        if not plan.remembers:
            for call in plan.calls:
                call()
            return plan.actions.copy(), state
        plan.before[...] = state
        for call in plan.calls:
            call()
        return plan.actions.copy(), plan.after.copy()


class _Plan:
    """The calls of a step for one number of environments, and the arrays that they work in."""

    def __init__(self, program: Program, num_envs: int) -> None:
        self.num_envs = num_envs
        self.calls: list[Call] = []
        self._with_one: dict[int, tuple[FloatArray, FloatArray]] = {}
        self.obs = self.array(program.num_obs)
        self.before, self.after = self.array(program.state_size), self.array(program.state_size)
        self.remembers = program.state_size > 0
        values: dict[str, Numbers] = {OBS: self.obs}
        for operation in program.operations:
            inputs = [values[name] for name in operation.inputs]
            value = _WRITERS[operation.kind](self, operation, inputs)
            values[operation.name] = value
        self.values = values
        self.actions = values[program.output].reshape(num_envs, -1)

    def array(self, *shape: int) -> FloatArray:
        """Return a new array. Shape: (num_envs, *shape).

        Behind the numbers of a single robot's vector is a 1, by which :meth:`product` adds the bias.
        """
        if self.num_envs > 1 or len(shape) != 1:
            return numpy.zeros((self.num_envs, *shape), numpy.float32)
        (size,) = shape
        whole = numpy.zeros(size + 1, numpy.float32)
        whole[-1] = 1.0
        made = whole[None, :-1]
        self._with_one[id(made)] = made, whole
        return made

    def call(self, function: Callable[..., object], *arguments: object, **named: object) -> None:
        """Append a call. Arguments bound beforehand cost a third of a function of our own."""
        self.calls.append(partial(function, *arguments, **named))

    def product(self, rows: Numbers, weight: Numbers, bias: Numbers, out: Numbers) -> None:
        """Append ``out = rows weight + bias``. Shapes: (n, num_in), (num_in, num_out), (num_out,), (n, num_out)."""
        if id(rows) in self._with_one:
            _, whole = self._with_one[id(rows)]
            self.call(whole.dot, numpy.concatenate([weight, bias[None]]), out[0])
            return
        if len(rows) == 1:  # a vector's product has less to prepare than a matrix's
            rows, out = rows[0], out[0]
        self.call(rows.dot, weight, out)
        self.call(numpy.add, out, bias, out)

    def into(self, out: Numbers, compute: Compute, inputs: list[Numbers]) -> Numbers:
        """Append what makes a new array at each step, for operations in which that is not what costs."""
        self.calls.append(lambda: numpy.copyto(out, compute(inputs)))
        return out

    def flat(self, value: Numbers) -> Numbers:
        """Return a value as (num_envs, size)."""
        if value.ndim == 2:
            return value
        flat = self.array(prod(value.shape[1:]))
        shaped = flat.reshape(value.shape)
        self.call(numpy.copyto, shaped, value)
        return flat


Write = Callable[[_Plan, Operation, list[Numbers]], Numbers]
"""Appends an operation's calls and returns where its value will be."""


def _dense(plan: _Plan, op: Operation, x: list[Numbers]) -> Numbers:
    weight = numpy.ascontiguousarray(op.arrays["weight"].T)
    num_in, num_out = weight.shape
    blocks = int(op.number("blocks"))
    out = plan.array(blocks * num_out)
    rows = plan.flat(x[0])
    rows = rows if blocks == 1 else rows.reshape(-1, num_in)
    plan.product(rows, weight, op.arrays["bias"], out.reshape(-1, num_out))
    return out


_ZERO = numpy.array(0.0, numpy.float32)
_HALF = numpy.array(0.5, numpy.float32)
"""Faster than Python numbers, which each call would convert."""


def _sigmoid(x: Numbers) -> Numbers:
    return 0.5 * numpy.tanh(0.5 * x) + _HALF


def _softplus(x: Numbers, beta: float = 1.0, threshold: float = 20.0) -> Numbers:
    scaled = beta * x
    return numpy.where(scaled > threshold, x, numpy.logaddexp(0, numpy.minimum(scaled, threshold)) / beta)


def _expm1_below_zero(x: Numbers) -> Numbers:
    return numpy.expm1(numpy.minimum(x, 0))


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
    "elu": lambda x, alpha: numpy.maximum(x, 0) + alpha * _expm1_below_zero(x),
    "exp": lambda x: numpy.exp(x),
    "fast_tanh": _fast_tanh,
    "gelu": lambda x: 0.5 * x * (1 + _ERF(x * _SQRT_HALF)),
    "leaky_relu": lambda x, negative_slope: numpy.where(x > 0, x, negative_slope * x),
    "mish": lambda x: x * numpy.tanh(_softplus(x)),
    "relu": lambda x: numpy.maximum(x, 0),
    "selu": lambda x: _SELU_SCALE * (numpy.maximum(x, 0) + _SELU_ALPHA * _expm1_below_zero(x)),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": _softplus,
    "tanh": lambda x: numpy.tanh(x),
}


def _activation(plan: _Plan, op: Operation, x: list[Numbers]) -> Numbers:
    name = op.text("function")
    if name not in _FUNCTIONS:
        raise ValueError(f"activation '{name}' is not known. {suggest(name, _FUNCTIONS)}")
    constants = {key: op.number(key) for key in op.options if key != "function"}
    out = plan.array(*op.shape)
    # The usual ones in arrays of their own; the others make new ones. Minimum and maximum keep NaN, which fmin and fmax
    # do not; their output has to be named, as a third argument has been deprecated for them, at 5 us a call.
    if name == "tanh":
        plan.call(numpy.tanh, x[0], out)
    elif name == "relu":
        plan.call(numpy.maximum, x[0], _ZERO, out=out)
    elif name == "elu" and constants["alpha"] == 1.0:  # the larger of the two is then the one that holds
        plan.call(numpy.minimum, x[0], _ZERO, out=out)
        plan.call(numpy.expm1, out, out)
        plan.call(numpy.fmax, x[0], out, out)
    else:
        function = _FUNCTIONS[name]
        plan.into(out, lambda x: function(x[0], **constants), x)
    return out


def _add(plan: _Plan, op: Operation, x: list[Numbers]) -> Numbers:
    out = plan.array(*op.shape)
    plan.call(numpy.add, x[0], x[1], out)
    return out


def _pairwise(first: str, then_first: numpy.ufunc, second: str, then_second: numpy.ufunc) -> Write:
    """Return the writer of two element-wise steps, each with a constant."""

    def write(plan: _Plan, op: Operation, x: list[Numbers]) -> Numbers:
        out = plan.array(*op.shape)
        # One robot's arrays have the constants' shapes then, which NumPy is fastest with.
        plan.call(then_first, x[0], op.arrays[first][None], out)
        plan.call(then_second, out, op.arrays[second][None], out)
        return out

    return write


def _clamp(plan: _Plan, op: Operation, x: list[Numbers]) -> Numbers:
    out = plan.array(*op.shape)
    low, high = (numpy.broadcast_to(op.arrays[name], op.shape)[None].copy() for name in ("low", "high"))
    plan.call(x[0].clip, low, high, out)
    return out


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


def _recurrent(plan: _Plan, op: Operation, x: list[Numbers]) -> Numbers:
    """Append a recurrent layer. A sigmoid is half a hyperbolic tangent of half its argument, plus a half.

    The half of the argument is in the weights, which a power of two does not round.
    """
    size = op.size
    write, gates = {"gru": (_gru, slice(0, 2 * size)), "lstm": (_lstm, None)}[op.text("cell")]
    halves = numpy.ones((op.arrays["bias_ih"].size, 1), numpy.float32)
    if gates is None:
        halves[: 2 * size] = halves[3 * size :] = _HALF
    else:
        halves[gates] = _HALF
    products: list[Numbers] = []
    spans = [slice(memory.start, memory.start + memory.size) for memory in op.memory]
    remembered = plan.before if op.memory[0].size == plan.before.shape[1] else plan.before[:, spans[0]]
    for read, suffix in ((plan.flat(x[0]), "ih"), (remembered, "hh")):
        weight = numpy.ascontiguousarray((op.arrays[f"weight_{suffix}"] * halves).T)
        product = plan.array(halves.size)
        plan.product(read, weight, op.arrays[f"bias_{suffix}"] * halves[:, 0], product)
        products.append(product)
    write(
        plan,
        products[0],
        products[1],
        [plan.before[:, span] for span in spans],
        [plan.after[:, span] for span in spans],
    )
    return plan.after[:, spans[0]]


def _finish_sigmoid(plan: _Plan, x: Numbers) -> None:
    plan.call(numpy.tanh, x, x)
    plan.call(numpy.multiply, x, _HALF, x)
    plan.call(numpy.add, x, _HALF, x)


def _gru(plan: _Plan, given: Numbers, kept: Numbers, before: list[Numbers], after: list[Numbers]) -> None:
    size = given.shape[1] // 3
    switches = given[:, : 2 * size]
    new = given[:, 2 * size :]
    candidate = kept[:, 2 * size :]
    plan.call(numpy.add, switches, kept[:, : 2 * size], switches)
    _finish_sigmoid(plan, switches)
    plan.call(numpy.multiply, switches[:, :size], candidate, candidate)
    plan.call(numpy.add, new, candidate, new)
    plan.call(numpy.tanh, new, new)
    plan.call(numpy.subtract, before[0], new, candidate)
    plan.call(numpy.multiply, switches[:, size:], candidate, candidate)
    plan.call(numpy.add, new, candidate, after[0])


def _lstm(plan: _Plan, given: Numbers, kept: Numbers, before: list[Numbers], after: list[Numbers]) -> None:
    size = given.shape[1] // 4
    enter, forget, candidate, leave = (given[:, part * size : (part + 1) * size] for part in range(4))
    plan.call(numpy.add, given, kept, given)
    for part in (given[:, : 2 * size], leave):
        _finish_sigmoid(plan, part)
    plan.call(numpy.tanh, candidate, candidate)
    plan.call(numpy.multiply, enter, candidate, candidate)
    plan.call(numpy.multiply, forget, before[1], forget)
    plan.call(numpy.add, forget, candidate, after[1])
    plan.call(numpy.tanh, after[1], candidate)
    plan.call(numpy.multiply, leave, candidate, after[0])


def _window(plan: _Plan, op: Operation, x: list[Numbers]) -> Numbers:
    given = plan.flat(x[0])
    out = plan.array(op.size)
    past = out.shape[1] - given.shape[1]
    for memory in op.memory:
        span = slice(memory.start, memory.start + memory.size)
        plan.call(numpy.copyto, out[:, :past], plan.before[:, span])
        plan.call(numpy.copyto, out[:, past:], given)
        plan.call(numpy.copyto, plan.after[:, span], out[:, given.shape[1] :])
    if not op.memory:
        plan.call(numpy.copyto, out, given)
    return out


def _computed(prepare: Callable[[Operation], Compute]) -> Write:
    """Return the writer of an operation that makes a new array at each step."""

    def write(plan: _Plan, op: Operation, x: list[Numbers]) -> Numbers:
        return plan.into(plan.array(*op.shape), prepare(op), x)

    return write


_WRITERS: dict[str, Write] = {
    "activation": _activation,
    "add": _add,
    "arg_max": _computed(_arg_max),
    "beta_moment": _computed(_beta_moment),
    "channel_norm": _computed(_channel_norm),
    "clamp": _clamp,
    "columns": _computed(_columns),
    "concatenate": _computed(_concatenate),
    "convolution": _computed(_convolution),
    "dense": _dense,
    "global_pool": _computed(_global_pool),
    "layer_norm": _computed(_layer_norm),
    "max_pool": _computed(_max_pool),
    "normalize": _pairwise("mean", numpy.subtract, "scale", numpy.multiply),
    "recurrent": _recurrent,
    "scale": _pairwise("scale", numpy.multiply, "shift", numpy.add),
    "spatial_softmax": _computed(_spatial_softmax),
    "window": _window,
}
KINDS = tuple(sorted(_WRITERS))
"""Every operation that is understood."""
