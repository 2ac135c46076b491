"""Augmentation of the images of the student's minibatches, on the device that computes; labels stay as they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from foundation.config.distillation_cfg import AugmentImagesCfg
from foundation.core.errors import UserError, suggest
from foundation.dataset.transition import Batch
from foundation.students.base import Student
from foundation.students.cnn import CNNStudent


class ImageAugmentation:
    """Changes images at random, each time that they are drawn from the dataset, which keeps them as they are.

    Shift and brightness are one for all frames of a sequence, as a camera's mounting and exposure are; noise and lost
    frames are drawn for each frame. Random numbers depend on the seed and the epoch alone, so that a resumed run draws
    the same ones.

    Args:
        cfg: What is changed.
        num_flat: Numbers of an observation before the images.
        shapes: Channels, height and width of each image group, in the order in which an observation has them.
        scales: What the values of each group are multiplied by to be near 1.
        seed: Seed of the random numbers.
        device: Where batches are.

    Raises:
        UserError: If there is no such group, or a shift moves an image out of itself.
    """

    def __init__(
        self,
        cfg: AugmentImagesCfg,
        num_flat: int,
        shapes: Mapping[str, Sequence[int]],
        scales: Mapping[str, float],
        seed: int,
        device: torch.device,
    ):
        self.cfg = cfg
        self.num_flat = num_flat
        self.shapes = {group: (shape[0], shape[1], shape[2]) for group, shape in shapes.items()}
        self.scales = dict(scales)
        self.groups = list(self.shapes) if cfg.groups is None else cfg.groups
        self._seed = seed
        self._generator = torch.Generator(device)
        for group in self.groups:
            if group not in self.shapes:
                raise UserError(
                    f"distill.augment_images.groups: the student reads no image group '{group}'. "
                    f"{suggest(group, self.shapes)}"
                )
            side = min(self.shapes[group][1:])
            if cfg.shift >= side:
                raise UserError(
                    f"distill.augment_images.shift is {cfg.shift}: it must be below the {side} pixels of a side of "
                    f"'{group}'"
                )

    @classmethod
    def of(cls, cfg: AugmentImagesCfg, student: Student, seed: int, device: torch.device) -> ImageAugmentation | None:
        """Return what augments a student's images; None where nothing is asked for.

        Raises:
            UserError: If the student reads no images.
        """
        if not cfg.is_on:
            return None
        if not isinstance(student, CNNStudent) or not student.image_shapes:
            raise UserError(
                f"distill.augment_images changes images, and student={student.cfg.name} reads none: leave it out, or "
                "use student=cnn"
            )
        return cls(cfg, student.num_flat, student.image_shapes, student.image_scales, seed, device)

    def begin_epoch(self, epoch: int, rank: int = 0) -> None:
        """Seed the random numbers of an epoch.

        Args:
            epoch: Counted from 0.
            rank: Of this process, whose transitions are its own.
        """
        self._generator.manual_seed((self._seed * 1_000_003 + epoch * 65_537 + rank) % 2**63)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Batch:
        """Return a batch, flat or of sequences, with other images."""
        lead = batch.obs.shape[:-1]
        obs = batch.obs if len(lead) == 2 else batch.obs.unsqueeze(0)
        parts = [obs[..., : self.num_flat]]
        start = self.num_flat
        for group, shape in self.shapes.items():
            stop = start + math.prod(shape)
            images = obs[..., start:stop]
            if group in self.groups:
                images = self._changed(images.unflatten(-1, shape), self.scales[group]).flatten(2)
            parts.append(images)
            start = stop
        return batch._replace(obs=torch.cat(parts, dim=-1).view_as(batch.obs))

    def _changed(self, images: torch.Tensor, scale: float) -> torch.Tensor:
        """Change the images of one group. Shape, in and out: (num_steps, num_sequences, channels, height, width)."""
        cfg = self.cfg
        # What brightness and noise make stays within what the camera gives, whatever its type and range.
        low = images.amin()
        high = images.amax()
        num_steps, num_sequences = images.shape[:2]
        if cfg.shift:
            images = self._shifted(images)
        if cfg.brightness:
            factor = 1.0 + cfg.brightness * (2.0 * self._uniform(num_sequences) - 1.0)
            images = images * factor.view(1, -1, 1, 1, 1)
        if cfg.noise:
            noise = torch.randn(images.shape, generator=self._generator, device=images.device)
            images = images + noise * (cfg.noise / scale)
        if cfg.brightness or cfg.noise:
            images = torch.minimum(torch.maximum(images, low), high)
        if cfg.lost_frames:
            arrived = self._uniform(num_steps, num_sequences) >= cfg.lost_frames
            images = images * arrived.view(num_steps, num_sequences, 1, 1, 1)
        return images

    def _shifted(self, images: torch.Tensor) -> torch.Tensor:
        """Move the images of each sequence by whole pixels, and repeat the edge (Yarats et al. 2021)."""
        num_steps, num_sequences, channels, height, width = images.shape
        most = self.cfg.shift
        moves = torch.randint(-most, most + 1, (2, num_sequences, 1), generator=self._generator, device=images.device)
        rows = (torch.arange(height, device=images.device) + moves[0]).clamp_(0, height - 1)
        columns = (torch.arange(width, device=images.device) + moves[1]).clamp_(0, width - 1)
        pixels = (rows.unsqueeze(2) * width + columns.unsqueeze(1)).flatten(1)
        index = pixels.view(1, num_sequences, 1, height * width).expand(num_steps, -1, channels, -1)
        return images.flatten(3).gather(3, index).view_as(images)

    def _uniform(self, *shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=self._generator, device=self._generator.device)
