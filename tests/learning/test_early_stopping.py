"""Early stopping: after how many epochs, and what starts the count anew."""

from __future__ import annotations

import pytest

from foundation.config.distillation_cfg import EarlyStoppingCfg
from foundation.learning.early_stopping import EarlyStopping


def epochs_run(returns: dict[int, float], n_epochs: int, first: int = 0, **options) -> int:
    """Run a loop whose evaluations are these, by epoch counted from 0; return how many epochs were run."""
    stopping = EarlyStopping(EarlyStoppingCfg(**options), first)
    for epoch in range(n_epochs):
        if stopping.due():
            return epoch
        if epoch in returns:
            stopping.see(epoch, returns[epoch])
    return n_epochs


FLAT = dict.fromkeys(range(100), 1.0)


@pytest.mark.parametrize(
    ("returns", "options", "expected"),
    [
        (FLAT, {}, 50),
        (FLAT, {"patience": 3}, 4),
        (FLAT, {"patience": 1}, 2),
        (FLAT | {3: 2.0}, {"patience": 3}, 7),
        (FLAT | {4: 2.0}, {"patience": 3}, 4),
        ({epoch: float(epoch) for epoch in range(50)}, {"patience": 1}, 50),
        ({epoch: 0.1 * epoch for epoch in range(50)}, {"patience": 3, "min_delta": 0.25}, 50),
        ({epoch: 0.1 * epoch for epoch in range(50)}, {"patience": 2, "min_delta": 0.25}, 3),
        (FLAT, {"patience": 3, "first": 20}, 23),
        (FLAT | {21: 2.0}, {"patience": 3, "first": 20}, 25),
        ({4: 1.0, 9: 1.0, 14: 1.0}, {"patience": 3}, 10),
        ({}, {"patience": 1}, 50),
    ],
)
def test_a_run_ends_when_its_patience_is_over(returns, options, expected):
    """Patience p: p epochs after the last better evaluation, at an evaluation, and not while the teacher alone acts."""
    assert epochs_run(returns, 50, **options) == expected


def test_a_small_gain_is_measured_from_the_last_counted_best():
    """Many steps below ``min_delta`` add up to a better one, so that a slow climb is not cut."""
    stopping = EarlyStopping(EarlyStoppingCfg(patience=10, min_delta=1.0))
    for epoch, mean_return in enumerate([0.0, 0.6, 1.2, 1.8]):
        stopping.see(epoch, mean_return)
    assert (stopping.best, stopping.best_epoch) == (1.2, 2)


def test_the_count_is_restored():
    """Put back from its state it ends at the same epoch."""
    first, second = (EarlyStopping(EarlyStoppingCfg(patience=2)) for _ in range(2))
    first.see(0, 1.0)
    first.see(1, 0.5)
    second.load_state_dict(first.state_dict())
    assert not second.due()
    second.see(2, 0.5)
    assert second.due()
