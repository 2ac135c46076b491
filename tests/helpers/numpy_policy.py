"""A policy's typed layers computed by NumPy in float64, from their documented formulas alone."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import numpy
import torch

from foundation.policies import layers as kinds
from foundation.policies.layers import OBS, Layer, Layers
from foundation.policies.policy_network import PolicyNetwork
from foundation.teachers import TeacherPolicyWrapper

Array = numpy.ndarray


def check_layers(policy: PolicyNetwork | TeacherPolicyWrapper, tolerance: float = 1e-5) -> Layers:
    """Assert that the layers equal ``step`` in every output over steps with partial resets, and return them."""
    layers = policy.layers()
    assert layers.state_size == policy.state_size
    twin = NumpyPolicy(layers)
    generator = torch.Generator().manual_seed(0)
    state = policy.initial_state(5)
    other = twin.initial_state(5)
    if state is not None:
        assert numpy.allclose(state.detach().numpy(), other)
    for _ in range(20):
        obs = torch.randn(5, policy.num_obs, generator=generator)
        dones = torch.rand(5, generator=generator) < 0.2
        with torch.no_grad():
            output, state = policy.step(obs, policy.reset_state(state, dones))
        other[dones.numpy()] = twin.initial
        expected, other = twin.step(obs, other)
        given = {field for field in output._fields if getattr(output, field) is not None}
        assert set(expected) == given - {"pre_tanh", "concentration"}  # losses read these; no layer gives them
        for name, value in expected.items():
            assert numpy.allclose(getattr(output, name).numpy(), value, rtol=tolerance, atol=tolerance), name
    if state is not None:
        assert numpy.allclose(state.numpy(), other, rtol=tolerance, atol=tolerance)
    return layers


class NumpyPolicy:
    """Acts step by step; its memory is the policy's state, in the columns that the layers name."""

    def __init__(self, layers: Layers, *outputs: str) -> None:
        """Keep the layers that outputs depend on; none named: all outputs."""
        self.outputs = {name: layers.outputs[name] for name in (outputs or layers.outputs)}
        self.layers = layers.needed_for(*self.outputs)
        self.initial = numpy.zeros(layers.state_size)
        for layer in layers:
            for memory in layer.memory:
                self.initial[memory.start : memory.start + memory.size] = _array(memory.initial)

    def initial_state(self, num_envs: int) -> Array:
        """Return the state at an episode's start. Shape: (num_envs, state_size)."""
        return numpy.tile(self.initial, (num_envs, 1))

    def step(self, obs: torch.Tensor, state: Array) -> tuple[dict[str, Array], Array]:
        """Return the outputs by name and the next state. Shape of obs: (num_envs, num_obs)."""
        values: dict[str, Array] = {OBS: _array(obs)}
        state = state.copy()
        for layer in self.layers:
            given = [values[name] for name in layer.inputs]
            before = [state[:, memory.start : memory.start + memory.size] for memory in layer.memory]
            if isinstance(layer, kinds.Recurrent):
                after = _recurrent(layer, given[0], before)
                result = after[0]
            elif isinstance(layer, kinds.Window):
                result = numpy.concatenate([*before, given[0]], axis=1)
                after = [result[:, given[0].shape[1] :]] if before else []
            else:
                result = _stateless(layer, given, len(obs))
                after = []
            assert result.shape[1:] == layer.shape, layer.name
            for memory, value in zip(layer.memory, after, strict=True):
                state[:, memory.start : memory.start + memory.size] = value
            values[layer.name] = result
        return {name: values[value] for name, value in self.outputs.items()}, state


def _array(value: torch.Tensor) -> Array:
    return value.detach().double().numpy()


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + numpy.exp(-x))


def _softplus(x: Array, beta: float = 1.0, threshold: float = 20.0) -> Array:
    return numpy.where(beta * x > threshold, x, numpy.log1p(numpy.exp(numpy.minimum(beta * x, threshold))) / beta)


def _erf(x: Array) -> Array:
    """Abramowitz and Stegun 7.1.26 is too coarse: the series of erf, which converges for every argument met here."""
    total = numpy.zeros_like(x)
    term = x.copy()
    for n in range(80):
        total += term / (2 * n + 1)
        term *= -(x**2) / (n + 1)
    return numpy.where(numpy.abs(x) < 4.5, 2.0 / numpy.sqrt(numpy.pi) * total, numpy.sign(x))


def _elu(x: Array, alpha: float) -> Array:
    return numpy.where(x > 0, x, alpha * numpy.expm1(numpy.minimum(x, 0.0)))


def _fast_tanh(x: Array) -> Array:
    x = numpy.clip(x, -3.0, 3.0)
    return x * (27.0 + x**2) / (27.0 + 9.0 * x**2)


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "celu": lambda x, alpha: numpy.maximum(x, 0.0) + numpy.minimum(0.0, alpha * numpy.expm1(x / alpha)),
    "elu": _elu,
    "exp": numpy.exp,
    "fast_tanh": _fast_tanh,
    "gelu": lambda x: 0.5 * x * (1.0 + _erf(numpy.clip(x, -8.0, 8.0) / numpy.sqrt(2.0))),
    "leaky_relu": lambda x, negative_slope: numpy.where(x > 0, x, negative_slope * x),
    "mish": lambda x: x * numpy.tanh(_softplus(x)),
    "relu": lambda x: numpy.maximum(x, 0.0),
    "selu": lambda x: 1.0507009873554805 * _elu(x, 1.6732632423543772),
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": _softplus,
    "tanh": numpy.tanh,
}


