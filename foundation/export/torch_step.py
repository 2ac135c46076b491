"""A policy's program as a PyTorch module: TorchScript, ``torch.export``, ExecuTorch and LEAPP are written from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from foundation.core.errors import UserError
from foundation.deploy.program import OBS, Operation, Program


class ProgramStep(nn.Module):
    """One step of a program: nothing in it depends on the number of environments, so that it can be traced."""

    def __init__(self, program: Program, format_name: str) -> None:
        """Take over the weights.

        Args:
            program: The policy's operations.
            format_name: Name of what is to be written, for errors.
        """
        super().__init__()
        self.program = program
        for index, operation in enumerate(program.operations):
            function = operation.options.get("function")
            known = operation.kind in _COMPUTE or operation.kind in _REMEMBER
            if not known or (operation.kind == "activation" and function not in _FUNCTIONS):
                what = f"activation {function}" if known else operation.kind
                raise UserError(f"layer '{operation.name}' ({what}) cannot be written as {format_name}.")
            for name, array in operation.arrays.items():
                self.register_buffer(f"{name}_{index}", torch.from_numpy(array.copy()))

    def forward(self, obs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Act. Shapes: (num_envs, num_obs) and (num_envs, state_size) to (num_envs, num_actions) and the next state."""
        values = {OBS: obs}
        after: list[tuple[int, torch.Tensor]] = []
        for index, operation in enumerate(self.program.operations):
            weights = {name: self.get_buffer(f"{name}_{index}") for name in operation.arrays}
            inputs = [values[name] for name in operation.inputs]
            if operation.kind in _COMPUTE:
                values[operation.name] = _COMPUTE[operation.kind](operation, weights, inputs)
                continue
            before = [state[:, part.start : part.start + part.size] for part in operation.memory]
            values[operation.name], kept = _REMEMBER[operation.kind](operation, weights, inputs[0], before)
            after += [(part.start, value) for part, value in zip(operation.memory, kept, strict=True)]
        parts = [value for _, value in sorted(after, key=lambda item: item[0])]
        return values[self.program.output].flatten(1), torch.cat(parts, dim=1) if parts else state


Tensors = dict[str, torch.Tensor]
Inputs = list[torch.Tensor]


def _dense(op: Operation, w: Tensors, x: Inputs) -> torch.Tensor:
    blocks = int(op.number("blocks"))
    if blocks == 1:
        return functional.linear(x[0].flatten(1), w["weight"], w["bias"])
    num_in = op.arrays["weight"].shape[1]
    return functional.linear(x[0].reshape(-1, blocks, num_in), w["weight"], w["bias"]).flatten(1)


def _fast_tanh(x: torch.Tensor) -> torch.Tensor:
    x = x.clamp(-3.0, 3.0)
    square = x.square()
    return x * (27.0 + square) / (27.0 + 9.0 * square)


_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "celu": functional.celu,
    "elu": functional.elu,
    "exp": torch.exp,
    "fast_tanh": _fast_tanh,
    "gelu": functional.gelu,
    "leaky_relu": functional.leaky_relu,
    "mish": functional.mish,
    "relu": functional.relu,
    "selu": functional.selu,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "softplus": functional.softplus,
    "tanh": torch.tanh,
}


def _activation(op: Operation, w: Tensors, x: Inputs) -> torch.Tensor:
    constants = {key: op.number(key) for key in op.options if key != "function"}
    return _FUNCTIONS[op.text("function")](x[0], **constants)


def _layer_norm(op: Operation, w: Tensors, x: Inputs) -> torch.Tensor:
    return functional.layer_norm(x[0], list(op.shape), w["weight"], w["bias"], op.number("eps"))


def _columns(op: Operation, w: Tensors, x: Inputs) -> torch.Tensor:
    start = int(op.number("start"))
    return x[0].flatten(1)[:, start : start + op.size].reshape(-1, *op.shape)


def _beta_moment(op: Operation, w: Tensors, x: Inputs) -> torch.Tensor:
    alpha, beta = (functional.softplus(x[0]) + 1.0).chunk(2, dim=-1)
    return alpha / (alpha + beta) * op.number("width") + op.number("low")


