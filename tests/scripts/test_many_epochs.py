"""The check that long runs stay flat."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import many_epochs


def rows(memory: float = 0.0, handles: float = 0.0, slower: float = 0.0) -> list[dict[str, float]]:
    """Ten parts of a run whose figures grow by so much from one to the next."""
    return [
        {"memory_mb": 500.0 + memory * i, "handles": 9 + handles * i, "epoch_ms": 4.0 * (1.0 + slower * i)}
        for i in range(10)
    ]


@pytest.mark.parametrize("name", ["memory", "handles", "slower"])
def test_growth_is_found(name):
    """4 MB, a handle, or a tenth of the time more in each part; nothing is said of a run that is flat."""
    growth = {"memory": 4.0, "handles": 1.0, "slower": 0.1}[name]
    assert many_epochs.grown(rows(), 20.0, 0.25) == []
    found = many_epochs.grown(rows(**{name: growth}), 20.0, 0.25)
    assert len(found) == 1 and {"memory": "MB", "handles": "handles", "slower": "ms"}[name] in found[0]


@pytest.mark.slow
def test_tiny_epochs_run_to_their_end(tmp_path):
    """Forty epochs with evaluations, checkpoints and logs leave a row for each part."""
    out = tmp_path / "figures"
    arguments = ["--epochs", "40", "--folder", str(tmp_path / "run"), "--out", str(out), "--most_slower", "9"]
    assert many_epochs.main([*arguments, "--most_mb", "200"]) == 0
    found = json.loads(out.with_suffix(".json").read_text())
    assert [row["epoch"] for row in found["rows"]] == list(range(4, 41, 4))
