"""The robustness study: what is left to do, and its tables."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "scripts")]

import robustness_study as study  # noqa: E402

POINTS = [{"mean_return": value} for value in (4.0, 8.0, 2.0)]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)


def make_run(name: str, files: tuple[str, ...]) -> Path:
    folder = Path(study.RUNS) / study.EXPERIMENT / f"2026-01-01_00-00-00_{name}"
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).write_text("{}")
    return folder


def test_what_is_done_stays_as_it_is():
    """A student needs two steps, one that was distilled a measurement, one that was measured none."""
    assert len(study.steps_left([], 4)) == 2 * len(study.STUDENTS)
    make_run("mlp", ("best_student.pt", "summary.json", "robustness.json", "similarity.json"))
    make_run("gru", ("best_student.pt", "summary.json"))
    stopped = make_run("history", ("checkpoint_latest.pt",))
    assert len(study.steps_left([], 4)) == 0 + 1 + 2
    assert study.newest_run("history") == stopped and not study.is_distilled(stopped)


def test_the_table_has_the_mean_over_each_range_and_the_best_student_in_bold():
    """Trapezoids by hand: (4 + 8) / 2 over 1 and (8 + 2) / 2 over 1, of 2 in all, is 5.5."""
    curve = {"name": "action_delay", "unit": "steps", "values": [0.0, 1.0, 2.0]}
    better = [{"mean_return": 10.0}] * 3
    studies = {
        name: {"robustness": {"curves": [{**curve, "points": {"teacher": POINTS, "student": points}}]}}
        for name, points in (("mlp", POINTS), ("gru", better))
    }
    assert study.table(studies)[2:] == ["| action delay, 0 to 2 steps | 6 | 6 | **10** |"]
    figures = {"figures": {"action_rmse": 0.25}, "columns": [{"name": "x [m]", "low": 0.5, "high": 1.0, "share": 0.3}]}
    rows = study.similarity_rows({"gru": {"similarity": {"states": [figures, figures]}}})
    assert rows[2] == "| gru | 0.2500 | 0.2500 | x [m] 0.5..1 (30 %) |"
    snapshots = [{"epoch": e, "states": {"student": {"action_rmse": 1.0 / e}}} for e in (2, 4)]
    assert study.training_rows({"gru": {"similarity": {"training": snapshots}}})[2:] == ["| gru | 0.5000 | 0.2500 |"]
