"""A student that sees: an encoder for each image group, with or without memory behind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import nn

from foundation.config.derived_cfg import LONGEST
from foundation.config.distillation_cfg import ImageEncoder, StudentCfg, StudentMemory
from foundation.core.errors import UserError, suggest
from foundation.policies.image_encoders import Shape
from foundation.policies.layers import OBS, Layers
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.rnn import RecurrentCore
from foundation.policies.vision import FrameStack, GroupEncoders, build_image_encoder
from foundation.students.base import NetworkCfg, Student, last_size

MAX_PIXELS = 1 << 22
"""Numbers that an image may have: no weight of a file bounds the sides of the images that it states."""


@dataclass
class CNNStudentCfg(NetworkCfg):
    """Convolutions over each image group, beside the normalised flat groups; then recurrent layers, then dense ones."""

    name: str = "cnn"
    """This student."""
    encoder: ImageEncoder = "small"
    """Encoder of the images: small (three 3 x 3 convolutions of stride 2), nature (Mnih et al. 2015), impala (small,
    residual) or spatial_softmax (positions of feature points)."""
    encoders: dict[str, ImageEncoder] = field(default_factory=dict)
    """Encoder of single image groups, by name, in the place of ``encoder``: ``{wrist: spatial_softmax}``."""
    channels: list[int] = field(default_factory=list)
    """Channels of the convolutions, of ``impala`` of its stages. Empty: the encoder's own."""
    image_features: int = 64
    """Numbers that each encoder gives."""
    init_encoder: str | None = None
    """Start the encoders from the convolutions of this checkpoint, of a policy that reads images: of each group the
    first layers, as far as their shapes match."""
    share_encoder: bool = False
    """One encoder for all image groups, which then have one shape."""
    frame_stack: int = 1
    """Frames seen at once [steps], the newest included; each is stored once."""
    memory: StudentMemory = "none"
    """Recurrent layers behind the encoders: none | gru | lstm."""
    hidden_size: int = 64
    """Units in each recurrent layer."""
    num_layers: int = 1
    """Number of recurrent layers."""
    hidden_dims: list[int] = field(default_factory=lambda: [128, 64])
    """Sizes of the dense layers behind; may be empty."""
    activation: str = "elu"
    """Activation of all layers, by RSL-RL's names."""
    images: dict[str, list[int]] = field(default_factory=dict)
    """Channels, height and width of each image group that it reads. Filled in by the run."""
    image_scales: dict[str, float] = field(default_factory=dict)
    """What the values of an image group are multiplied by. Filled in by the run for those that are not set: 1/255 for
    bytes, 1 for other numbers, such as depth [m]."""


