"""Tests that run the real Isaac Lab 3.0; ``scripts/test_isaaclab.sh`` builds the environment that they need."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

HAS_ISAACLAB = importlib.util.find_spec("isaaclab_newton") is not None
collect_ignore_glob = [] if HAS_ISAACLAB else ["test_*.py"]

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        if "tests/isaaclab" in str(item.path):
            item.add_marker(pytest.mark.isaaclab)


@contextmanager
def open_env(engine: str, task: str = TASK, num_envs: int = 8, seed: int = 1, **values: Any) -> Iterator[Any]:
    """Launch an engine with dotted ``env`` values (``__`` for a dot) and yield its environment."""
    from foundation.config.values import apply_values
    from foundation.engines import engine_class
    from foundation.engines.base import LaunchRequest

    chosen = engine_class(engine)()

    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        chosen.set_common(env_cfg, num_envs=num_envs, seed=seed, device="cpu")
        apply_values(env_cfg, {key.replace("__", "."): value for key, value in values.items()}, "env")

    with chosen.launch(LaunchRequest(task), configure) as (env_cfg, agent_cfg):
        env = chosen.make_env(env_cfg, agent_cfg)
        try:
            yield env
        finally:
            env.close()


@pytest.fixture
def open_environment() -> Any:
    """Give tests :func:`open_env`."""
    return open_env