def _convolution(op: Operation, w: Tensors, x: Inputs) -> torch.Tensor:
    image = x[0]
    padding = op.pair("padding")
    mode = op.text("padding_mode")
    if mode != "zeros" and any(padding):
        image = functional.pad(image, (padding[1], padding[1], padding[0], padding[0]), mode=mode)
        padding = (0, 0)
    return functional.conv2d(image, w["weight"], w["bias"], op.pair("stride"), padding, op.pair("dilation"))


def _of_channels(weight: torch.Tensor) -> torch.Tensor:
    return weight.reshape(-1, 1, 1)


def _channel_norm(op: Operation, w: Tensors, x: Inputs) -> torch.Tensor:
    return (x[0] - _of_channels(w["mean"])) * _of_channels(w["scale"]) + _of_channels(w["shift"])


def _max_pool(op: Operation, w: Tensors, x: Inputs) -> torch.Tensor:
    kernel, stride, padding = (int(op.number(name)) for name in ("kernel", "stride", "padding"))
    return functional.max_pool2d(x[0], kernel, stride, padding)


def _global_pool(op: Operation, w: Tensors, x: Inputs) -> torch.Tensor:
    return x[0].amax((2, 3), keepdim=True) if op.text("pooling") == "max" else x[0].mean((2, 3), keepdim=True)


def _spatial_softmax(op: Operation, w: Tensors, x: Inputs) -> torch.Tensor:
    return (x[0].flatten(2).softmax(-1) @ w["grid"]).flatten(1)


_COMPUTE: dict[str, Callable[[Operation, Tensors, Inputs], torch.Tensor]] = {
    "activation": _activation,
    "add": lambda op, w, x: x[0] + x[1],
    "arg_max": lambda op, w, x: x[0].argmax(dim=-1, keepdim=True).to(x[0].dtype),
    "beta_moment": _beta_moment,
    "channel_norm": _channel_norm,
    "clamp": lambda op, w, x: torch.minimum(torch.maximum(x[0], w["low"]), w["high"]),
    "columns": _columns,
    "concatenate": lambda op, w, x: torch.cat([part.flatten(1) for part in x], dim=1),
    "convolution": _convolution,
    "dense": _dense,
    "global_pool": _global_pool,
    "layer_norm": _layer_norm,
    "max_pool": _max_pool,
    "normalize": lambda op, w, x: (x[0] - w["mean"]) * w["scale"],
    "scale": lambda op, w, x: x[0] * w["scale"] + w["shift"],
    "spatial_softmax": _spatial_softmax,
}


def _recurrent(op: Operation, w: Tensors, x: torch.Tensor, before: Inputs) -> tuple[torch.Tensor, Inputs]:
    weights = w["weight_ih"], w["weight_hh"], w["bias_ih"], w["bias_hh"]
    if op.text("cell") == "gru":
        hidden = torch.gru_cell(x, before[0], *weights)
        return hidden, [hidden]
    hidden, cell = torch.lstm_cell(x, (before[0], before[1]), *weights)
    return hidden, [hidden, cell]


def _window(op: Operation, w: Tensors, x: torch.Tensor, before: Inputs) -> tuple[torch.Tensor, Inputs]:
    window = torch.cat([*before, x], dim=1)
    newest = op.size // int(op.number("length"))
    return window, [window[:, newest:] for _ in before]


_REMEMBER: dict[str, Callable[[Operation, Tensors, torch.Tensor, Inputs], tuple[torch.Tensor, Inputs]]] = {
    "recurrent": _recurrent,
    "window": _window,
}

KINDS = frozenset(_COMPUTE) | frozenset(_REMEMBER)
"""Kinds of operations that a step can compute."""


def initial_state(program: Program, num_envs: int) -> torch.Tensor:
    """Return the memory at the start of an episode. Shape: (num_envs, state_size)."""
    return torch.from_numpy(program.initial_state.copy()).repeat(num_envs, 1)
