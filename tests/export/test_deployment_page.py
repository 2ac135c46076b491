"""docs/howto/deploy.md: its commands and examples are run in order, in an empty folder with a student in it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundation.export.formats import FORMATS
from foundation.learning.rounded_weights import round_rows
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


BLOCK = re.compile(r"^```(\w+)( slow)?\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run_page(folder, slow, *more):
    """Run the page's commands and programs in order, slow ones or the others, and return what each printed.

    Args:
        folder: Where.
        slow: Which.
        more: Typed behind the last command of each block.
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    said = []
    for language, marked, text in BLOCK.findall(PAGE):
        if language in ("c", "cpp"):
            (folder / "exported").mkdir(exist_ok=True)
            (folder / "exported" / f"robot.{language}").write_text(text)
            continue
        if bool(marked) != slow:
            continue
        if language == "python":
            command = [sys.executable, "-c", text]
        else:
            script = re.sub(r"python (foundation|scripts)/", rf"{sys.executable} {ROOT}/\1/", text)
            script = script.replace(" foundation/assets/", f" {ROOT}/foundation/assets/")
            script = " ".join([script.rstrip("\n"), *more])
            command = ["bash", "-e", "-c", script]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{text}\n{done.stderr}"
        said.append(done.stdout)
    return said


def test_the_examples_run_in_order(tmp_path):
    """Every command, Python, C and C++ program of the page does what the page says."""
    quadrotor_student(tmp_path / "best_student.pt")
    said = run_page(tmp_path, slow=False)
    assert len(said) == 12
    assert said[0].count("agrees to") == 5
    assert said[1].startswith("0.01 ['position_error', 'orientation', 'velocity_error', 'body_rates'")
    assert said[2] == "", "the loop goes on to its end"
    assert len(said[4].splitlines()) == 3
    assert said[5] == said[4].splitlines(keepends=True)[0], "C++ gives the actions of C"
    assert said[6].startswith("PASS")
    assert "onnxruntime, bare session" in said[7]
    assert said[8].count("agrees to") == 2
    assert "PASS" in said[8]


@pytest.mark.slow
def test_a_student_learns_to_stand_8_bits(tmp_path):
    """The page's command of quantisation-aware training leaves a student whose weights have 8 bits.

    It learns in floating point for 2 epochs instead of 240, and then with 8 bits for as many as on the page.
    """
    run_page(tmp_path, True, "n_epochs=62")
    (path,) = tmp_path.glob("logs/distillation/*/*_int8/best_student.pt")
    weights = torch.load(path, weights_only=True)["model_state_dict"]
    matrices = [weight for name, weight in weights.items() if weight.ndim == 2 and "normalizer" not in name]
    assert len(matrices) == 4
    assert all(torch.allclose(round_rows(matrix), matrix, atol=1e-6) for matrix in matrices)
