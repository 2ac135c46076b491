"""A sweep that is cut off keeps what it has measured, and goes on from there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

from benchmarks import sweep
from benchmarks.race import Bench
from benchmarks.snapshots import Trace

AXES = {"x": [1.0, 2.0], "y": [3.0]}
BEST = {"x": 2.0, "y": 3.0}


class FakeBench:
    """Takes note of what is run; fails at one run, as a machine does that is switched off."""

    def __init__(self, fails_at: int | None = None):
        self.ran: list[tuple[str, int]] = []
        self.fails_at = fails_at

    def run(self, name: str, setting: Any, seed: int, budget: float, *, stop_at_top: bool = False) -> Trace:
        if len(self.ran) == self.fails_at:
            raise KeyboardInterrupt
        self.ran.append((name, seed))
        return Trace(json.dumps(dict(setting), sort_keys=True), seed, budget)


@pytest.fixture(autouse=True)
def scores(monkeypatch):
    """Score a setting by how far it is from the best."""

    def distance(traces: list[Trace]) -> float:
        setting = json.loads(traces[0].setting)
        return sum(setting.get(axis) != value for axis, value in BEST.items())

    monkeypatch.setattr(sweep, "badness", distance)
    monkeypatch.setattr(sweep, "median_reached", lambda traces: {"0.95": None})
    monkeypatch.setattr(sweep, "our_axes", lambda: AXES)
    monkeypatch.setattr(sweep, "STOCK_AXES", {})
    monkeypatch.setattr(sweep.stock, "TUNED", {"z": (1, 2)})


BUDGETS = {"ours": 1.0, "rsl_rl": 2.0}


def _sweep(bench: FakeBench, path: Path, known: Any = None, budgets: Any = None, seeds: Any = (0, 1)) -> dict[str, Any]:
    keep = lambda result: path.write_text(json.dumps(result))  # noqa: E731
    return sweep.sweep_both(cast(Bench, bench), seeds, budgets or BUDGETS, known, keep)


@pytest.mark.parametrize("cut", [1, 2, 3, 5, 9, 10])
def test_a_sweep_goes_on_after_it_was_cut_off(cut, tmp_path):
    """Whole settings are not run again, one that was cut is, and the result is that of a sweep in one go."""
    whole = FakeBench()
    expected = _sweep(whole, tmp_path / "whole.json")
    assert expected["ours"]["best"] == BEST and len(expected["ours"]["rows"]) == 5
    first, second = FakeBench(cut), FakeBench()
    with pytest.raises(KeyboardInterrupt):
        _sweep(first, tmp_path / "cut.json")
    kept = tmp_path / "cut.json"
    known = json.loads(kept.read_text()) if kept.exists() else None
    assert sum(len(known[side]["rows"]) for side in BUDGETS if side in known) == cut // 2 if known else cut < 2
    assert json.dumps(_sweep(second, kept, known)) == json.dumps(expected)
    assert first.ran[: cut // 2 * 2] + second.ran == whole.ran


def test_rows_of_another_sweep_are_not_taken(tmp_path):
    """Other budgets or another number of seeds: everything is run again."""
    path = tmp_path / "sweep.json"
    _sweep(FakeBench(), path)
    known = json.loads(path.read_text())
    same, seeds, budgets = FakeBench(), FakeBench(), FakeBench()
    _sweep(same, path, known)
    _sweep(seeds, path, known, seeds=(0,))
    _sweep(budgets, path, known, budgets={"ours": 3.0, "rsl_rl": 2.0})
    assert (len(same.ran), len(seeds.ran), len(budgets.ran)) == (0, 6, 10)
