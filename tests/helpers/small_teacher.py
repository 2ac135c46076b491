"""A tiny teacher in RSL-RL's checkpoint format, for tests of what is around it."""

from __future__ import annotations

from pathlib import Path

import torch


def write_teacher(path: Path, num_obs: int = 26, num_actions: int = 4, hidden: int = 16, scale: float = 0.3) -> Path:
    """Write a random actor and critic with one hidden layer, and return the path."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator)

    weights = {"std": torch.full((num_actions,), 0.2)}
    for name, size in (("actor", num_actions), ("critic", 1)):
        weights |= {f"{name}.0.weight": draw(hidden, num_obs), f"{name}.0.bias": torch.zeros(hidden)}
        weights |= {f"{name}.2.weight": draw(size, hidden), f"{name}.2.bias": torch.zeros(size)}
    torch.save({"model_state_dict": weights, "optimizer_state_dict": {}, "iter": 1, "infos": None}, path)
    return path


TASK = "Isaac-Quadcopter-Point-Ctrl-v0"

SMALL = [
    *("--n_epochs", "2", "--epoch_teacher_forcing", "1", "--num_envs", "4", "--num_episodes", "4"),
    *("--num_eval_episodes", "4", "--device", "cpu", "--engine", "torch"),
    *("distill.final_eval_episodes=4", "env.episode_length_s=0.2", "distill.teacher.check=false"),
]
"""Arguments of the shortest run there is; the teacher has learned nothing, and teaches all the same."""
