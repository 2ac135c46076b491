"""Plan of a run's epochs: which policy acts, and whether the episodes also measure the teacher or the student."""

from __future__ import annotations

from typing import Literal

from foundation.config.distillation_cfg import DistillationCfg
from foundation.learning.schedules import teacher_share

EVALUATION_INTERVAL = 10
"""Epochs between two evaluations that interrupt the collection, while the teacher still acts in it."""


class EpochPlan:
    """Derives from the config what happens in which epoch; epochs are counted from 0.

    Args:
        cfg: The run's configuration.
        has_eval_env: Whether evaluations have an environment of their own.
    """

    def __init__(self, cfg: DistillationCfg, has_eval_env: bool):
        self.cfg = cfg
        self.has_eval_env = has_eval_env

    @property
    def mode(self) -> Literal["steps", "episodes"]:
        """How an epoch collects: ``steps`` continues where the last epoch stopped, ``episodes`` begins with a reset."""
        mode = self.cfg.collection.mode
        if mode != "auto":
            return mode
        # The only environment is reset by every evaluation, so that a rollout cannot be continued.
        return "steps" if self.has_eval_env else "episodes"

    def beta(self, epoch: int) -> float:
        """Return the probability that the teacher acts in an episode of an epoch."""
        return teacher_share(self.cfg, epoch)

    @property
    def first_student_epoch(self) -> int | None:
        """The first epoch in which the student may act; None: in no epoch."""
        return next((epoch for epoch in range(self.cfg.n_epochs) if self.beta(epoch) < 1.0), None)

    @property
    def forced_epochs(self) -> int:
        """Epochs before the first in which the student may act."""
        first = self.first_student_epoch
        return self.cfg.n_epochs if first is None else first

    def fits_normalizer(self, epoch: int) -> bool:
        """Return whether the normaliser is fitted to an epoch's data: the teacher-forced ones, at least the first."""
        return epoch < max(1, self.forced_epochs)

    def teacher_acts_alone(self, epoch: int) -> bool:
        """Return whether an epoch's episodes measure the teacher: whole ones, in which nothing else acts."""
        return self.beta(epoch) == 1.0 and self.cfg.teacher_deterministic and self._whole_and_undisturbed()

    def student_acts_alone(self, epoch: int) -> bool:
        """Return whether an epoch's episodes measure the student that is saved: no second measurement is needed."""
        # With ema_decay the student that collects is the one that learns, and the one that is saved its average.
        same = self.cfg.collection.student_deterministic and not self.cfg.optimizer.ema_decay
        return self.beta(epoch) == 0.0 and same and self._whole_and_undisturbed()

    def evaluation_due(self, epoch: int) -> bool:
        """Return whether the student is measured after an epoch."""
        interrupts = not self.has_eval_env and self.beta(epoch) > 0.0
        interval = self.cfg.eval_interval or (EVALUATION_INTERVAL if interrupts else 1)
        return (epoch + 1) % interval == 0 or epoch + 1 == self.cfg.n_epochs

    def _whole_and_undisturbed(self) -> bool:
        """Return whether an epoch is whole episodes of the only environment, without noise on the actions."""
        noise = self.cfg.collection
        disturbed = noise.epsilon > 0.0 or noise.noise_std > 0.0
        return not self.has_eval_env and self.mode == "episodes" and not disturbed
