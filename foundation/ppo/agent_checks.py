"""Checks of an agent config's numbers, with which PPO would learn nothing, or something else, without a word."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from foundation.config.validate import A_COUNT, MAX_COUNT, read
from foundation.core.errors import UserError, suggest
from foundation.core.memory import refuse_beyond_memory

SCHEDULES = ("adaptive", "fixed")
"""Rules for PPO's learning rate."""
_FINITE = "a finite number"
_COUNTS = ("num_learning_epochs", "num_mini_batches")
_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "gamma": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "lam": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "clip_param": (lambda v: v > 0, "above 0"),
    "max_grad_norm": (lambda v: v > 0, "above 0"),
    "desired_kl": (lambda v: v > 0, "above 0"),
    "value_loss_coef": (lambda v: 0 <= v < math.inf, f"{_FINITE}, 0 or more"),
    "entropy_coef": (math.isfinite, _FINITE),
    "learning_rate": (lambda v: 0 < v < math.inf, "positive and finite"),
}
"""What each number of ``agent.algorithm`` must be."""
_NETWORKS = ("actor", "critic", "policy", "student", "teacher")
_SIZES = ("hidden_dims", *(f"{name}_hidden_dims" for name in _NETWORKS))
INPUT_SIZE = -1
"""Among RSL-RL's sizes of layers: as large as the input."""


def check_algorithm(algorithm: object) -> None:
    """Check the numbers of ``agent.algorithm``; what it lacks is not checked.

    Raises:
        UserError: At the first value that cannot be.
    """
    for name in _COUNTS:
        check_count(read(algorithm, name), f"agent.algorithm.{name}")
    for name, (fits, expected) in _RANGES.items():
        value = read(algorithm, name)
        if isinstance(value, int | float) and not fits(value):
            raise UserError(f"agent.algorithm.{name} must be {expected}, it is {value:g}")
    schedule = read(algorithm, "schedule")
    if schedule is not None and schedule not in SCHEDULES:
        raise UserError(f"agent.algorithm.schedule is {schedule!r}. {suggest(str(schedule), SCHEDULES)}")


def check_count(value: object, key: str) -> None:
    """Check the number of something, where there is one.

    Raises:
        UserError: If it is none, or so many that it would never end.
    """
    if not isinstance(value, int):
        return
    if value < 1:
        raise UserError(f"{key} must be at least 1, it is {value}")
    if value > MAX_COUNT:
        raise UserError(f"{key} must be {A_COUNT}, it is {value}")


def check_networks(agent_cfg: object) -> None:
    """Check the sizes of the networks' layers, and their standard deviations.

    Raises:
        UserError: At the first value that cannot be.
    """
    for name in _NETWORKS:
        network = read(agent_cfg, name)
        for key in _SIZES:
            sizes = read(network, key)
            if isinstance(sizes, list | tuple) and not (sizes and all(s >= 1 or s == INPUT_SIZE for s in sizes)):
                raise UserError(f"agent.{name}.{key} is {list(sizes)}: it must be a list of sizes, each at least 1")
        stds = {"init_noise_std": read(network, "init_noise_std")}
        distribution = read(network, "distribution_cfg")
        stds["distribution_cfg.init_std"] = read(distribution, "init_std")
        for key, std in stds.items():
            if isinstance(std, int | float) and not 0 < std < math.inf:
                raise UserError(f"agent.{name}.{key} is {std:g}: it must be a finite number above 0")


def check_rollout(
    algorithm: object, num_steps: int, num_envs: int, num_actions: int, device: torch.device | str
) -> None:
    """Check that a rollout fits into memory, and that no minibatch is empty.

    Args:
        algorithm: ``agent.algorithm``.
        num_steps: Env steps of a rollout.
        num_envs: Number of environments.
        num_actions: Size of an action.
        device: Where the rollout is kept.

    Raises:
        UserError: If it does not fit, or has fewer transitions than minibatches.
    """
    transitions = num_steps * num_envs
    what = f"agent.num_steps_per_env={num_steps} in {num_envs} environments"
    refuse_beyond_memory(4 * transitions * (3 * num_actions + 5), device, what, "give fewer")
    batches = read(algorithm, "num_mini_batches")
    if isinstance(batches, int) and batches > transitions:
        raise UserError(
            f"agent.algorithm.num_mini_batches is {batches}: it must be at most {transitions}, the transitions of a "
            f"rollout (agent.num_steps_per_env {num_steps} in {num_envs} environments)"
        )
