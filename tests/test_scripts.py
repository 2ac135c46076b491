"""The shell scripts' set-up: which Python, what is skipped the second time."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the set-up reads, in a folder of its own."""
    (tmp_path / "scripts").mkdir()
    for name in ("pyproject.toml", "setup.py", "constraints.txt", "scripts/setup.sh"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def make_environment(clone: Path) -> Path:
    """A virtual environment whose pip only takes notes; returns the notes."""
    notes = clone / "notes"
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/bash\nif [ "$1" = -m ]; then echo "$@" >>"{notes}"; else exec "{sys.executable}" "$@"; fi\n'
    )
    python.chmod(0o755)
    return notes


def set_up(clone: Path, *extras: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(clone / "scripts" / "setup.sh"), *extras],
        env={**{k: v for k, v in os.environ.items() if k not in ("PYTHON", "VENV")}, **env},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(script: Path) -> None:
    """Bash reads every script, and each may be run as it is."""
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_sourcing_the_set_up_names_the_extras(script: Path) -> None:
    """Sourced without an argument, it would take the calling script's own arguments for extras."""
    sourced = [line for line in script.read_text().splitlines() if line.startswith("source scripts/setup.sh")]
    assert not [line for line in sourced if not re.match(r'source \S+ (\w+|"")( #|$)', line)]


def test_a_second_run_installs_nothing_until_something_changes(clone: Path) -> None:
    """Pip runs once; again after the pins change; extras include the base."""
    notes = make_environment(clone)
    assert set_up(clone, "dev").returncode == 0
    assert notes.read_text().count("install") == 1 and "--editable .[dev]" in notes.read_text()
    for extras in (["dev"], []):
        assert "installed already" in set_up(clone, *extras).stdout
    assert notes.read_text().count("install") == 1
    with (clone / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert set_up(clone, "dev").returncode == 0
    assert notes.read_text().count("install") == 2


def test_a_failed_install_is_tried_again(clone: Path) -> None:
    """When pip fails, the script fails, and leaves no mark that would skip it the next time."""
    make_environment(clone)
    python = clone / ".venv" / "bin" / "python"
    working = python.read_text()
    python.write_text(working.replace("then echo", "then exit 1; echo"))
    assert set_up(clone, "dev").returncode != 0
    python.write_text(working)
    assert "installing" in set_up(clone, "dev").stdout


def test_an_environment_that_was_not_finished_gets_its_pip(clone: Path) -> None:
    """Ctrl-C while it was made leaves a Python without pip: the next start goes on, and does so once."""
    notes = make_environment(clone)
    python = clone / ".venv" / "bin" / "python"
    python.write_text(python.read_text().replace("if [", '[ "$2" != "import pip" ] || exit 1\nif [', 1))
    assert set_up(clone, "dev").returncode == 0
    lines = notes.read_text().splitlines()
    assert lines[0] == "-m ensurepip" and lines[1].startswith("-m pip install") and len(lines) == 2


def test_without_a_fitting_python_it_says_so(clone: Path, tmp_path: Path) -> None:
    """Neither 3.11 nor 3.12: one line on stderr, exit code 2, no environment."""
    wanted = set_up(clone, PYTHON="/no/such/python")
    assert wanted.returncode == 2 and "PYTHON=/no/such/python is not Python 3.11 or 3.12" in wanted.stderr
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname"):
        (tools / name).symlink_to(str(shutil.which(name)))
    found = set_up(clone, PATH=str(tools))
    assert found.returncode == 2 and found.stderr.count("error: ") == 1 and "Python 3.11 nor 3.12" in found.stderr
    assert not (clone / ".venv").exists()


def demo(clone: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run the demo with a Python that only takes notes of what it is to run; returns the notes too."""
    shutil.copy(ROOT / "scripts" / "demo.sh", clone / "scripts" / "demo.sh")
    notes = make_environment(clone)
    python = clone / ".venv" / "bin" / "python"
    python.write_text(python.read_text().replace('[ "$1" = -m ]', '[ "$1" != - ]'))
    run = clone / "logs" / "distillation" / "demo" / "run"
    run.mkdir(parents=True)
    summary = {"return_ratio": 0.987, "success_rate": 1.0, "final_eval_episodes": 512}
    (run / "summary.json").write_text(json.dumps(summary))
    done = subprocess.run(["bash", str(clone / "scripts" / "demo.sh"), *arguments], capture_output=True, text=True)
    commands = notes.read_text().splitlines() if notes.exists() else []
    return done, [line for line in commands if line.startswith("foundation/")]


@pytest.mark.parametrize("student", ["", "gru", "lstm"])
def test_the_demo_hides_from_the_student_what_the_teacher_sees(clone: Path, student: str) -> None:
    """The student reads ``deployable``, with memory on request; what is typed comes last; how long is said first."""
    done, (distil, play) = demo(clone, *filter(None, [student]), "n_epochs=3")
    assert done.returncode == 0, done.stderr
    assert distil.endswith("distill.student.obs_groups=[deployable] n_epochs=3")
    assert (f"experiment=fast_gru student={student} " in distil) == bool(student)
    assert ("experiment=fast " in distil) == (not student)
    assert "--video --video_length 250" in play
    lines = done.stdout.splitlines()
    said = next(index for index, line in enumerate(lines) if "this takes" in line)
    assert "minute" in lines[said] and "distilling" in lines[said + 1]
    assert "reached 98.7 % of the teacher's return" in done.stdout


def test_the_demo_refuses_a_student_without_memory_before_it_installs(clone: Path) -> None:
    """A misspelt kind is one line and exit code 2."""
    done, commands = demo(clone, "grru")
    assert done.returncode == 2 and not commands
    assert "'grru'" in done.stderr and len(done.stderr.splitlines()) == 1


def test_every_dependency_is_pinned() -> None:
    """Each package that pyproject.toml names for use, development or rl-tools has a version in constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["raptor"]]
    names = {re.match(r"[A-Za-z0-9_.-]+", line)[0].lower() for line in wanted}
    pinned = {
        line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert names <= pinned


def test_development_needs_no_compiler() -> None:
    """What exists as source only, and takes a compiler and gigabytes of memory, is in extra raptor alone."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert [name for name, packages in extras.items() if {"l2f", "foundation-policy"} & set(packages)] == ["raptor"]
