"""A command that another one has begun does not go on writing after that one was killed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for a signal at the parent's death")
def test_a_child_is_asked_to_end_when_its_parent_is_killed(tmp_path: Path) -> None:
    """After kill -9 of the parent the child gets SIGTERM, on which every command saves and leaves."""
    child = tmp_path / "child.py"
    child.write_text(
        "import pathlib, signal, sys, time\n"
        "def end(*_): pathlib.Path('saved').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path('running').touch()\n"
        "time.sleep(60)\n"
    )
    parent = (
        "import subprocess, sys; from foundation.core.child_process import end_with_parent\n"
        f"subprocess.Popen([sys.executable, {str(child)!r}], preexec_fn=end_with_parent()).wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path)
    _wait_for(tmp_path / "running")
    assert not (tmp_path / "saved").exists()
    process.kill()
    process.wait()
    _wait_for(tmp_path / "saved")


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60.0
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)
