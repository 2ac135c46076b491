"""What a training of teachers writes: checkpoints as RSL-RL 5 has them, how to read them, and the manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from foundation.config.agent_cfg import DistributionCfg
from foundation.core.files import atomic_torch_save, atomic_write_bytes
from foundation.tasks.quadrotor.agents.rsl_rl_ppo_cfg import QuadcopterPointCtrlPPORunnerCfg
from foundation.tasks.quadrotor.training.bptt import PolicyStack
from foundation.teachers.manifest import FAILED, MANIFEST, OK, TeacherEntry, write_manifest
from teacher_training.fleet import Score

TASK = "Isaac-Quadcopter-Point-Ctrl-v0"
STD = 0.1
"""Standard deviation that is written for every action: the training is deterministic and has none."""


def checkpoint(
    actors: PolicyStack, critics: PolicyStack, index: int = 0, std: torch.Tensor | None = None
) -> dict[str, Any]:
    """Lay one actor and its critic out as RSL-RL 5 does, with an optimiser that has not made a step.

    Args:
        actors: The policies.
        critics: Their values.
        index: Which of them.
        std: Standard deviation of its actions, shape (num_actions,). None: :data:`STD` for each.
    """
    std = torch.full((actors.weights[-1].shape[2],), STD) if std is None else std.cpu().clone()
    actor = {"distribution.std_param": std}
    actor |= {f"mlp.{key}": value.cpu() for key, value in actors.mlp_state_dict(index).items()}
    critic = {f"mlp.{key}": value.cpu() for key, value in critics.mlp_state_dict(index).items()}
    parameters = [torch.nn.Parameter(value) for value in (*actor.values(), *critic.values())]
    optimizer = torch.optim.Adam(parameters, lr=QuadcopterPointCtrlPPORunnerCfg().algorithm.learning_rate)
    return {
        "actor_state_dict": actor,
        "critic_state_dict": critic,
        "optimizer_state_dict": optimizer.state_dict(),
        "iter": 0,
        "infos": None,
    }


def agent_cfg(actors: PolicyStack, critics: PolicyStack, init_std: float = STD) -> QuadcopterPointCtrlPPORunnerCfg:
    """Describe a checkpoint's networks."""
    cfg = QuadcopterPointCtrlPPORunnerCfg()
    for model, networks in ((cfg.actor, actors), (cfg.critic, critics)):
        model.hidden_dims = [weight.shape[2] for weight in list(networks.weights)[:-1]]
        model.activation, model.obs_normalization = "elu", False
    cfg.actor.init_output, cfg.actor.init_output_gain = None, 1.0
    cfg.actor.distribution_cfg = DistributionCfg(init_std=init_std)
    return cfg


def write_yaml(path: Path, cfg: Any) -> None:
    """Write a config dataclass, and the folder for it."""
    atomic_write_bytes(path, yaml.safe_dump(_lists(asdict(cfg)), sort_keys=False).encode())


def write_teachers(
    output: Path,
    vehicles: Sequence[Path],
    policies: PolicyStack,
    critics: PolicyStack,
    score: Score,
    failed: Sequence[int],
) -> Path:
    """Write a checkpoint for each teacher, ``params/agent.yaml`` and, last, the manifest, whose path is returned."""
    write_yaml(output / "params" / "agent.yaml", agent_cfg(policies, critics))
    entries = []
    for index in range(policies.num_policies):
        path = output / f"{vehicles[index].stem}.pt"
        atomic_torch_save(checkpoint(policies, critics, index), path)
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


def write_teacher(folder: Path, actor: PolicyStack, critic: PolicyStack, std: torch.Tensor, env_cfg: object) -> Path:
    """Write ``model.pt``, and ``params/`` beside it, which says how it is read. Returns the checkpoint's path."""
    path = folder / "model.pt"
    write_yaml(folder / "params" / "agent.yaml", agent_cfg(actor, critic, round(std.mean().item(), 4)))
    atomic_torch_save(checkpoint(actor, critic, std=std), path)
    write_yaml(folder / "params" / "env.yaml", env_cfg)
    return path


def print_progress(update: int, rewards: torch.Tensor) -> None:
    """Print the mean smooth reward per step after each fiftieth update."""
    if (update + 1) % 50 == 0:
        print(f"update {update + 1:4d}  reward per step {rewards.mean().item():7.3f}", flush=True)
