"""Environments, commands and teachers for the tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from foundation.config.values import apply_values
from foundation.engines import engine_class
from foundation.engines.base import LaunchRequest

ROOT = Path(__file__).parents[2]
CARTPOLE = "Mjlab-Cartpole-Balance"
GO1 = "Mjlab-Velocity-Flat-Unitree-Go1"
ROUGH = "Mjlab-Velocity-Rough-Unitree-Go1"
SMALL_TERRAIN = {
    f"scene__terrain__terrain_generator__{name}": value
    for name, value in {"num_rows": 4, "num_cols": 3, "size": (4.0, 4.0), "border_width": 1.0}.items()
}
"""Four levels of three kinds of rough terrain."""


@contextmanager
def open_env(task: str = CARTPOLE, num_envs: int = 4, seed: int = 1, **values: Any) -> Iterator[Any]:
    """Launch the engine with dotted ``env`` values (``__`` for a dot) and yield its environment."""
    engine = engine_class("mjlab")()

    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        engine.set_common(env_cfg, num_envs=num_envs, seed=seed, device="cpu")
        apply_values(env_cfg, {key.replace("__", "."): value for key, value in values.items()}, "env", null=True)

    with engine.launch(LaunchRequest(task), configure) as (env_cfg, agent_cfg):
        env = engine.make_env(env_cfg, agent_cfg)
        try:
            yield env
        finally:
            env.close()


def actions_of(env: Any, steps: int, seed: int = 0) -> torch.Tensor:
    """Draw actions from [-1, 1]. Shape: (steps, num_envs, num_actions)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(steps, env.num_envs, env.num_actions, generator=generator) * 2.0 - 1.0


def run_command(folder: Path, name: str, *tokens: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of the project, or ``python -m`` a module of another, in ``folder``."""
    start = ["-m", name] if "." in name and not name.endswith(".py") else [str(ROOT / "foundation" / "rsl_rl" / name)]
    done = subprocess.run(
        [sys.executable, *start, *map(str, tokens)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "WANDB_MODE": "disabled"},
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def the_run(folder: Path, kind: str) -> Path:
    """Return the only run under ``logs/<kind>/<experiment>``."""
    runs = list((folder / "logs" / kind).glob("*/*"))
    assert len(runs) == 1, runs
    return runs[0]
