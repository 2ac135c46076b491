"""Isaac Lab 2.3 by contract: its real wheel with stand-ins for Isaac Sim, each test in processes of its own.

``scripts/test_isaaclab.sh`` unpacks the wheel and says where in ``ISAACLAB23``.
"""

from __future__ import annotations

import os

import pytest

collect_ignore_glob = [] if os.environ.get("ISAACLAB23") else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if "tests/isaaclab23" in str(item.path):
            item.add_marker(pytest.mark.isaaclab23)
