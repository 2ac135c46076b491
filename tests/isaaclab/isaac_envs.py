"""Environments, commands and teachers for the tests of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from foundation.config.values import apply_values
from foundation.engines import engine_class
from foundation.engines.base import LaunchRequest

ROOT = Path(__file__).parents[2]
TASK = "Isaac-Quadcopter-Point-Ctrl-v0"


@contextmanager
def open_env(engine: str, task: str = TASK, num_envs: int = 8, seed: int = 1, **values: Any) -> Iterator[Any]:
    """Launch an engine with dotted ``env`` values (``__`` for a dot) and yield its environment."""
    chosen = engine_class(engine)()

    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        chosen.set_common(env_cfg, num_envs=num_envs, seed=seed, device="cpu")
        apply_values(env_cfg, {key.replace("__", "."): value for key, value in values.items()}, "env", null=True)

    with chosen.launch(LaunchRequest(task), configure) as (env_cfg, agent_cfg):
        env = chosen.make_env(env_cfg, agent_cfg)
        try:
            yield env
        finally:
            env.close()


def run_command(
    folder: Path, *command: object, expect: int = 0, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a Python command in ``folder``; this folder's modules are importable."""
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent), **(variables or {})},
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def script(name: str) -> Path:
    """Return the path of a command."""
    return ROOT / "foundation" / "rsl_rl" / name


def the_run(folder: Path, kind: str) -> Path:
    """Return the only run of a kind."""
    (run,) = (folder / "logs" / kind).glob("*/*")
    return run


def linear_teacher(folder: Path, gains: Sequence[Sequence[float]]) -> Path:
    """Write an actor-critic whose action is linear in the observations.

    Args:
        folder: Of its run.
        gains: Shape: (num_actions, num_obs).
    """
    wanted = torch.tensor(gains)
    num_actions, num_obs = wanted.shape
    rows = torch.eye(num_obs).repeat_interleave(2, 0)
    rows[1::2] *= -1
    both = torch.stack((wanted, -wanted), dim=2).flatten(1)
    state = {
        "actor.0.weight": rows,
        "actor.0.bias": torch.zeros(len(rows)),
        "actor.2.weight": both,
        "actor.2.bias": torch.zeros(num_actions),
        "critic.0.weight": rows,
        "critic.0.bias": torch.zeros(len(rows)),
        "critic.2.weight": both[:1],
        "critic.2.bias": torch.zeros(1),
        "std": torch.full((num_actions,), 0.1),
    }
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "agent.yaml").write_text("policy:\n  activation: relu\n")
    torch.save({"model_state_dict": state, "iter": 1, "infos": None}, folder / "model_1.pt")
    return folder / "model_1.pt"
