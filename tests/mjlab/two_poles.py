"""A task of mjlab's kind for tests: Cartpole with two skills, which an integer observation group chooses between."""

from __future__ import annotations

from typing import Any

import torch
from mjlab.managers.curriculum_manager import CurriculumTermCfg
from mjlab.managers.observation_manager import ObservationGroupCfg, ObservationTermCfg
from mjlab.tasks.registry import load_env_cfg, load_rl_cfg, register_mjlab_task

TASK = "Test-Two-Poles"
HARD_AFTER = 1000
"""Env steps of training after which the episodes are short."""


def skill(env: Any) -> torch.Tensor:
    """Return the index of an episode's skill, which is another one in the next episode. Shape: (num_envs, 1)."""
    number = torch.arange(env.num_envs, device=env.device) + (env.episode_length_buf >= 5).long()
    return (number % 2).unsqueeze(-1)


def harder(env: Any, env_ids: torch.Tensor) -> torch.Tensor:
    """End episodes after a second instead of two, once the training is that far; return how long they are [s]."""
    env.cfg.episode_length_s = 2.0 if env.common_step_counter < HARD_AFTER else 1.0
    return torch.tensor(env.cfg.episode_length_s)


def config() -> Any:
    """Return the task's config."""
    cfg = load_env_cfg("Mjlab-Cartpole-Balance")
    cfg.observations["skill"] = ObservationGroupCfg(terms={"skill": ObservationTermCfg(func=skill)})
    cfg.curriculum = {"harder": CurriculumTermCfg(func=harder)}
    return cfg


register_mjlab_task(TASK, config(), config(), load_rl_cfg("Mjlab-Cartpole-Balance"))