def _recurrent(layer: kinds.Recurrent, x: Array, before: list[Array]) -> list[Array]:
    """Return h, and for an LSTM c, after a step."""
    inner = x @ _array(layer.weight_ih).T + _array(layer.bias_ih)
    outer = before[0] @ _array(layer.weight_hh).T + _array(layer.bias_hh)
    if layer.kind == "gru":
        i_r, i_z, i_n = numpy.split(inner, 3, axis=1)
        h_r, h_z, h_n = numpy.split(outer, 3, axis=1)
        update = _sigmoid(i_z + h_z)
        new = numpy.tanh(i_n + _sigmoid(i_r + h_r) * h_n)
        return [(1.0 - update) * new + update * before[0]]
    write, forget, cell, show = numpy.split(inner + outer, 4, axis=1)
    kept = _sigmoid(forget) * before[1] + _sigmoid(write) * numpy.tanh(cell)
    return [_sigmoid(show) * numpy.tanh(kept), kept]


def _stateless(layer: Layer, given: list[Array], num_envs: int) -> Array:
    if isinstance(layer, kinds.Constant):
        return numpy.tile(_array(layer.value), (num_envs, 1))
    if isinstance(layer, kinds.Concatenate):
        return numpy.concatenate([part.reshape(num_envs, -1) for part in given], axis=1)
    if isinstance(layer, kinds.Add):
        return given[0] + given[1]
    if isinstance(layer, kinds.SquashedStd):
        return given[0] * numpy.maximum(1.0 - given[1] ** 2, 1e-7)
    for formula in (_of_numbers, _of_groups, _of_images):
        result = formula(layer, given[0])
        if result is not None:
            return result
    raise TypeError(f"no formula for {type(layer).__name__}")


def _of_numbers(layer: Layer, x: Array) -> Array | None:
    """Compute the layers that do the same to each number, or to each with parameters of its own."""
    match layer:
        case kinds.Activation():
            return FUNCTIONS[layer.function](x, **layer.constants)
        case kinds.Normalize():
            return (x - _array(layer.mean)) * _array(layer.scale)
        case kinds.Scale():
            return x * _array(layer.scale) + _array(layer.shift)
        case kinds.Clamp():
            return numpy.clip(x, _array(layer.low), _array(layer.high))
    return None


def _of_groups(layer: Layer, x: Array) -> Array | None:
    """Compute the layers that mix numbers, images apart."""
    match layer:
        case kinds.Dense():
            blocks = x.reshape(len(x), layer.blocks, -1)
            return (blocks @ _array(layer.weight).T + _array(layer.bias)).reshape(len(x), -1)
        case kinds.LayerNorm():
            axes = tuple(range(1, x.ndim))
            centred = x - x.mean(axis=axes, keepdims=True)
            spread = numpy.sqrt(x.var(axis=axes, keepdims=True) + layer.eps)
            return centred / spread * _array(layer.weight) + _array(layer.bias)
        case kinds.Columns():
            return x[:, layer.start : layer.start + prod(layer.shape)].reshape(len(x), *layer.shape)
        case kinds.ArgMax():
            return x.argmax(axis=1, keepdims=True).astype(float)
        case kinds.BetaMoment():
            return _beta(layer, x)
    return None


def _beta(layer: kinds.BetaMoment, x: Array) -> Array:
    alpha, beta = numpy.split(_softplus(x) + 1.0, 2, axis=1)
    total = alpha + beta
    if layer.moment == "mean":
        return alpha / total * layer.width + layer.low
    return numpy.sqrt(alpha * beta / (total**2 * (total + 1.0))) * layer.width


def _of_images(layer: Layer, x: Array) -> Array | None:
    match layer:
        case kinds.Convolution():
            return _convolve(layer, x)
        case kinds.ChannelNorm():
            mean, scale, shift = (_array(part)[:, None, None] for part in (layer.mean, layer.scale, layer.shift))
            return (x - mean) * scale + shift
        case kinds.MaxPool():
            pad = (layer.padding, layer.padding)
            padded = numpy.pad(x, ((0, 0), (0, 0), pad, pad), constant_values=-numpy.inf)
            views = numpy.lib.stride_tricks.sliding_window_view(padded, (layer.kernel, layer.kernel), axis=(2, 3))
            return views[:, :, :: layer.stride, :: layer.stride].max(axis=(-2, -1))
        case kinds.SpatialSoftmax():
            shares = numpy.exp(x - x.max(axis=(2, 3), keepdims=True))
            shares /= shares.sum(axis=(2, 3), keepdims=True)
            rows, columns = (numpy.linspace(-1.0, 1.0, size) for size in x.shape[2:])
            across = (shares * columns).sum(axis=(2, 3))
            down = (shares * rows[:, None]).sum(axis=(2, 3))
            return numpy.stack([across, down], axis=-1).reshape(len(x), -1)
        case kinds.GlobalPool():
            reduce = numpy.max if layer.kind == "max" else numpy.mean
            return reduce(x, axis=(2, 3), keepdims=True)
    return None


def _convolve(layer: kinds.Convolution, x: Array) -> Array:
    modes = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
    pads = ((0, 0), (0, 0), *((pad, pad) for pad in layer.padding))
    padded = numpy.pad(x, pads, mode=modes[layer.padding_mode])  # pyright: ignore[reportCallIssue, reportArgumentType]
    weight = _array(layer.weight)
    height, width = layer.shape[1:]
    result = numpy.tile(_array(layer.bias)[:, None, None], (len(x), 1, height, width))
    for row in range(weight.shape[2]):
        for column in range(weight.shape[3]):
            top = row * layer.dilation[0]
            left = column * layer.dilation[1]
            seen = padded[:, :, top :: layer.stride[0], left :: layer.stride[1]][:, :, :height, :width]
            result += numpy.einsum("nchw,oc->nohw", seen, weight[:, :, row, column])
    return result
