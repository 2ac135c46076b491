"""The optional package ``mujoco``: whether it is there, and its modules."""

from __future__ import annotations

import importlib
import importlib.util
import os
from typing import TYPE_CHECKING, Any

from foundation.core.errors import UserError
from foundation.core.text import one_line

if TYPE_CHECKING:
    from types import ModuleType

MISSING = "'mujoco' is not installed: pip install -e '.[legs]' (or pip install 'mujoco>=3.3')"


def mujoco_is_installed() -> bool:
    """Return whether the package can be imported; a folder of that name on the path has no origin."""
    spec = importlib.util.find_spec("mujoco")
    return spec is not None and spec.origin is not None


def import_mujoco(module: str = "mujoco") -> Any:
    """Import the package, or a module of it such as ``mujoco.rollout``; it is read by name, as it may be missing."""
    if not mujoco_is_installed():
        raise UserError(MISSING)
    try:
        found: ModuleType = importlib.import_module(module)
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # of PyOpenGL's loaders too
        backend = os.environ.get("MUJOCO_GL", "")
        what = f"'{module}' cannot be imported ({one_line(error)})"
        if backend:
            raise UserError(f"{what}: unset MUJOCO_GL, which is '{backend}', or set it to disable") from error
        raise UserError(f"{what}: pip install --force-reinstall mujoco") from error
    return found
