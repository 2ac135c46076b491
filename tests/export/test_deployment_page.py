"""docs/howto/deploy.md: its commands and examples are run in order, in an empty folder with a student in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from foundation.export.formats import FORMATS
from foundation.tasks import load_entry_point, resolve_task

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from test_export_command import TASK, quadrotor_student  # noqa: E402

ROOT = HERE.parents[1]
PAGE = (ROOT / "docs" / "howto" / "deploy.md").read_text()


def layout_rows():
    """Return the table of the built-in task's observation groups."""
    layout = load_entry_point(resolve_task(TASK), "layout_entry_point")
    rows = []
    for group, fields in layout.items():
        start = 0
        for field in fields:
            columns = f"{start} to {start + field.size - 1}"
            rows.append(f"| `{group}` | {columns} | {field.name} | {field.unit or '-'} | {field.frame} |")
            start += field.size
    return rows


def test_the_layout_is_the_tasks():
    """The table of observation groups says what the task says."""
    rows = [line for line in PAGE.splitlines() if re.match(r"\| `(policy|deployable|l2f|actions)` \|", line)]
    assert rows == layout_rows()


def test_every_format_is_on_the_page():
    """The page's table has every format."""
    assert set(re.findall(r"^\| `(\w+)` \| `", PAGE, re.MULTILINE)) == set(FORMATS)


def test_the_examples_run_in_order(tmp_path):
    """Every command, Python program and C program of the page does what the page says."""
    quadrotor_student(tmp_path / "best_student.pt")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = []
    for language, text in re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL):
        if language == "c":
            (tmp_path / "exported" / "robot.c").write_text(text)
            continue
        if language == "python":
            command = [sys.executable, "-c", text]
        else:
            script = text.replace("python foundation/", f"{sys.executable} {ROOT}/foundation/")
            command = ["bash", "-e", "-c", script]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stderr}"
        said.append(done.stdout)
    assert len(said) == 8
    assert said[0].count("agrees to") == 5
    assert said[1].startswith("0.01 ['position_error', 'orientation', 'velocity_error', 'body_rates'")
    assert len(said[3].splitlines()) == 3
    assert said[4].startswith("PASS")
