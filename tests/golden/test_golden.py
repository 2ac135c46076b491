"""What commit 28860de did, before the package was laid out anew, is what is done today.

``make_golden.py`` recorded it: the weights of students distilled by the commands, a run that was killed half way, a
saved dataset, students, and the flags of every command.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))
from golden_runs import (
    COMMANDS,
    FIXTURES,
    HERE,
    OFFLINE,
    RUNS,
    TASK,
    arguments,
    command,
    flags_of,
    machine,
    only_run,
    result_of,
)

GOLDEN: dict[str, Any] = json.loads((HERE / "golden.json").read_text())
SAME_MACHINE = GOLDEN["machine"] == machine()
CHANGED: dict[str, str] = {}
"""Runs whose arithmetic was changed on purpose since, and why."""
GONE_FLAGS: dict[str, str] = {}
"""Flags that were taken away on purpose since, and why."""
GONE_KEYS: dict[str, str] = {}
"""Keys of the configuration that were taken away on purpose since, and why."""


def compare(name: str, run: Path) -> None:
    """Compare a finished run with the recorded one: bit for bit on a machine like that one, else by its return."""
    result = result_of(run)
    if SAME_MACHINE and name not in CHANGED:
        assert result == GOLDEN["runs"][name]
    elif GOLDEN["runs"][name]["mean_return"] is not None:
        assert result["mean_return"] == pytest.approx(GOLDEN["runs"][name]["mean_return"], rel=0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give a working folder with the recorded files."""
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "half_way")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(RUNS) - {"half_way", "save_dataset"}))
def test_a_run_gives_the_same_student(name: str, folder: Path) -> None:
    """The same command line gives the same weights, to the bit."""
    done = command("distillation", *arguments(name), folder=folder)
    assert done.returncode == 0, done.stderr
    compare(name, only_run(folder))


@pytest.mark.slow
def test_a_run_of_that_commit_resumes(folder: Path) -> None:
    """A run that was killed there after its fourth epoch ends as one that was not killed."""
    place = folder / "logs" / "distillation" / "half_way" / "2026-11-28_00-00-00"
    shutil.copytree(FIXTURES / "half_way", place)
    done = command("distillation", "--resume", "--experiment_name", "half_way", "--device", "cpu", folder=folder)
    assert done.returncode == 0, done.stderr
    assert "(exact" in done.stdout
    compare("half_way", place)


@pytest.mark.slow
def test_a_dataset_of_that_commit_trains(folder: Path) -> None:
    """A folder written there by --save_dataset is learned from by --offline, to the same bits."""
    done = command("distillation", *OFFLINE, folder=folder)
    assert done.returncode == 0, done.stderr
    compare("offline", only_run(folder))


@pytest.mark.slow
@pytest.mark.parametrize("student", ["mlp", "gru"])
def test_a_student_of_that_commit_plays(student: str, folder: Path) -> None:
    """Students saved there fly."""
    played = ["--checkpoint", f"student_{student}.pt", "--device", "cpu", "--num_envs", "16", "--num_episodes", "16"]
    done = command("play", *played, "--json", "out.json", "env.episode_length_s=0.4", folder=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "out.json").read_text())["task"] == TASK


@pytest.mark.parametrize("name", COMMANDS)
def test_no_flag_is_gone(name: str, tmp_path: Path) -> None:
    """Every flag that a command had, it has."""
    gone = set(GOLDEN["flags"][name]) - set(flags_of(name, tmp_path)) - set(GONE_FLAGS)
    assert not gone


@pytest.mark.slow
def test_no_key_of_the_configuration_is_gone(folder: Path) -> None:
    """Every key that params/distillation.yaml held is there in a run of today."""
    done = command("distillation", *arguments("mlp"), "--n_epochs", "1", folder=folder)
    assert done.returncode == 0, done.stderr
    before, now = (
        yaml.safe_load((run / "params" / "distillation.yaml").read_text())
        for run in (FIXTURES / "half_way", only_run(folder))
    )
    assert _keys(before) - _keys(now) - set(GONE_KEYS) == set()


def _keys(values: dict[str, Any], prefix: str = "") -> set[str]:
    keys = set()
    for name, value in values.items():
        keys.add(prefix + name)
        if isinstance(value, dict):
            keys |= _keys(value, f"{prefix}{name}.")
    return keys
