"""Settings of all tests. What tests share is in ``helpers/``, importable from every folder."""

from __future__ import annotations

import logging
import os
import sys
from collections import Counter
from pathlib import Path

import gymnasium
import hypothesis
import pytest
import torch

import foundation.tasks  # noqa: F401 (registers the built-in tasks)
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


@pytest.fixture(autouse=True)
def own_modules(tmp_path_factory: pytest.TempPathFactory):
    """Forget the modules that a test wrote and imported, and the tasks that they registered."""
    modules, tasks = set(sys.modules), set(gymnasium.registry)
    yield
    folder = str(tmp_path_factory.getbasetemp())
    written = [name for name in set(sys.modules) - modules if _file_of(name).startswith(folder)]
    for name in written:
        del sys.modules[name]
    for task in set(gymnasium.registry) - tasks if written else ():
        target = gymnasium.registry[task].entry_point
        root = target.partition(":")[0].partition(".")[0] if isinstance(target, str) else ""
        if root not in sys.modules or root == "foundation":  # other packages register theirs only once
            del gymnasium.registry[task]


def _file_of(module: str) -> str:
    """Return where a module is from; a folder for a package without ``__init__.py``."""
    own = sys.modules[module]
    return str(getattr(own, "__file__", None) or next(iter(getattr(own, "__path__", ())), ""))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs the packages of extra raptor where they are not; ``scripts/test_l2f.sh`` builds them."""
    if item.get_closest_marker("l2f"):
        for package in ("l2f", "foundation_policy"):
            pytest.importorskip(package)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have most slow tests: the workers of pytest-xdist, a file at a time, end together."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
