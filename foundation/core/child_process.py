"""Processes that end with the process that began them, whatever ends it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable


def end_with_parent() -> Callable[[], None] | None:
    """Return a ``preexec_fn`` of ``subprocess.Popen``: SIGTERM, on which commands save, when this process is killed.

    Returns:
        What the child calls before it runs its program; None where Linux is not.
    """
    if not sys.platform.startswith("linux"):
        return None
    parent = os.getpid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    set_parent_death_signal = 1

    def in_child() -> None:
        prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before this was asked for
            os._exit(128 + signal.SIGTERM)

    return in_child
