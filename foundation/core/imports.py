"""Imports of many modules at once, as at a command's start."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def many_imports() -> Iterator[None]:
    """Look for no cyclic garbage within this context.

    torch and what comes with it make half a million objects that stay; Python would look through them again and again
    while they come, which takes a fifth of the imports' time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
