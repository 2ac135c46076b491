"""Tests that run the real Isaac Lab 3.0; ``scripts/test_isaaclab.sh`` builds the environment that they need."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

HAS_ISAACLAB = importlib.util.find_spec("isaaclab_newton") is not None
collect_ignore_glob = [] if HAS_ISAACLAB else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if "tests/isaaclab" in str(item.path):
            item.add_marker(pytest.mark.isaaclab)


@pytest.fixture
def open_environment() -> Any:
    """Give tests ``isaac_envs.open_env``."""
    from isaac_envs import open_env

    return open_env
