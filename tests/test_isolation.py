"""What a test wrote and imported does not reach the tests after it: here the second looks for what the first did."""

from __future__ import annotations

import importlib
import sys

import gymnasium

CODE = """
import gymnasium
gymnasium.registry["Left-v0"] = gymnasium.registry["Isaac-Quadcopter-Point-Ctrl-v0"]
gymnasium.register("Left-v1", "left_behind:Env")
"""


def test_a_written_module_registers_tasks(tmp_path, monkeypatch):
    """Under its own entry point, and under that of a built-in task; from a package without ``__init__.py``."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "left_folder").mkdir()
    (tmp_path / "left_folder" / "left_behind.py").write_text(CODE)
    importlib.import_module("left_folder.left_behind")
    assert {"Left-v0", "Left-v1"} <= set(gymnasium.registry)


def test_the_next_test_finds_neither_module_nor_tasks():
    assert not {"Left-v0", "Left-v1"} & set(gymnasium.registry)
    assert "left_folder" not in sys.modules and "left_folder.left_behind" not in sys.modules
    assert "Isaac-Quadcopter-Point-Ctrl-v0" in gymnasium.registry
