"""Encoders of images, as RSL-RL's CNN models have them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.policies.layers import Layers
from foundation.policies.mlp import resolve_activation
from foundation.policies.normalizer import ObsNormalizer

Shape = tuple[int, int, int]
"""Channels, height, width of an image."""
_PADDED = ("zeros", "reflect", "replicate", "circular")
_DEFAULTS = {
    "stride": 1, "dilation": 1, "padding": "none", "norm": "none", "activation": "elu", "max_pool": False,
    "global_pool": "none", "flatten": True,
}  # fmt: skip


def build_encoder(shape: Shape, options: Mapping[str, Any]) -> nn.Sequential:
    """Build one image's encoder as RSL-RL does, numbered as in its checkpoints.

    Args:
        shape: Channels, height, width.
        options: RSL-RL's ``cnn_cfg``; a value that is a list has one entry per layer.
    """
    options = {**_DEFAULTS, **options}
    channels = shape[0]
    size = (shape[1], shape[2])
    layers: list[nn.Module] = []
    for index, width in enumerate(options["output_channels"]):
        kernel, stride, dilation, norm, pooled = (
            _of_layer(options[name], index) for name in ("kernel_size", "stride", "dilation", "norm", "max_pool")
        )
        padded = options["padding"] in _PADDED
        pad = tuple(_padding(side, kernel, stride, dilation) if padded else 0 for side in size)
        mode = options["padding"] if padded else "zeros"
        layers.append(nn.Conv2d(channels, width, kernel, stride, (pad[0], pad[1]), dilation, padding_mode=mode))
        size = tuple(
            (side + 2 * extra - dilation * (kernel - 1) - 1) // stride + 1
            for side, extra in zip(size, pad, strict=True)
        )
        if norm != "none":
            layers.append(nn.BatchNorm2d(width) if norm == "batch" else nn.LayerNorm([width, *size]))
        layers.append(resolve_activation(options["activation"]))
        if pooled:
            layers.append(nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
            size = tuple(math.ceil(side / 2) for side in size)
        channels = width
    if options["global_pool"] != "none":
        layers.append(nn.AdaptiveMaxPool2d((1, 1)) if options["global_pool"] == "max" else nn.AdaptiveAvgPool2d((1, 1)))
    return nn.Sequential(*layers, nn.Flatten(start_dim=1))


class ImageEncoders(nn.Module):
    """First layer of a policy that reads images: flat numbers, normalised, and then what each image's encoder gives.

    An observation is the flat numbers and then the flattened images. The sizes of the images are not in a checkpoint:
    :meth:`bind` gives them.
    """

    def __init__(
        self,
        normalizer: ObsNormalizer | None,
        encoders: Mapping[str, Callable[[Shape], nn.Sequential]],
        num_features: int,
        path: str,
    ) -> None:
        """Keep the parts.

        Args:
            normalizer: Of the flat numbers.
            encoders: For each image group, in order: makes its encoder, with its weights, from the image's shape.
            num_features: Number of the flat numbers and all encoders' outputs together.
            path: The checkpoint, for errors.
        """
        super().__init__()
        self.normalizer = normalizer
        self.encoders = nn.ModuleDict()
        self.shapes: dict[str, Shape] = {}
        self.num_obs = 0
        self.num_flat = 0
        self.num_features = num_features
        self._makers = dict(encoders)
        self._path = path

    @property
    def groups(self) -> list[str]:
        """The image groups that it reads, in order."""
        return list(self._makers)

    def bind(self, shapes: Mapping[str, Sequence[int]], device: torch.device) -> None:
        """Learn the sizes of the images and make the encoders.

        Args:
            shapes: Channels, height and width of each image group.
            device: Where the encoders are to be.
        """
        wanted: dict[str, Shape] = {}
        for group in self._makers:
            shape = shapes.get(group)
            if shape is None or len(shape) != 3 or min(shape) < 1:
                raise UserError(
                    f"teacher '{self._path}' reads images of the group '{group}', channels x height x width: "
                    f"{'it is not there' if shape is None else f'its shape is {tuple(shape)}'}. Set its obs_groups."
                )
            wanted[group] = (int(shape[0]), int(shape[1]), int(shape[2]))
        if wanted == self.shapes:
            return
        encoders = {group: self._makers[group](shape).to(device) for group, shape in wanted.items()}
        with torch.no_grad():
            sizes = [self._size_after(encoders[group], shape, group) for group, shape in wanted.items()]
        flat = self.num_features - sum(sizes)
        if flat < 0 or (self.normalizer is not None and flat != self.normalizer.mean.numel()):
            listed = ", ".join(f"{group} {list(shape)}" for group, shape in wanted.items())
            raise UserError(
                f"teacher '{self._path}': images of {listed} give {sum(sizes)} of the {self.num_features} numbers that "
                "its dense layers expect; it was trained on images of another size."
            )
        self.encoders = nn.ModuleDict(encoders).requires_grad_(False).eval()
        self.shapes = wanted
        self.num_flat = flat
        self.num_obs = flat + sum(math.prod(shape) for shape in wanted.values())

    def _size_after(self, encoder: nn.Sequential, shape: Shape, group: str) -> int:
        try:
            weight = next(encoder.parameters())
            return encoder.eval()(weight.new_zeros(1, *shape)).numel()
        except (RuntimeError, ValueError) as error:
            text = one_line(error)
            raise UserError(f"teacher '{self._path}' cannot read images {shape} of '{group}': {text}") from error

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Return what the next layer reads. Shape: (..., num_obs) to (..., num_features)."""
        self._check_bound()
        rows = obs.flatten(0, -2)
        flat, *images = rows.split([self.num_flat, *(math.prod(shape) for shape in self.shapes.values())], dim=-1)
        parts = [flat if self.normalizer is None else self.normalizer(flat)]
        for (group, shape), image in zip(self.shapes.items(), images, strict=True):
            parts.append(self.encoders[group](image.unflatten(-1, shape)))
        return torch.cat(parts, dim=-1).unflatten(0, obs.shape[:-1])

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append the encoders (see :mod:`foundation.policies.layers`)."""
        self._check_bound()
        flat = layers.columns(x, f"{name}.flat", 0, (self.num_flat,))
        parts = [flat if self.normalizer is None else layers.module(self.normalizer, flat, f"{name}.normalizer")]
        start = self.num_flat
        for group, shape in self.shapes.items():
            image = layers.columns(x, f"{name}.images.{group}", start, shape)
            parts.append(layers.module(self.encoders[group], image, f"{name}.encoders.{group}"))
            start += math.prod(shape)
        return layers.concatenate(tuple(parts), name)

    def _check_bound(self) -> None:
        if not self.shapes:
            raise UserError(
                f"teacher '{self._path}' reads images whose size its checkpoint does not state: give it the "
                "environment's observations, or 'image_shapes', such as {camera: [3, 64, 64]}."
            )


def _of_layer(value: object, index: int) -> Any:
    return value[index] if isinstance(value, list | tuple) else value


def _padding(side: int, kernel: int, stride: int, dilation: int) -> int:
    """Return RSL-RL's padding: about as much as keeps ``side / stride`` positions."""
    return math.ceil((stride * (side // stride) - side - stride + dilation * (kernel - 1) + 1) / 2)
