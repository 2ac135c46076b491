"""The observation groups of a student: flat groups first, then images, whose shapes it takes from the environment."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from tensordict import TensorDict

from foundation.config.distillation_cfg import StudentCfg
from foundation.core.errors import UserError
from foundation.core.text import quoted
from foundation.policies.obs_groups import ObsSelector, image_shapes
from foundation.students import student_cfg_class
from foundation.students.cnn import CNNStudentCfg

BYTE_SCALE = 1.0 / 255.0
"""What bytes are multiplied by to be from 0 to 1."""


def reads_images(cfg: StudentCfg) -> bool:
    """Return whether a student has encoders for images."""
    return issubclass(student_cfg_class(cfg.name), CNNStudentCfg)


def student_selector(cfg: StudentCfg, obs: TensorDict) -> ObsSelector:
    """Return what selects a student's observations; sets the images' shapes in the config of a student that reads them.

    Args:
        cfg: The student's config. Its ``images``, ``image_scales`` and the order of its groups are filled in.
        obs: Observations of the environment.

    Raises:
        UserError: If a student that sees is given no image, or a slice of the columns.
    """
    groups = list(cfg.obs_groups or ["policy"])
    if not isinstance(cfg, CNNStudentCfg):
        return ObsSelector(groups, cfg.obs_slice)
    images = image_shapes(obs, groups)
    if not images:
        offered = image_shapes(obs, [str(name) for name in obs.keys()])  # noqa: SIM118  # a TensorDict's
        there = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in offered.items())
        hint = f"add one of its image groups ({there})" if there else "it has no image group: use another student"
        raise UserError(
            f"student={cfg.name} reads images, and distill.student.obs_groups={groups} has none, of shape (channels, "
            f"height, width), in this environment: {hint}."
        )
    tell_images(cfg, images, {name: obs[name].dtype for name in images})
    cfg.obs_groups = [name for name in groups if name not in images] + list(images)
    return ObsSelector(cfg.obs_groups, images=list(images))


def tell_images(cfg: CNNStudentCfg, images: Mapping[str, Sequence[int]], dtypes: Mapping[str, torch.dtype]) -> None:
    """Fill in the images of a student's config.

    Args:
        cfg: Its scales that were set stay.
        images: Channels, height and width of each group, in the order in which it reads them.
        dtypes: Type of each group.

    Raises:
        UserError: If columns are cut out of images, or they are said to have another shape.
    """
    if cfg.obs_slice is not None:
        raise UserError("distill.student.obs_slice cuts columns, and images have none: leave it out.")
    for name, shape in cfg.images.items():
        if list(shape) != [int(side) for side in images.get(name, ())]:
            here = quoted([int(side) for side in images[name]]) if name in images else "none of that name"
            what = f"distill.student.images.{name} is {quoted(shape)}"
            raise UserError(f"{what}, and the run has {here}: leave it out, the run sets it")
    cfg.images = {name: [int(side) for side in shape] for name, shape in images.items()}
    own = {name: BYTE_SCALE if dtype == torch.uint8 else 1.0 for name, dtype in dtypes.items()}
    cfg.image_scales = {name: cfg.image_scales.get(name, own[name]) for name in images} | {
        name: scale for name, scale in cfg.image_scales.items() if name not in images
    }


def num_pixels(cfg: StudentCfg) -> int:
    """Return how many numbers the images have that a student reads."""
    return sum(math.prod(shape) for shape in cfg.images.values()) if isinstance(cfg, CNNStudentCfg) else 0
