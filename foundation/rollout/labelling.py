"""The teacher's outputs for many steps at once, where nobody waits for them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from foundation.dataset.dataset import DistillationDataset
from foundation.policies.actors import PolicyActor
from foundation.policies.output import PolicyOutput

BLOCK_ROWS = 4096
"""Rows that are labelled at once, about: enough for the products to be fast, few enough for the cache."""
WORTH_ROWS = 256
"""Environments per teacher from which on a CPU's products are fast enough step by step."""


class LateLabels:
    """Labels what the student visited after it went there: one large product instead of one per step.

    Only the student acts (``beta`` 0), so that no action waits for a label. The labels are those of step-by-step
    labelling to rounding.

    Args:
        teacher: Labels; its memory is carried on.
        dataset: Takes the labels.
        clip: Applied to every output before it is stored.
    """

    def __init__(
        self, teacher: PolicyActor, dataset: DistillationDataset, clip: Callable[[PolicyOutput], PolicyOutput]
    ):
        self.teacher, self.dataset, self.clip = teacher, dataset, clip
        self.block_steps = max(1, min(dataset.chunk_steps, BLOCK_ROWS // dataset.num_envs))
        self._obs: torch.Tensor | None = None
        self._resets: torch.Tensor | None = None
        self._first = self._count = 0

    @property
    def possible(self) -> bool:
        """Whether this teacher takes many steps at once, and that is worth a second trip through the cache."""
        few = self.dataset.num_envs < WORTH_ROWS * self.dataset.num_teachers
        return hasattr(self.teacher.policy, "sequence") and (few or self.dataset.compute_device.type != "cpu")

    def begin(self) -> None:
        """A chunk begins."""
        self._first = self._count = 0

    def add(self, obs: torch.Tensor, resets: torch.Tensor) -> None:
        """Take the observations of the chunk's next step and label the block if it is full.

        Args:
            obs: The teacher's. Shape: (num_envs, num_obs).
            resets: Whether the step begins an episode. Shape: (num_envs,).
        """
        if self._obs is None or self._resets is None:
            self._obs = obs.new_empty(self.block_steps, *obs.shape)
            self._resets = resets.new_empty(self.block_steps, *resets.shape)
        self._obs[self._count].copy_(obs)
        self._resets[self._count].copy_(resets)
        self._count += 1
        if self._count == self.block_steps:
            self.label()

    def finish(self, dones: torch.Tensor) -> None:
        """Label what is left of the chunk; episodes that ended with it, (num_envs,), are forgotten."""
        if self._count:
            self.label()
        self.teacher.reset(dones)

    def label(self) -> None:
        """Label the steps that wait."""
        assert self._obs is not None and self._resets is not None
        obs, resets = self._obs[: self._count], self._resets[: self._count]
        self.dataset.write_targets(self._first, self.clip(self.teacher.outputs(obs, resets)))
        self._first, self._count = self._first + self._count, 0
