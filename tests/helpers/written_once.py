"""Files of RSL-RL's releases and of other libraries, written once in a session by the worker that asks first."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from library_versions import run_with_library
from rsl_rl_versions import run_with

CHECKPOINTS = Path(__file__).resolve().parents[1] / "checkpoints"


def written_once(tmp_path_factory: pytest.TempPathFactory, name: str, write: Callable[[Path], None]) -> Path:
    """Return a folder that the first test to ask for it writes; nobody changes anything there afterwards.

    Args:
        tmp_path_factory: Of pytest. The workers of pytest-xdist have folders beside each other.
        name: Of the folder.
        write: Writes into it. The folder exists, and may hold what a call that failed has left.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder = root / "written_once" / name
    folder.mkdir(parents=True, exist_ok=True)
    done = folder.with_name(f"{name}.done")
    with folder.with_name(f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            write(folder)
            done.touch()
    return folder


def of_release(tmp_path_factory: pytest.TempPathFactory, script: str, version: str) -> Path:
    """Return the folder of what a release of RSL-RL writes by a script of ``checkpoints/``."""

    def write(folder: Path) -> None:
        result = run_with(version, CHECKPOINTS / script, version, folder / "cases", cwd=folder)
        assert result.returncode == 0, result.stderr[-3000:]

    return written_once(tmp_path_factory, f"{Path(script).stem}_{version}", write) / "cases"


def of_library(tmp_path_factory: pytest.TempPathFactory, library: str) -> Path:
    """Return the folder of what another library writes, by name and release."""
    family = library.split("-")[0]
    script = {
        "skrl": "write_skrl_checkpoints.py",
        "rl_games": "write_rl_games_checkpoints.py",
        "sb3": "write_sb3_contrib_checkpoints.py",
        "stable": "write_sb3_checkpoints.py",
    }[family]
    return written_once(
        tmp_path_factory, library, lambda folder: run_with_library(library, CHECKPOINTS / script, folder)
    )
