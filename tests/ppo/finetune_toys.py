"""Shared by tests of fine-tuning: a linear system of two tasks that says which one runs, its students, small runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from tiny_runs import differing
from toy_env import RegulatorEnv

from foundation.config.agent_cfg import PPOAlgorithmCfg
from foundation.config.finetune_cfg import CriticCfg, FinetuneCfg
from foundation.core.errors import RunInterrupted
from foundation.deploy.description import Field
from foundation.ppo.finetune import FinetuneRunner
from foundation.ppo.settings import AgentSettings
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import BEST, LATEST
from foundation.students import student_from_description

OLD, NEW = 2, 3
"""Columns of the observation that are 1 in the tasks."""
NUM_ENVS = 8


class TwoTasks(RegulatorEnv):
    """The regulator, with two more columns that say which task runs; the new one pays for being at (1, 0)."""

    observation_terms = {  # noqa: RUF012  # as environments declare it
        "policy": (Field(name="state", size=2), Field(name="task", size=2)),
        "privileged": (Field(name="state", size=3),),
    }

    def __init__(self, num_envs: int, task: int = NEW):
        self.task = task
        super().__init__(num_envs)

    def get_observations(self) -> TensorDict:
        obs = super().get_observations()
        flags = torch.zeros(self.num_envs, 2)
        flags[:, self.task - OLD] = 1.0
        obs["policy"] = torch.cat([obs["policy"], flags], dim=-1)
        return obs

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        obs, rewards, dones, extras = super().step(actions)
        return obs, rewards + 2.0 * self.state[:, 0] * (self.task == NEW), dones, extras


def states_of(task: int, number: int = 50) -> torch.Tensor:
    """Observations of one task. Shape: (number, 4)."""
    obs = torch.zeros(number, 4)
    obs[:, :2] = torch.randn(number, 2, generator=torch.Generator().manual_seed(3))
    obs[:, task] = 1.0
    return obs


def write_student(path: Path, name: str = "mlp", seed: int = 0, **options: Any) -> Path:
    """Write the checkpoint of an untrained student of the two tasks."""
    torch.manual_seed(seed)
    student = student_from_description({"num_obs": 4, "num_actions": 2, "name": name, "stochastic": True, **options})
    student.normalizer.update(torch.randn(100, 4) + 0.5)
    checkpoint = {"student": student.describe(), "model_state_dict": student.state_dict(), "task": "TwoTasks"}
    torch.save(checkpoint | {"obs_groups": ["policy"], "obs_slice": None, "clip_actions": None}, path)
    return path


def settings() -> AgentSettings:
    """PPO's settings."""
    algorithm = PPOAlgorithmCfg(num_learning_epochs=2, num_mini_batches=2, learning_rate=3e-3)
    return AgentSettings(algorithm, 6, ["policy"], ["privileged"], [16], "elu", 0.0, None)


def config(checkpoint: Path | None, **values: Any) -> FinetuneCfg:
    """A run of a second."""
    small: dict[str, Any] = {"max_iterations": 3, "eval_interval": 2, "num_eval_episodes": 8, "final_eval_episodes": 8}
    start = None if checkpoint is None else str(checkpoint)
    small["critic"] = CriticCfg(warmup_iterations=1)
    return FinetuneCfg(task="TwoTasks", device="cpu", checkpoint=start, **{**small, **values})


def make_runner(folder: Path, cfg: FinetuneCfg, task: int = NEW, **options: Any) -> FinetuneRunner:
    """Build a run of one of the tasks in a folder."""
    folder.mkdir(exist_ok=True)
    known = {"make_eval_env": lambda number: TwoTasks(number, task), **options}
    return FinetuneRunner(TwoTasks(NUM_ENVS, task), cfg, settings(), RunDir(folder), **known)


def check_resumed_is_whole(folder: Path, cfg: FinetuneCfg) -> None:
    """Check that a run of five iterations, stopped on the way and resumed, ends with an uninterrupted one's bits."""
    make_runner(folder / "whole", copy.deepcopy(cfg)).run()
    polls = []

    def stop() -> str | None:
        polls.append(None)
        return "SIGINT" if len(polls) > 25 else None

    with pytest.raises(RunInterrupted):
        make_runner(folder / "half", copy.deepcopy(cfg), interrupted=stop).run()
    resumed = make_runner(folder / "half", copy.deepcopy(cfg))
    assert resumed.resume() == "" and 0 < resumed.epoch < 5
    resumed.run()
    for file in (LATEST, BEST, "final_student.pt"):
        names = differing(folder / "whole" / file, folder / "half" / file)
        assert not names, (file, names)
