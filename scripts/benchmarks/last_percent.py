"""Candidates for a sooner last percent: changes of ``experiment=fast``, raced against it with the same seeds."""

from __future__ import annotations

from typing import Any

from benchmarks.race import Rival

BUDGET = 5.0
"""Training time of a run [s]."""


CANDIDATES: dict[str, dict[str, Any]] = {
    "base": {},
    "fast_adam": {"experiment": "fast_adam"},
    "fast_adam, newest 16 epochs": {"experiment": "fast_adam", "dataset.newest_epochs": 16},
    "fast_adam, soap, rate 1e-2": {"experiment": "fast_adam", "optimizer.name": "soap", "learning_rate": 1e-2},
    "muon": {"optimizer.name": "muon"},
    "rate 2e-2": {"learning_rate": 2e-2},
    "newest 8 epochs": {"dataset.newest_epochs": 8},
    "newest 32 epochs": {"dataset.newest_epochs": 32},
    "4 updates": {"optimizer.update_ratio": 4.0},
    "chunk_steps=4": {"dataset.chunk_steps": 4},
}
"""Changes by name; the first is ``experiment=fast`` as it is."""


def rivals(budget: float = BUDGET) -> dict[str, Rival]:
    """Return the candidates as rivals of a race."""
    return {name: Rival(changes, budget, name) for name, changes in CANDIDATES.items()}
