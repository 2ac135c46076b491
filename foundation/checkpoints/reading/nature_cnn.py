"""NatureCNN (Mnih et al. 2015) as Stable-Baselines3 has it: what its CnnPolicy sees through."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from foundation.checkpoints.reading.agent_config import at
from foundation.checkpoints.reading.assembler import single_linear
from foundation.checkpoints.reading.loading import Source, Tensors
from foundation.core.errors import UserError
from foundation.policies.image_encoders import ImageEncoders, Shape
from foundation.policies.layers import Layers

KERNELS = ((8, 4), (4, 2), (3, 1))
"""Kernel and stride of each convolution, which are not padded."""
WHITE = 255.0
"""What the library divides bytes by."""
_PARTS = ("weight", "bias")
_NAMES = {f"{layer}.{part}" for layer in ("cnn.0", "cnn.2", "cnn.4", "linear.0") for part in _PARTS}


class Scaled(nn.Module):
    """Images divided by :data:`WHITE`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: (num_images, channels, height, width), in and out."""
        return x / WHITE

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        return layers.scale(x, name, 1.0 / WHITE)


def read_nature_cnn(tensors: Tensors, source: Source, data: dict[str, Any], where: str) -> ImageEncoders:
    """Read the encoder of the observation, an image whose shape the file states.

    Args:
        tensors: Of the features extractor.
        source: The file; of the observation groups that the user gives, the encoder reads the one.
        data: Its JSON.
        where: The weights, for messages.

    Returns:
        The encoder with its linear layer and activation.

    Raises:
        UserError: If the weights are no NatureCNN of images of the stated shape.
    """
    shape = _image_shape(data, where)
    if set(tensors) != _NAMES:
        raise UserError(f"{where}: {sorted(set(tensors) ^ _NAMES)[:4]} beside or in the place of NatureCNN's layers.")
    convolutions = [_convolution(tensors, 2 * index, *sizes, where) for index, sizes in enumerate(KERNELS)]
    linear = single_linear({name: tensors[f"linear.0.{name}"] for name in _PARTS}, where)
    layers = [part for convolution in convolutions for part in (convolution, nn.ReLU())]
    encoder = nn.Sequential(*_scaled(data), *layers, nn.Flatten(start_dim=1), linear, nn.ReLU())
    group = (source.overrides.obs_groups or ["policy"])[0]
    path = str(source.path)
    encoders = ImageEncoders(None, {group: lambda given: _fitting(encoder, given, shape, path)}, len(linear.bias), path)
    encoders.bind({group: shape}, torch.device("cpu"))
    return encoders


def _image_shape(data: dict[str, Any], where: str) -> Shape:
    """Return channels, height and width of the observation."""
    shape = at(data, "observation_space", "_shape")
    if not isinstance(shape, list) or len(shape) != 3 or not all(type(side) is int and side > 0 for side in shape):
        raise UserError(f"{where} reads images, channels x height x width, and its file states the shape {shape}.")
    return shape[0], shape[1], shape[2]


def _convolution(tensors: Tensors, index: int, kernel: int, stride: int, where: str) -> nn.Conv2d:
    """Return one of the convolutions."""
    weight, bias = (tensors[f"cnn.{index}.{name}"] for name in _PARTS)
    if weight.dim() != 4 or tuple(weight.shape[2:]) != (kernel, kernel) or bias.shape != weight.shape[:1]:
        raise UserError(
            f"{where}: cnn.{index} has tensors of {list(weight.shape)} and {list(bias.shape)}, not those of a "
            f"convolution of {kernel} x {kernel}. It is corrupt, or of another kind."
        )
    convolution = nn.Conv2d(weight.shape[1], weight.shape[0], kernel, stride)
    convolution.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return convolution


def _scaled(data: dict[str, Any]) -> list[nn.Module]:
    """Return what brings bytes to 0 to 1, unless the policy was made with ``normalize_images=False``."""
    bytes_ = at(data, "observation_space", "dtype") == "uint8"
    return [Scaled()] if bytes_ and at(data, "policy_kwargs", "normalize_images") is not False else []


def _fitting(encoder: nn.Sequential, given: Shape, trained: Shape, path: str) -> nn.Sequential:
    if given != trained:
        sizes = " x ".join(map(str, trained)), " x ".join(map(str, given))
        raise UserError(f"'{path}' reads images of {sizes[0]}, and the environment gives {sizes[1]}.")
    return encoder
