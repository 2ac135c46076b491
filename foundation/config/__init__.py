"""Typed configs, and the decorator that makes a script of one's own a Hydra application."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {"hydra_task_config": "foundation.cli.hydra_script"}
"""Public names that are imported when they are asked for: the decorator loads tasks, which this room does not know."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
