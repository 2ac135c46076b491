"""The table of an evaluation, on a terminal and in a file."""

from __future__ import annotations

import pytest

from foundation.evaluation.report_table import evaluation_table, table_console

PATH = "logs/distillation/quadcopter_point_ctrl/2026-01-31_12-00-00_a_name_of_its_own/best_student.pt"
FIGURES = {
    "return": {"mean": 1.0, "std": 0.5},
    "return_interval_95": 0.1,
    "length": {"mean": 9.0, "std": 1.0},
    "success_rate": None,
    "metrics": {},
}


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Print a table with a long path, and return its lines."""
    table_console().print(evaluation_table("Task-v0 (torch)", [("checkpoint", PATH), ("episodes", "8")], FIGURES))
    return capsys.readouterr().out.splitlines()


def test_a_path_is_whole_in_a_file(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where no terminal shows it, a table is as wide as its longest cell, and no wider."""
    monkeypatch.delenv("COLUMNS", raising=False)
    lines = printed(capsys)
    assert sum(PATH in line for line in lines) == 1
    assert {len(line.rstrip()) for line in lines[1:]} == {len("│ 95 % of the mean return │ ") + len(PATH) + len(" │")}


def test_a_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """At 80 columns the path is folded, and nothing of it is lost."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = printed(capsys)
    assert max(map(len, lines)) == 80
    assert PATH in "".join(line.split("│")[2].strip() for line in lines if line.startswith("│"))
