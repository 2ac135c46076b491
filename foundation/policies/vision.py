"""Encoders of a student's image groups, and the window over its last frames."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from foundation.config.distillation_cfg import ImageEncoder
from foundation.core.errors import UserError
from foundation.core.text import one_line
from foundation.policies.image_encoders import Shape
from foundation.policies.layers import Add, Layers, Memory, SpatialSoftmax, Window
from foundation.policies.memory import SlidingWindow
from foundation.policies.mlp import resolve_activation

WIDTHS: dict[ImageEncoder, tuple[int, ...]] = {
    "small": (16, 32, 32),
    "nature": (32, 64, 64),
    "impala": (16, 32, 32),
    "spatial_softmax": (16, 32, 32),
}
"""Channels of each encoder's convolutions, of ``impala`` of its stages, where none are given."""
_CONVOLUTIONS: dict[ImageEncoder, tuple[tuple[int, int, int], ...]] = {
    "small": ((3, 2, 1),),
    "nature": ((8, 4, 2), (4, 2, 1), (3, 1, 1)),
    "spatial_softmax": ((5, 2, 2), (3, 1, 1)),
}
"""Kernel, stride and padding of each convolution; the last one's are those of all that follow."""


class Residual(nn.Module):
    """``x`` plus two 3 x 3 convolutions of it, each after an activation (Espeholt et al. 2018)."""

    def __init__(self, channels: int, activation: str) -> None:
        """Create the layers.

        Args:
            channels: Of the image.
            activation: By RSL-RL's names.
        """
        super().__init__()
        self.body = nn.Sequential(
            resolve_activation(activation),
            nn.Conv2d(channels, channels, 3, padding=1),
            resolve_activation(activation),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: (num_envs, channels, height, width), in and out."""
        return x + self.body(x)

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        inner = layers.module(self.body, x, f"{name}.body")
        return layers.add(Add(name=name, inputs=(x, inner), shape=layers.shape(x)))


class SpatialSoftArgmax(nn.Module):
    """Mean position of each channel's softmax over its pixels, from -1 to 1 (Levine et al. 2016): feature points."""

    grid: torch.Tensor

    def __init__(self, height: int, width: int) -> None:
        """Lay out the positions of the pixels.

        Args:
            height: Of the image [pixels].
            width: Of the image [pixels].
        """
        super().__init__()
        down = torch.linspace(-1.0, 1.0, height).repeat_interleave(width)
        across = torch.linspace(-1.0, 1.0, width).repeat(height)
        self.register_buffer("grid", torch.stack([across, down], dim=-1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: (num_envs, channels, height, width) to (num_envs, 2 * channels)."""
        return (x.flatten(2).softmax(-1) @ self.grid).flatten(1)

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        channels = layers.shape(x)[0]
        return layers.add(SpatialSoftmax(name=name, inputs=(x,), shape=(2 * channels,), grid=self.grid))


def build_image_encoder(
    kind: ImageEncoder, shape: Shape, widths: Sequence[int], num_features: int, activation: str
) -> nn.Sequential:
    """Build an encoder of images.

    Args:
        kind: ``small`` (3 x 3 convolutions of stride 2), ``nature`` (Mnih et al. 2015, padded), ``impala`` (stages of a
            convolution, a maximum and a residual block) or ``spatial_softmax`` (positions of feature points).
        shape: Channels, height, width.
        widths: Channels of the convolutions, or stages. Empty: :data:`WIDTHS`.
        num_features: Numbers that it gives.
        activation: By RSL-RL's names.

    Returns:
        Maps (num_images, *shape) to (num_images, num_features).

    Raises:
        UserError: If the images are too small for it.
    """
    widths = tuple(widths) or WIDTHS[kind]
    try:
        with torch.device("meta"):  # the sizes alone
            pixels = nn.Sequential(*_convolutions(kind, shape, widths, activation))
            after = pixels(torch.empty(1, *shape)).shape[1:]
    except RuntimeError as error:
        raise UserError(
            f"images of {' x '.join(map(str, shape))} (channels x height x width) are too small for "
            f"student.encoder={kind}: choose another, such as small ({one_line(error, 80)})"
        ) from None
    layers = _convolutions(kind, shape, widths, activation)
    size = math.prod(after)
    if kind == "spatial_softmax":
        layers.append(SpatialSoftArgmax(after[1], after[2]))
        size = 2 * after[0]
    else:
        layers.append(nn.Flatten(start_dim=1))
    return nn.Sequential(*layers, nn.Linear(size, num_features), resolve_activation(activation))


def _convolutions(kind: ImageEncoder, shape: Shape, widths: Sequence[int], activation: str) -> list[nn.Module]:
    layers: list[nn.Module] = []
    channels = shape[0]
    for index, width in enumerate(widths):
        if kind == "impala":
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.MaxPool2d(3, 2, 1), Residual(width, activation)]
        else:
            settings = _CONVOLUTIONS[kind]
            kernel, stride, padding = settings[min(index, len(settings) - 1)]
            layers += [nn.Conv2d(channels, width, kernel, stride, padding), resolve_activation(activation)]
        channels = width
    if kind == "impala":
        layers.append(resolve_activation(activation))
    return layers


class GroupEncoders(nn.Module):
    """Flat numbers, and after them what the encoder of each image group gives of the group's last frames.

    What it reads is the flat numbers, and then for each frame, oldest first, the images of all groups, flattened.
    """

    def __init__(
        self, num_flat: int, shapes: Mapping[str, Shape], scales: Mapping[str, float], encoders: Sequence[nn.Module]
    ) -> None:
        """Keep the parts.

        Args:
            num_flat: Number of the flat numbers.
            shapes: Channels, height and width of each image group, in order; one frame's.
            scales: What the values of each group are multiplied by.
            encoders: For each group its encoder, or one for all; of an encoder's first channels there are as many
                times the image's as there are frames.
        """
        super().__init__()
        self.num_flat = num_flat
        self.shapes = dict(shapes)
        self.scales = dict(scales)
        self.encoders = nn.ModuleList(encoders)
        self.num_pixels = sum(math.prod(shape) for shape in self.shapes.values())
        """Numbers of one frame of all groups."""

    def _places(self) -> list[tuple[int, Shape, float, nn.Module]]:
        """Return for each group its first number in a frame, its shape, its scale and its encoder."""
        places = []
        start = 0
        for index, (group, shape) in enumerate(self.shapes.items()):
            encoder = self.encoders[min(index, len(self.encoders) - 1)]
            places.append((start, shape, self.scales[group], encoder))
            start += math.prod(shape)
        return places

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: (..., num_flat + frames * num_pixels) to (..., num_flat + features of all groups)."""
        rows = x.reshape(-1, x.shape[-1])
        frames = rows[:, self.num_flat :].reshape(len(rows), -1, self.num_pixels)
        parts = [rows[:, : self.num_flat]]
        for start, (channels, height, width), scale, encoder in self._places():
            images = frames[:, :, start : start + channels * height * width]
            parts.append(encoder(images.reshape(len(rows), -1, height, width) * scale))
        return torch.cat(parts, dim=-1).reshape(*x.shape[:-1], -1)

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append the encoders (see :mod:`foundation.policies.layers`)."""
        count = (layers.size(x) - self.num_flat) // self.num_pixels
        parts = [layers.columns(x, f"{name}.flat", 0, (self.num_flat,))] if self.num_flat else []
        for index, (start, shape, scale, encoder) in enumerate(self._places()):
            own = f"{name}.images.{index}"
            first = self.num_flat + start
            if count == 1:
                image = layers.columns(x, own, first, shape)
            else:
                places = [first + frame * self.num_pixels for frame in range(count)]
                frames = [layers.columns(x, f"{own}.{n}", place, shape) for n, place in enumerate(places)]
                flat = layers.concatenate(tuple(frames), f"{own}.frames")
                image = layers.columns(flat, own, 0, (count * shape[0], *shape[1:]))
            scaled = layers.scale(image, f"{own}.scaled", scale)
            parts.append(layers.module(encoder, scaled, f"{name}.encoders.{index}"))
        return layers.concatenate(tuple(parts), name)


class FrameStack(SlidingWindow):
    """The last ``length`` frames of the images side by side, oldest first, after the flat numbers as they are.

    Each frame is remembered once; before an episode's start they are zero, black.
    """

    def __init__(self, num_flat: int, num_pixels: int, length: int) -> None:
        """Set the sizes.

        Args:
            num_flat: Numbers before the images, which are not remembered.
            num_pixels: Numbers of one frame.
            length: Frames seen at once, the newest included.
        """
        super().__init__(num_pixels, length)
        self.num_flat = num_flat

    def step(self, x: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Append the newest frame. Shape of x: (num_envs, num_flat + num_pixels)."""
        window, state = super().step(x[..., self.num_flat :], state)
        return torch.cat([x[..., : self.num_flat], window], dim=-1), state

    def sequence(
        self, x: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the frames of every step. Shape of x: (num_steps, num_envs, num_flat + num_pixels)."""
        window, state = super().sequence(x[..., self.num_flat :], state, resets)
        return torch.cat([x[..., : self.num_flat], window], dim=-1), state

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        images = layers.columns(x, f"{name}.newest", self.num_flat, (self.num_in,))
        memory = Memory(start=layers.reserve(self.state_size), initial=torch.zeros(self.state_size))
        window = layers.add(
            Window(
                name=f"{name}.window",
                inputs=(images,),
                shape=(self.length * self.num_in,),
                memory=(memory,),
                length=self.length,
            )
        )
        flat = layers.columns(x, f"{name}.flat", 0, (self.num_flat,)) if self.num_flat else None
        return layers.concatenate((window,) if flat is None else (flat, window), name)
