"""foundation: distil trained RSL-RL teachers into small students that can be deployed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foundation.dataset.dataset import DistillationDataset
    from foundation.rollout.collector import collect_episodes
    from foundation.students import StudentPolicy
    from foundation.teachers import TeacherPolicyWrapper

__version__ = "0.1.0"
__all__ = ["DistillationDataset", "StudentPolicy", "TeacherPolicyWrapper", "__version__", "collect_episodes"]

_HOMES = {
    "DistillationDataset": "foundation.dataset.dataset",
    "StudentPolicy": "foundation.students",
    "TeacherPolicyWrapper": "foundation.teachers",
    "collect_episodes": "foundation.rollout.collector",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import foundation`` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'foundation' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
