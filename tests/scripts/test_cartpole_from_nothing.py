"""The how-to's three commands: a teacher, a student, its flight."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "howto" / "gymnasium.md"


def commands() -> list[list[str]]:
    """Read the commands of the how-to that start with ``python``."""
    section = PAGE.read_text(encoding="utf-8").partition("## CartPole in three commands")[2]
    match = re.search(r"```bash\n(.*?)```", section, re.DOTALL)
    assert match is not None
    lines = match[1].replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("python ")]


def test_the_how_to_has_three_commands_whose_scripts_exist():
    """Teacher, distillation, play."""
    scripts = [words[1] for words in commands()]
    assert [Path(script).name for script in scripts] == ["train_dqn.py", "distillation.py", "play.py"]
    assert all((ROOT / script).is_file() for script in scripts)


@pytest.mark.slow
def test_cartpole_from_nothing(tmp_path):
    """As typed: at most a fifteenth of the teacher's parameters, 99 % of its return, 180 s of two cores."""
    pytest.importorskip("stable_baselines3")
    started = sum(os.times()[2:4])
    wall = time.perf_counter()
    for _, script, *words in commands():
        command = [sys.executable, str(ROOT / script), *words]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    [run] = (tmp_path / "logs" / "distillation").glob("*/*")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["parameters"]["student"] * 15 <= summary["parameters"]["teacher"]
    assert summary["best_student_return"] >= 0.99 * summary["teacher_return"]
    assert summary["teacher_return"] >= 450.0
    # A busy machine takes longer; the CPU's own time shows what a free one takes.
    assert min(time.perf_counter() - wall, sum(os.times()[2:4]) - started) < 180.0
