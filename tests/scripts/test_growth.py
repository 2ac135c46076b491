"""The growth study: its pieces, slopes and page."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import growth


def test_slopes_are_exponents():
    """Flat is 0, in proportion 1, a square 2; the first size has none."""
    found = growth.slopes([10, 100, 1000, 2000], [3.0, 3.0, 30.0, 120.0])
    assert found[0] is None and [round(value, 9) for value in found[1:] if value is not None] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("parameters", [1_000, 10_000, 1_000_000])
def test_students_have_about_the_parameters_that_are_asked_for(parameters):
    """Within a tenth, weights and biases counted one by one."""
    width = growth.hidden_of(parameters)[0]
    counted = 22 * width + width + width * width + width + width * 4 + 4
    assert math.isclose(counted, parameters, rel_tol=0.1)


def test_memory_that_is_computed_is_that_of_the_tensors():
    """A dataset's transition: 26 floats and the flag; an environment: what its tensors hold, shared memory once."""
    piece = growth.measure_transitions(10_000)
    assert piece["computed"] == 26 * 4 + 1 and piece["seconds"] > 0 and piece["transitions"] >= 10_000


def test_measured_pieces_are_not_measured_again(tmp_path, monkeypatch):
    """A second call measures what is missing alone, and the page has all pieces."""
    measured = []

    def fake(part: str, size: int, folder: Path) -> dict[str, float]:
        measured.append((part, size))
        if len(measured) == 5:
            raise KeyboardInterrupt
        return {"seconds": 0.001 * size, "computed": 8.0, "found": 9.0}

    monkeypatch.setattr(growth, "measure_alone", fake)
    monkeypatch.setattr(growth, "draw", lambda *_: None)
    arguments = ["--folder", str(tmp_path / "pieces"), "--out", str(tmp_path / "growth")]
    with pytest.raises(KeyboardInterrupt):
        growth.run(growth.parse(arguments))
    assert not (tmp_path / "growth.md").exists()
    growth.run(growth.parse([*arguments, "--only", "envs/*"]))
    assert measured == [("envs", size) for size in (16, 64, 256, 1024, 4096, 4096, 16384, 65536)]
    text = (tmp_path / "growth.md").read_text()
    assert "| 65,536 | 65.54 | 1.00 | 8 | 9 |" in text and "## Teachers" not in text and "A million teachers" in text
    assert len(json.loads((tmp_path / "growth.json").read_text())["envs"]) == 7
