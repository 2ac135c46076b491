"""Concatenate the environment's named observation groups to the one tensor that a policy reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError, suggest


class ObsSelector:
    """Concatenate observation groups in order, then take a slice of the columns.

    Args:
        groups: Names of the groups, at least one.
        obs_slice: ``[a, b]``: keep columns a to b-1 of the concatenation. None keeps all.
        images: Groups that may have more than one dimension; they are flattened.
    """

    def __init__(self, groups: Sequence[str], obs_slice: Sequence[int] | None = None, images: Sequence[str] = ()):
        if not groups:
            raise UserError("obs_groups is empty: name at least one observation group of the environment.")
        self.groups = tuple(groups)
        self.images = frozenset(images)
        self.obs_slice = None if obs_slice is None else (int(obs_slice[0]), int(obs_slice[1]))

    def __call__(self, obs: TensorDict) -> torch.Tensor:
        """Return the selected observations. Shape: (num_envs, num_obs)."""
        if len(self.groups) == 1:
            selected: torch.Tensor = self._flat(obs, self.groups[0])
        else:
            selected = torch.cat([self._flat(obs, name) for name in self.groups], dim=-1)
        if self.obs_slice is not None:
            selected = selected[..., self.obs_slice[0] : self.obs_slice[1]]
        return selected

    def _flat(self, obs: TensorDict, name: str) -> torch.Tensor:
        if name not in self.images:
            return obs[name]
        image = obs[name].flatten(1)
        return image.float() if image.dtype == torch.float16 else image  # no layer computes in half precision

    def check(self, obs: TensorDict, role: str, wanted: int | None = None, key: str | None = None) -> int:
        """Check the groups against what the environment offers.

        Args:
            obs: Observations of the environment.
            role: "teacher" or "student", for the message.
            wanted: The policy's input size; None accepts any.
            key: What the user sets to change the groups; None: ``distill.<role>.obs_groups``.

        Returns:
            The number of selected columns.

        Raises:
            UserError: If a group is unknown, not flat, the slice is out of range, or the size is not ``wanted``.
        """
        offered = {str(name): tuple(obs[name].shape[1:]) for name in obs.keys()}  # noqa: SIM118
        slice_hint = f" (and distill.{role}.obs_slice)" if key is None else ""
        key = key or f"distill.{role}.obs_groups"
        for name in self.groups:
            if name not in offered:
                raise UserError(f"{key}: the environment has no observation group '{name}'. {suggest(name, offered)}")
            if len(offered[name]) != 1 and name not in self.images:
                hint = " (images are for student=cnn)" if len(offered[name]) == 3 and role == "student" else ""
                raise UserError(
                    f"{key}: group '{name}' has shape {offered[name]}; only flat groups can be concatenated{hint}."
                )
        total = sum(math.prod(offered[name]) for name in self.groups)
        if self.obs_slice is not None:
            start, stop = self.obs_slice
            if not 0 <= start < stop <= total:
                raise UserError(f"distill.{role}.obs_slice=[{start},{stop}] does not fit the {total} columns of {key}.")
            total = stop - start
        if wanted is not None and total != wanted:
            sizes = ", ".join(f"{name} ({size[0]})" for name, size in offered.items() if len(size) == 1)
            raise UserError(
                f"The {role} expects {wanted} observations, but {key}={list(self.groups)} gives {total}. "
                f"The environment's groups are: {sizes}. Set {key}{slice_hint} to what it was trained on."
            )
        return total


def image_shapes(obs: TensorDict, groups: Sequence[str]) -> dict[str, list[int]]:
    """Return channels, height and width of those groups that are images, in order.

    Args:
        obs: Observations of the environment.
        groups: Names of groups; one that is not there is left to :meth:`ObsSelector.check`.
    """
    there = [name for name in groups if name in obs.keys()]  # noqa: SIM118  # a TensorDict's
    return {name: list(obs[name].shape[1:]) for name in there if obs[name].ndim == 4}


@runtime_checkable
class ReadsImages(Protocol):
    """A teacher that may read images, whose sizes and order it learns from the observations."""

    image_groups: list[str]
    """The groups that are images."""

    def fit_groups(self, obs: TensorDict, groups: list[str]) -> list[str]:
        """Return the order in which groups are concatenated: as given, but images after what is flat."""
        ...


def teacher_selector(
    teacher: object, obs: TensorDict, groups: Sequence[str] | None, obs_slice: Sequence[int] | None = None
) -> ObsSelector:
    """Return what selects a teacher's observations; one that reads images learns their sizes and order.

    Args:
        teacher: A ``TeacherPolicyWrapper`` or any policy.
        obs: Observations of the environment.
        groups: The groups that it reads. None: ``["policy"]``.
        obs_slice: As of :class:`ObsSelector`.
    """
    names = list(groups or ["policy"])
    images: list[str] = []
    if isinstance(teacher, ReadsImages) and teacher.image_groups:
        images = list(teacher.image_groups)
        names = teacher.fit_groups(obs, names)
    return ObsSelector(names, obs_slice, images)
