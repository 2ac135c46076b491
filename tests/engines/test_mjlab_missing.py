"""The mjlab engine where mjlab is not installed. What runs with it: ``tests/mjlab``."""

from __future__ import annotations

import importlib.util
import sys

import pytest

from foundation.core.errors import UserError
from foundation.engines import engine_class, engine_names, select_engine
from foundation.engines.base import LaunchRequest

pytestmark = pytest.mark.skipif(importlib.util.find_spec("mujoco_warp") is not None, reason="mjlab may be installed")
TASK = "Mjlab-Cartpole-Balance"


@pytest.mark.parametrize("requested", ["auto", "mjlab"])
def test_its_tasks_say_what_to_install(requested):
    """Chosen or found by the task's name, the engine asks for the package in one line that can be typed."""
    with pytest.raises(UserError) as failure:
        select_engine(TASK, requested)
    message = str(failure.value)
    assert message.startswith(f"--task {TASK}: mjlab is not installed here: pip install 'mjlab>=1.6'")
    assert "\n" not in message


def test_other_tasks_do_not_hear_of_it():
    """A misspelt id of another engine is answered with the nearest ones, not with a package to install."""
    with pytest.raises(UserError, match=r"Did you mean 'Isaac-Quadcopter-Point-Ctrl-v0'") as failure:
        select_engine("Isaac-Quadcopter-Point-Ctrl-v1")
    assert "pip install 'mjlab" not in str(failure.value).partition("Did you mean")[2]
    assert select_engine("Isaac-Quadcopter-Point-Ctrl-v0")[0].name == "torch"


def test_the_engine_is_listed_and_has_no_tasks():
    """It is one of the engines, and configurations that are asked of it name what is missing."""
    assert "mjlab" in engine_names()
    engine = engine_class("mjlab")
    assert engine.task_names() == []
    with pytest.raises(UserError, match="mjlab is not installed here"):
        engine().load_configs(LaunchRequest(TASK))


@pytest.fixture
def files_alone(tmp_path, monkeypatch):
    """An mjlab that was installed without what it needs, as ``pip install --no-deps`` does."""
    tasks = tmp_path / "mjlab" / "tasks"
    tasks.mkdir(parents=True)
    (tmp_path / "mjlab" / "__init__.py").write_text("")
    (tasks / "__init__.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mjlab"]:
        del sys.modules[name]


def test_an_mjlab_without_what_it_needs_stops_no_other_engine(files_alone):
    """Its own tasks name the missing package in one line; a task of another engine is found as before."""
    with pytest.raises(UserError, match="mjlab is not installed here with 'a_package_that_is_not_there'") as failure:
        select_engine(TASK)
    assert "\n" not in str(failure.value) and "pip install 'mjlab>=1.6'" in str(failure.value)
    assert engine_class("mjlab").task_names() == []
    assert select_engine("CartPole-v1")[0].name == "gymnasium"
    assert "which it needs" in str(engine_class("mjlab").why_not("Foundation-Velocity-Flat-Go1-v0"))
