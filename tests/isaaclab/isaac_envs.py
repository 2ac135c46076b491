"""Environments for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from foundation.config.values import apply_values
from foundation.engines import engine_class
from foundation.engines.base import LaunchRequest

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"


@contextmanager
def open_env(engine: str, task: str = TASK, num_envs: int = 8, seed: int = 1, **values: Any) -> Iterator[Any]:
    """Launch an engine with dotted ``env`` values (``__`` for a dot) and yield its environment."""
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
