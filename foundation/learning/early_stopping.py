"""Stop a run whose evaluations no longer improve."""

from __future__ import annotations

import math
from typing import Any

from foundation.config.distillation_cfg import EarlyStoppingCfg


class EarlyStopping:
    """Counts the epochs since an evaluation was better by more than ``min_delta``.

    Args:
        cfg: Patience and the least improvement.
        first_epoch: Nothing is counted before this one.
    """

    def __init__(self, cfg: EarlyStoppingCfg, first_epoch: int = 0):
        self.cfg = cfg
        self.first_epoch = first_epoch
        self.best = -math.inf
        self.best_epoch = -1
        self.seen = 0

    def see(self, epoch: int, mean_return: float) -> None:
        """Take an evaluation in; ``epoch`` is counted from 0."""
        self.seen = epoch + 1
        if mean_return > self.best + self.cfg.min_delta:
            self.best = mean_return
            self.best_epoch = epoch

    @property
    def waited(self) -> int:
        """Epochs without improvement, at the last evaluation."""
        return self.seen - max(self.best_epoch + 1, self.first_epoch)

    def due(self) -> bool:
        """Return whether to stop."""
        return self.cfg.patience is not None and self.waited >= self.cfg.patience

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {"best": self.best, "best_epoch": self.best_epoch, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; nothing from a run of a version that did not keep it."""
        for name in state.keys() & self.state_dict().keys():
            setattr(self, name, state[name])
