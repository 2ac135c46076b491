"""Candidates for a sooner last percent: changes of ``experiment=fast``, raced against it with the same seeds."""

from __future__ import annotations

from typing import Any

from benchmarks.race import Rival

BUDGET = 5.0
"""Training time of a run [s]."""


def schedule(kind: str, end: float) -> dict[str, Any]:
    """Return the settings of a step size that falls from its beginning to a share of it."""
    prefix = "optimizer.lr_schedule"
    return {f"{prefix}.kind": kind, f"{prefix}.start": 1.0, f"{prefix}.end": end}


CANDIDATES: dict[str, dict[str, Any]] = {
    "base": {},
    "n_epochs=150": {"n_epochs": 150},
    "n_epochs=100": {"n_epochs": 100},
    "ema_decay=0.99": {"optimizer.ema_decay": 0.99},
    "n_epochs=150, ema_decay=0.99": {"n_epochs": 150, "optimizer.ema_decay": 0.99},
    "n_epochs=150, cosine": {"n_epochs": 150, **schedule("cosine", 0.003)},
    "newest 32k transitions": {"dataset.size": 32768},
    "huber_delta=0.01": {"loss.huber_delta": 0.01},
    "muon": {"optimizer.name": "muon", "learning_rate": 1e-2},
    "soap": {"optimizer.name": "soap", "learning_rate": 1e-2},
    "soap, n_epochs=150": {"optimizer.name": "soap", "learning_rate": 1e-2, "n_epochs": 150},
}
"""Changes by name; the first is ``experiment=fast`` as it is."""


def rivals(budget: float = BUDGET) -> dict[str, Rival]:
    """Return the candidates as rivals of a race."""
    return {name: Rival(changes, budget, name) for name, changes in CANDIDATES.items()}
