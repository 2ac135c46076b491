"""Tests that run the real mjlab; ``scripts/test_mjlab.sh`` builds the environment that they need."""

from __future__ import annotations

import importlib.util

import pytest

_FOUND = importlib.util.find_spec("mjlab")
HAS_MJLAB = _FOUND is not None and _FOUND.origin is not None  # this folder itself is a package without files
collect_ignore_glob = [] if HAS_MJLAB else ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if "tests/mjlab" in str(item.path):
            item.add_marker(pytest.mark.mjlab)
