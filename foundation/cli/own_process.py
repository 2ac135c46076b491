"""Commands of this package in processes of their own, also in the Python of another environment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from foundation.core.child_process import end_with_parent

_ROOT = Path(__file__).resolve().parents[2]
"""Folder of the package: a clone, or an environment's ``site-packages``."""


def run_in_a_process(module: str, argv: Sequence[str], python: str | None = None, out: IO[bytes] | None = None) -> int:
    """Run a command and return its exit code; whatever ends this process, that one saves and leaves first.

    Args:
        module: The command's module, such as ``foundation.rsl_rl.play``.
        argv: Its arguments.
        python: Python that runs it. None: this one.
        out: Takes what it prints. None: it prints where this process does.
    """
    command = [python or sys.executable, "-m", module, *argv]
    environment = _environment(own=python is None)
    process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, preexec_fn=end_with_parent())
    try:
        return process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to both
        return process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise


def without_flags(argv: Sequence[str], flags: dict[str, int]) -> list[str]:
    """Return the arguments without some flags (flag -> number of its values) and without their values."""
    kept: list[str] = []
    skip = 0
    for word in argv:
        name, equals, _ = word.partition("=")
        if skip:
            skip -= 1
        elif name in flags:
            skip = 0 if equals else flags[name]
        else:
            kept.append(word)
    return kept


def _environment(own: bool) -> dict[str, str]:
    """Return this process's environment, with the package on the path where it runs from a clone.

    Another environment's Python does not get this one's ``site-packages``: it has a package of its own.
    """
    if not own and not (_ROOT / "pyproject.toml").exists():
        return dict(os.environ)
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
