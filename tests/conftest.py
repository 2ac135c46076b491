"""Settings of all tests. What tests share is in ``helpers/``, importable from every folder."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
import torch

from foundation.core import registry

sys.path.insert(0, str(Path(__file__).resolve().parent / "helpers"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def typed():
    """Forget what earlier tests typed; call it with names to have the user type them."""
    registry.forget_typed()
    yield lambda *words: registry.note_typed(words)
    registry.forget_typed()


@pytest.fixture(autouse=True)
def own_logging(monkeypatch):
    """Undo what a command sets up: its handler keeps the standard error of the test that called it first."""
    root = logging.getLogger("foundation")
    level = root.level
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "propagate", True)
    yield
    root.setLevel(level)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs the packages of extra raptor where they are not; ``scripts/test_l2f.sh`` builds them."""
    if item.get_closest_marker("l2f"):
        for package in ("l2f", "foundation_policy"):
            pytest.importorskip(package)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have most slow tests: the workers of pytest-xdist, a file at a time, end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
