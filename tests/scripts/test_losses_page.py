"""What the page of losses says of its table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import losses


def case(score: float, **terms: list[float]) -> dict[str, Any]:
    return {"normalized_score": score, "terms": terms}


def test_the_worst_of_each_claim_is_named():
    """The lowest score alone, the dearest term beside another one, and the error that shrank least."""
    lines = losses.verdict(
        {
            "cartpole/kl": case(1.0),
            "cartpole/advantage_mse + 0.1 q_mse": case(0.99, advantage_mse=[0.2, 0.1], q_mse=[9.0, 3.0]),
            "quadcopter/huber": case(0.995),
            "quadcopter/huber + 1 value": case(0.992, huber=[1.0, 0.9], value=[1.0, 0.01]),
            "quadcopter/huber + 1 feature": case(0.994, huber=[1.0, 0.9], feature=[1.0, 0.1]),
        }
    )
    assert " ".join(lines) == (
        "- Alone, each of these 2 keeps at least 0.995 (`quadcopter/huber`). "
        "- Of 2 terms beside Huber's, at weights 0.1 and 1, the dearest costs   0.3 points of the score "
        "(`quadcopter/huber + 1 value`); the held-out error of each becomes   at least 10 times smaller "
        "(`quadcopter/huber + 1 feature`). "
        "- Q-values and advantages together keep 0.990. Held-out errors, smaller: advantage_mse 2 times, q_mse 3 times."
    )


def test_without_cases_nothing_is_said():
    """An empty table has no verdict."""
    assert losses.verdict({}) == []