class CNNStudent(Student):
    """Reads the flat groups and then the image groups, flattened; images are scaled inside."""

    cfg_class = CNNStudentCfg
    cfg: CNNStudentCfg

    def __init__(self, cfg: CNNStudentCfg, num_obs: int, num_actions: int) -> None:
        """Create the layers that the config asks for."""
        shapes = _shapes_of(cfg)
        num_pixels = sum(math.prod(shape) for shape in shapes.values())
        num_flat = num_obs - num_pixels
        if num_flat < 0:
            raise UserError(f"student.images has {num_pixels} numbers, and the observation {num_obs}.")
        num_in = num_flat + len(shapes) * cfg.image_features
        num_read = num_in if cfg.memory == "none" else cfg.hidden_size
        super().__init__(cfg, num_obs, num_actions, last_size(cfg.hidden_dims, num_read, cfg))
        self.num_flat = num_flat
        """Numbers before the images."""
        self.normalizer = ObsNormalizer(num_flat)
        self.frames = None
        if cfg.frame_stack > 1 and shapes:
            self.frames = FrameStack(num_flat, num_pixels, cfg.frame_stack)
        self.encoder = None
        if shapes:
            scales = {group: cfg.image_scales.get(group, 1.0) for group in shapes}
            self.encoder = GroupEncoders(num_flat, shapes, scales, _encoders(cfg, shapes))
        self.core = None
        if cfg.memory != "none":
            self.core = RecurrentCore(cfg.memory, num_in, cfg.hidden_size, cfg.num_layers)
        self.add_body(num_read, cfg.hidden_dims, cfg.activation)

    @classmethod
    def from_cfg(cls, cfg: StudentCfg, num_obs: int, num_actions: int) -> Self:
        """Build a student from its config."""
        assert isinstance(cfg, CNNStudentCfg)
        return cls(cfg, num_obs, num_actions)

    @property
    def image_shapes(self) -> dict[str, list[int]]:
        """Channels, height and width of each image group, in the order in which it reads them, after all flat ones."""
        return {} if self.encoder is None else {group: list(shape) for group, shape in self.encoder.shapes.items()}

    @property
    def image_scales(self) -> dict[str, float]:
        """What the values of each image group are multiplied by."""
        return {} if self.encoder is None else self.encoder.scales

    def trunk(self) -> Sequence[nn.Module]:
        """Return the hidden layers in order."""
        parts = (self.frames, self.encoder, self.core)
        return [*(part for part in parts if part is not None), *self.last_layers()]

    def typical_obs(self, noise: torch.Tensor) -> torch.Tensor:
        """Return observations as the environment may give them: by the normaliser's moments, images from dark to full.

        Args:
            noise: Standard normal numbers. Shape: (..., num_obs).
        """
        flat, *images = noise.split([self.num_flat, *self._image_sizes()], dim=-1)
        flat = flat * (self.normalizer.var.sqrt() + self.normalizer.eps).cpu() + self.normalizer.mean.cpu()
        shares = [0.5 + 0.5 * torch.erf(image / math.sqrt(2.0)) for image in images]  # uniform from 0 to 1
        scaled = [share / scale for share, scale in zip(shares, self.image_scales.values(), strict=True)]
        return torch.cat([flat, *scaled], dim=-1)

    def _image_sizes(self) -> list[int]:
        return [math.prod(shape) for shape in self.image_shapes.values()]

    def _normalized(self, obs: torch.Tensor) -> torch.Tensor:
        if self.num_flat == self.num_obs:
            return self.normalizer(obs)
        flat, images = obs[..., : self.num_flat], obs[..., self.num_flat :]
        return torch.cat([self.normalizer(flat), images], dim=-1) if self.num_flat else obs

    def _list_normalized(self, layers: Layers) -> str:
        if self.num_flat == self.num_obs:
            return super()._list_normalized(layers)
        if not self.num_flat:
            return OBS
        flat = layers.module(self.normalizer, layers.columns(OBS, "flat", 0, (self.num_flat,)), "normalizer")
        images = layers.columns(OBS, "images", self.num_flat, (self.num_obs - self.num_flat,))
        return layers.concatenate((flat, images), "inputs")


def _check_numbers(cfg: CNNStudentCfg) -> None:
    """Refuse numbers that no encoder can have."""
    if not 1 <= cfg.frame_stack <= LONGEST:
        raise UserError(f"student.frame_stack must be from 1 to {LONGEST} frames, not {cfg.frame_stack}.")
    if cfg.image_features < 1:
        raise UserError(f"student.image_features is {cfg.image_features}: it must be at least 1.")
    for group, scale in cfg.image_scales.items():
        if scale == 0 or not math.isfinite(scale):
            raise UserError(f"student.image_scales.{group} is {scale:g}: it must be a finite number other than 0.")


def _shapes_of(cfg: CNNStudentCfg) -> dict[str, Shape]:
    """Return the shapes of the image groups, checked."""
    shapes: dict[str, Shape] = {}
    for group, shape in cfg.images.items():
        if len(shape) != 3 or min(shape) < 1:
            raise UserError(f"student.images.{group} is {shape}: channels, height and width are expected.")
        if math.prod(shape) > MAX_PIXELS:
            raise UserError(f"student.images.{group} is {shape}: more than {MAX_PIXELS} numbers.")
        shapes[group] = (shape[0], shape[1], shape[2])
    _check_numbers(cfg)
    for name in ("encoders", "image_scales"):
        unknown = [group for group in getattr(cfg, name) if shapes and group not in shapes]
        if unknown:
            raise UserError(
                f"student.{name}: the student reads no image group '{unknown[0]}'. {suggest(unknown[0], shapes)}"
            )
    if cfg.share_encoder and len(set(shapes.values())) > 1:
        listed = ", ".join(f"{group} {' x '.join(map(str, shape))}" for group, shape in shapes.items())
        raise UserError(
            f"student.share_encoder=true needs images of one size, and these are {listed}: set it to false, or leave a "
            "group out."
        )
    if cfg.share_encoder and cfg.encoders:
        raise UserError("student.share_encoder=true has one encoder for all groups: leave student.encoders out.")
    return shapes


def _encoders(cfg: CNNStudentCfg, shapes: dict[str, Shape]) -> list[nn.Module]:
    """Build the encoder of each group, or one for all."""
    built: list[nn.Module] = []
    for group, (channels, height, width) in shapes.items():
        kind = cfg.encoders.get(group, cfg.encoder)
        stacked = (cfg.frame_stack * channels, height, width)
        built.append(build_image_encoder(kind, stacked, cfg.channels, cfg.image_features, cfg.activation))
        if cfg.share_encoder:
            break
    return built
