"""What a training of teachers writes: checkpoints as RSL-RL 5 has them, how to read them, and the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch
import yaml

from foundation.config.agent_cfg import DistributionCfg
from foundation.files import atomic_torch_save, atomic_write
from foundation.learning.bptt import PolicyStack
from foundation.tasks.point_ctrl.agents.rsl_rl_ppo_cfg import QuadcopterPointCtrlPPORunnerCfg
from foundation.teachers.manifest import FAILED, MANIFEST, OK, TeacherEntry, write_manifest
from teacher_training.fleet import Score

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"
STD = 0.1
"""Standard deviation that is written for every action: the training is deterministic and has none."""


def actor_checkpoint(policies: PolicyStack, index: int) -> dict[str, Any]:
    """Lay one actor out as RSL-RL 5 does; there is no critic, as analytic gradients need none."""
    actor = {"distribution.std_param": torch.full((policies.weights[-1].shape[2],), STD)}
    actor |= {f"mlp.{key}": value.cpu() for key, value in policies.mlp_state_dict(index).items()}
    return {"actor_state_dict": actor, "iter": 0, "infos": None}


def agent_cfg(hidden_dims: Sequence[int]) -> QuadcopterPointCtrlPPORunnerCfg:
    """Describe the checkpoints' networks."""
    cfg = QuadcopterPointCtrlPPORunnerCfg()
    cfg.actor.obs_normalization = cfg.critic.obs_normalization = False
    cfg.actor.hidden_dims, cfg.actor.activation = list(hidden_dims), "elu"
    cfg.actor.init_output, cfg.actor.init_output_gain = None, 1.0
    cfg.actor.distribution_cfg = DistributionCfg(init_std=STD)
    return cfg


def write_teachers(
    output: Path, vehicles: Sequence[Path], policies: PolicyStack, score: Score, failed: Sequence[int]
) -> Path:
    """Write a checkpoint for each teacher, ``params/agent.yaml`` and, last, the manifest, whose path is returned."""
    hidden = [weight.shape[2] for weight in list(policies.weights)[:-1]]
    text = yaml.safe_dump(_lists(asdict(agent_cfg(hidden))), sort_keys=False)

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    (output / "params").mkdir(parents=True, exist_ok=True)
    atomic_write(output / "params" / "agent.yaml", write)
    entries = []
    for index in range(policies.num_policies):
        path = output / f"{vehicles[index].stem}.pt"
        atomic_torch_save(actor_checkpoint(policies, index), path)
        entries.append(
            TeacherEntry(
                name=vehicles[index].stem,
                checkpoint=path,
                vehicle=vehicles[index],
                mean_return=round(score.mean_return[index].item(), 2),
                terminated=round(score.terminated[index].item(), 4),
                status=FAILED if index in failed else OK,
            )
        )
    write_manifest(output / MANIFEST, entries, TASK)
    return output / MANIFEST


def _lists(value: Any) -> Any:
    """Turn tuples into lists."""
    if isinstance(value, dict):
        return {key: _lists(entry) for key, entry in value.items()}
    return [_lists(entry) for entry in value] if isinstance(value, list | tuple) else value
