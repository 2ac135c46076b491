"""Flights of the built-in task by either engine, ``torch`` or ``l2f``: the same episodes, two programs' physics."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from l2f_flights import PUBLISHED, TESTS, Flight

from foundation.config.values import apply_values
from foundation.engines import engine_class
from foundation.engines.base import LaunchRequest
from foundation.policies.actors import PolicyActor, RandomActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.evaluate import evaluate
from foundation.tasks.quadrotor.sim.vehicles import crazyflie, to_dict
from foundation.teachers import TeacherPolicyWrapper

sys.path.insert(0, str(TESTS.parent / "scripts"))

from raptor.flights import fly, load_flyer

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"
SHIPPED = TESTS.parent / "foundation" / "assets" / "teachers" / "point_ctrl" / "model.pt"


@contextmanager
def _open(engine: str, num_envs: int, **values: Any) -> Iterator[Any]:
    """Open the task's environment; ``values`` are those of its config."""
    chosen = engine_class(engine)()

    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        chosen.set_common(env_cfg, num_envs=num_envs, seed=1, device="cpu")
        apply_values(env_cfg, values, "env")

    with chosen.launch(LaunchRequest(TASK), configure) as (env_cfg, agent_cfg):
        yield chosen.make_env(env_cfg, agent_cfg)


def fly_task(engine: str, **values: Any) -> Flight:
    """Fly 30 random commands in 21 environments: two and more of the sizes that ``l2f`` is compiled for."""
    commands = torch.rand(30, 21, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with _open(engine, 21, **values) as env:
        seen = [env.reset(5)["l2f"]]
        results = [env.step(command) for command in commands]
    seen += [step[0]["l2f"] for step in results]
    rewards, dones = [torch.stack([step[part] for step in results]).numpy() for part in (1, 2)]
    return {"obs": torch.stack(seen).numpy(), "rewards": rewards, "dones": dones}


def hover(engine: str) -> Flight:
    """Let the published policy fly the Crazyflie for 64 episodes: its error [m], share of crashes and return."""
    policy, vehicles = load_flyer(PUBLISHED)
    assert vehicles == []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "crazyflie.json"
        file.write_text(json.dumps(to_dict(crazyflie(), 0)))
        flown = fly(policy, engine, [str(file)], 64, 77)
    assert flown.error is not None
    return {name: np.array(getattr(flown, name)) for name in ("error", "terminated", "mean_return")}


def teacher_return(engine: str) -> Flight:
    """Let the shipped teacher fly 64 episodes, and random commands too: return, and shares flown to the end."""
    with _open(engine, 64) as env:
        teacher = TeacherPolicyWrapper(SHIPPED)
        actor = PolicyActor(teacher, ObsSelector(teacher.obs_groups or ["policy"]))
        result = evaluate(env, actor, 64, 11)
        chance = evaluate(env, RandomActor(4, 0, "cpu"), 64, 11)
    return {
        "mean_return": np.array(result.mean_return),
        "success": result.success.float().mean().numpy(),
        "random_success": chance.success.float().mean().numpy(),
    }
