"""A policy as a list of typed layers, with their weights and memory, from which every exporter writes.

``policy.layers()`` gives it for every policy, student or teacher, whose layers are known::

    layers = policy.layers()
    for layer in layers.needed_for("mean"):  # the action alone, without standard deviation and critic
        match layer:
            case Dense():  # y = weight x + bias, of the values that layer.inputs names
                ...

A layer reads values by name: ``"obs"``, the policy's observation, or an earlier layer's output. ``layers.outputs``
names the values that are the policy's ``mean``, ``std``, ``value``, ``logits`` and ``features``. A layer with memory
owns columns of the policy's state, and says their values when an episode begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import nn

from foundation.core.errors import UserError

OBS = "obs"
"""Name of the observation among the values that layers read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Memory:
    """Columns of the policy's state that belong to one layer."""

    start: int
    """The first of them."""
    initial: torch.Tensor
    """Their values when an episode begins. Shape: (size,)."""

    @property
    def size(self) -> int:
        """Number of columns."""
        return self.initial.numel()


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """Base of the layers. The formulas below are for one environment; ``x`` is the first input."""

    name: str
    """Name of its output: the module's path in the policy, such as ``actor.0``."""
    inputs: tuple[str, ...]
    """Names of the values that it reads."""
    shape: tuple[int, ...]
    """Shape of its output, without the dimension of environments: (size,), or (channels, height, width) of images."""
    memory: tuple[Memory, ...] = ()
    """Columns of the policy's state that it owns; empty without memory."""

    @property
    def size(self) -> int:
        """Number of elements of its output."""
        return prod(self.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Dense(Layer):
    """``weight x + bias``; with ``blocks``, of each block of ``x``, one after the other (a convolution over time)."""

    weight: torch.Tensor
    """Shape: (num_out, num_in)."""
    bias: torch.Tensor
    """Shape: (num_out,)."""
    blocks: int = 1
    """Number of parts of ``x``, of num_in numbers each, that share the weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Activation(Layer):
    """An elementwise function."""

    function: str
    """celu | elu | exp | fast_tanh | gelu | leaky_relu | mish | relu | selu | sigmoid | silu | softplus | tanh.
    ``fast_tanh`` is rl-tools' ``x (27 + x^2) / (27 + 9 x^2)`` of ``x`` clamped to ±3."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """PyTorch's arguments of the function, such as ``{"alpha": 1.0}``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Normalize(Layer):
    """``(x - mean) * scale``."""

    mean: torch.Tensor
    """Shape: (size,)."""
    scale: torch.Tensor
    """Shape: (size,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale(Layer):
    """``x * scale + shift``."""

    scale: torch.Tensor
    """Shape: () or (size,)."""
    shift: torch.Tensor
    """Shape: () or (size,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Clamp(Layer):
    """``min(max(x, low), high)``."""

    low: torch.Tensor
    """Shape: () or (size,)."""
    high: torch.Tensor
    """Shape: () or (size,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LayerNorm(Layer):
    """``(x - m) / sqrt(v + eps) * weight + bias`` with the mean ``m`` and the biased variance ``v`` of all of ``x``."""

    weight: torch.Tensor
    """Shape: that of ``x``."""
    bias: torch.Tensor
    """Shape: that of ``x``."""
    eps: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Recurrent(Layer):
    """One GRU or LSTM layer whose output is ``h``, with PyTorch's weights. Order of gates: r, z, n; or i, f, g, o."""

    kind: Literal["gru", "lstm"]
    """A GRU's memory is ``h``, an LSTM's ``h`` and ``c``."""
    weight_ih: torch.Tensor
    """Shape: (gates * size, num_in)."""
    weight_hh: torch.Tensor
    """Shape: (gates * size, size)."""
    bias_ih: torch.Tensor
    """Shape: (gates * size,)."""
    bias_hh: torch.Tensor
    """Shape: (gates * size,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Window(Layer):
    """The last ``length`` values of ``x``, concatenated, oldest first; its memory is all of them except the newest."""

    length: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Columns(Layer):
    """A slice of the flat value ``x``: the elements from ``start`` on, as many as ``shape`` has, in that shape."""

    start: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Concatenate(Layer):
    """All inputs, flattened, one after the other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Constant(Layer):
    """A value that does not depend on the observation; it has no inputs."""

    value: torch.Tensor
    """Shape: (size,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArgMax(Layer):
    """The index of the largest element, as a float."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BetaMoment(Layer):
    """Mean or std of Beta distributions on a range; ``softplus(x) + 1`` are all their alphas, then all their betas."""

    moment: Literal["mean", "std"]
    low: float
    """Lower end of the range."""
    width: float
    """Width of the range."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SquashedStd(Layer):
    """Std of an action after tanh, to first order: ``std * max(1 - mean^2, 1e-7)``; inputs: std, mean."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Convolution(Layer):
    """A two-dimensional convolution of an image, as PyTorch has it."""

    weight: torch.Tensor
    """Shape: (channels out, channels in, height, width)."""
    bias: torch.Tensor
    """Shape: (channels out,)."""
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    padding_mode: str
    """zeros | reflect | replicate | circular."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ChannelNorm(Layer):
    """``(x - mean) * scale + shift`` for each channel of an image: batch normalisation with fixed moments."""

    mean: torch.Tensor
    """Shape: (channels,)."""
    scale: torch.Tensor
    """Shape: (channels,)."""
    shift: torch.Tensor
    """Shape: (channels,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MaxPool(Layer):
    """The maximum of square windows of an image; beyond its border it is minus infinity."""

    kernel: int
    stride: int
    padding: int


@dataclass(frozen=True, kw_only=True, eq=False)
class GlobalPool(Layer):
    """The maximum or the mean of each channel of an image."""

    kind: Literal["max", "mean"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Add(Layer):
    """The sum of two inputs of the same shape: a residual block's."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SpatialSoftmax(Layer):
    """Mean position of each channel's softmax over its pixels: x, y of the first channel, x, y of the second, ..."""

    grid: torch.Tensor
    """Position of each pixel, row by row. Shape: (height * width, 2)."""


class Layers:
    """A policy's layers, each after those that it reads."""

    def __init__(self, num_obs: int) -> None:
        """Begin without layers.

        Args:
            num_obs: Number of observations.
        """
        self.outputs: dict[str, str] = {}
        """Output of the policy -> name of the value: ``mean``, and where the policy has them ``std``, ``value``,
        ``logits`` and ``features``, the last hidden layer."""
        self.state_size = 0
        """Number of columns of the policy's state."""
        self._layers: dict[str, Layer] = {}
        self._shapes: dict[str, tuple[int, ...]] = {OBS: (num_obs,)}

    def __iter__(self) -> Iterator[Layer]:
        """Go through the layers in an order in which they can be computed."""
        return iter(self._layers.values())

    def __len__(self) -> int:
        """Return the number of layers."""
        return len(self._layers)

    def needed_for(self, *outputs: str) -> list[Layer]:
        """Return the layers that outputs depend on, in order.

        Args:
            outputs: Of ``mean``, ``std``, ``value``, ``logits``, ``features``.
        """
        needed = {self.outputs[output] for output in outputs}
        kept: list[Layer] = []
        # From the end: a layer comes after all that it reads, so that one pass finds everything that is needed.
        for layer in reversed(self._layers.values()):
            if layer.name in needed:
                needed.update(layer.inputs)
                kept.append(layer)
        return kept[::-1]

    # -- making the list: for policies and the modules they are made of -----------------------------------------------

    def add(self, layer: Layer) -> str:
        """Append a layer and return the name of its output."""
        if layer.name in self._shapes:
            raise ValueError(f"a policy has two layers '{layer.name}'")
        # A layer can only name what is there already, so that the order of the list is one in which it can be computed.
        self._layers[layer.name] = layer
        self._shapes[layer.name] = layer.shape
        return layer.name

    def set_moments(self, moments: tuple[str, str | None]) -> None:
        """Set which values are mean and std."""
        self.outputs["mean"] = moments[0]
        if moments[1] is not None:
            self.outputs["std"] = moments[1]

    def shape(self, value: str) -> tuple[int, ...]:
        """Return the shape of a value."""
        return self._shapes[value]

    def size(self, value: str) -> int:
        """Return the number of elements of a value."""
        return prod(self._shapes[value])

    def reserve(self, size: int) -> int:
        """Reserve columns of the state for a layer, and return the index of the first one."""
        start = self.state_size
        self.state_size += size
        return start

    def columns(self, x: str, name: str, start: int, shape: tuple[int, ...]) -> str:
        """Append a slice of a flat value."""
        return self.add(Columns(name=name, inputs=(x,), shape=shape, start=start))

    def activation(self, x: str, name: str, function: str, **constants: float) -> str:
        """Append an elementwise function."""
        return self.add(Activation(name=name, inputs=(x,), shape=self.shape(x), function=function, constants=constants))

    def clamp(self, x: str, name: str, low: torch.Tensor | float, high: torch.Tensor | float) -> str:
        """Append ``min(max(x, low), high)``."""
        bounds = [torch.as_tensor(bound).detach() for bound in (low, high)]
        return self.add(Clamp(name=name, inputs=(x,), shape=self.shape(x), low=bounds[0], high=bounds[1]))

    def normalize(self, x: str, name: str, mean: torch.Tensor, scale: torch.Tensor) -> str:
        """Append ``(x - mean) * scale``."""
        return self.add(
            Normalize(name=name, inputs=(x,), shape=self.shape(x), mean=mean.detach(), scale=scale.detach())
        )

    def scale(self, x: str, name: str, scale: torch.Tensor | float, shift: torch.Tensor | float = 0.0) -> str:
        """Append ``x * scale + shift``."""
        factors = [torch.as_tensor(factor).detach() for factor in (scale, shift)]
        return self.add(Scale(name=name, inputs=(x,), shape=self.shape(x), scale=factors[0], shift=factors[1]))

    def choice(self, logits: str, sizes: Sequence[int] = ()) -> str:
        """Append the index of a discrete policy's best choice, or of each of several choices of these sizes."""
        if len(sizes) < 2:
            return self.add(ArgMax(name="choice", inputs=(logits,), shape=(1,)))
        best = []
        for index, size in enumerate(sizes):
            scores = self.columns(logits, f"scores.{index}", sum(sizes[:index]), (size,))
            best.append(self.add(ArgMax(name=f"choice.{index}", inputs=(scores,), shape=(1,))))
        return self.concatenate(tuple(best), "choice")

    def concatenate(self, parts: tuple[str, ...], name: str) -> str:
        """Append the concatenation of several values."""
        return self.add(Concatenate(name=name, inputs=parts, shape=(sum(self.size(part) for part in parts),)))

    def dense(self, x: str, name: str, linear: nn.Linear, blocks: int = 1) -> str:
        """Append a linear layer, applied to each of ``blocks`` equal parts of ``x`` (see :class:`Dense`)."""
        weight = linear.weight.detach()
        bias = weight.new_zeros(weight.shape[0]) if linear.bias is None else linear.bias.detach()
        shape = (blocks * weight.shape[0],)
        return self.add(Dense(name=name, inputs=(x,), shape=shape, weight=weight, bias=bias, blocks=blocks))

    def module(self, module: nn.Module, x: str, name: str) -> str:
        """Append what a module computes of a value.

        Args:
            module: One of PyTorch's, or one that lists its layers itself (:class:`ListsLayers`).
            x: The value.
            name: The module's place in the policy.

        Returns:
            The name of its result.
        """
        if isinstance(module, ListsLayers):
            return module.list_layers(self, x, name)
        if isinstance(module, nn.Sequential):
            for key, child in module.named_children():
                x = self.module(child, x, f"{name}.{key}")
            return x
        if isinstance(module, nn.Identity | nn.Flatten):
            return x  # all values except images are flat, and layers that read an image flat flatten it themselves
        if isinstance(module, nn.Linear):
            return self.dense(x, name, module)
        # By the exact type: a subclass of an activation may compute something else.
        if type(module) in _ACTIVATIONS:
            function, constants = _ACTIVATIONS[type(module)]
            return self.activation(x, name, function, **{key: float(getattr(module, key)) for key in constants})
        if isinstance(module, nn.Hardtanh):
            return self.clamp(x, name, module.min_val, module.max_val)
        return self.add(self._of_images(module, x, name))

    def _of_images(self, module: nn.Module, x: str, name: str) -> Layer:
        """Return the layer for a module of an image encoder."""
        shape = self.shape(x)
        if isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == shape:
            return LayerNorm(
                name=name,
                inputs=(x,),
                shape=shape,
                weight=module.weight.detach(),
                bias=module.bias.detach(),
                eps=module.eps,
            )
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            # A policy that acts is in eval mode: its batch normalisation is an affine map of fixed moments.
            scale = module.weight.detach() * (module.running_var + module.eps).rsqrt()
            mean = module.running_mean
            shift = module.bias.detach()
            return ChannelNorm(name=name, inputs=(x,), shape=shape, mean=mean, scale=scale, shift=shift)
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.bias is not None:
            return Convolution(
                name=name,
                inputs=(x,),
                shape=_shape_after(module, shape),
                weight=module.weight.detach(),
                bias=module.bias.detach(),
                stride=_pair(module.stride),
                padding=_pair(module.padding),
                dilation=_pair(module.dilation),
                padding_mode=module.padding_mode,
            )
        if isinstance(module, nn.MaxPool2d):
            sizes = [int(size) for size in (module.kernel_size, module.stride, module.padding)]  # pyright: ignore
            after = _shape_after(module, shape)
            return MaxPool(name=name, inputs=(x,), shape=after, kernel=sizes[0], stride=sizes[1], padding=sizes[2])
        if isinstance(module, nn.AdaptiveMaxPool2d | nn.AdaptiveAvgPool2d):
            kind = "max" if isinstance(module, nn.AdaptiveMaxPool2d) else "mean"
            return GlobalPool(name=name, inputs=(x,), shape=(shape[0], 1, 1), kind=kind)
        raise UserError(
            f"the policy's layer '{name}' is a {type(module).__name__}, which cannot be written in another format: "
            "give the class a method list_layers (foundation.policies.layers)."
        )


@runtime_checkable
class ListsLayers(Protocol):
    """A module, of this project or a user's own, that lists its layers."""

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append its layers, which read the value ``x``, and return the name of its result."""
        ...


_ACTIVATIONS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.CELU: ("celu", ("alpha",)),
    nn.ELU: ("elu", ("alpha",)),
    nn.GELU: ("gelu", ()),
    nn.LeakyReLU: ("leaky_relu", ("negative_slope",)),
    nn.Mish: ("mish", ()),
    nn.ReLU: ("relu", ()),
    nn.SELU: ("selu", ()),
    nn.Sigmoid: ("sigmoid", ()),
    nn.SiLU: ("silu", ()),
    nn.Softplus: ("softplus", ("beta", "threshold")),
    nn.Tanh: ("tanh", ()),
}


def _pair(value: str | int | tuple[int, ...]) -> tuple[int, int]:
    assert isinstance(value, tuple)
    return int(value[0]), int(value[1])


@torch.no_grad()
def _shape_after(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    # Asked of the module itself: its rules of padding, dilation and rounding are not written a second time.
    weight = next(module.parameters(), torch.zeros(()))
    return tuple(module(weight.new_zeros(1, *shape)).shape[1:])
