"""Runs whose student reads groups that are made for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_env import REGULATOR_GAIN, LinearTeacher, RegulatorEnv

from foundation.config.derived_cfg import DerivedObsCfg
from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import RunInterrupted
from foundation.core.files import load_checkpoint
from foundation.engines.base import VecEnv
from foundation.engines.derived_groups import DerivedGroups
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.students import student_cfg_class

OBS = {"student": DerivedObsCfg(from_="policy", history=2, delay=1, noise=0.1, dropout=0.2)}


def make(folder: Path, *, two_envs: bool, seed: int = 0) -> DistillationRunner:
    """Make a run of five short epochs; ``seed`` is that of the noise before the first reset."""
    cfg = DistillationCfg(
        task="Toy",
        seed=1,
        n_epochs=5,
        epoch_teacher_forcing=2,
        num_episodes=16,
        batch_size=32,
        learning_rate=1e-2,
        num_eval_episodes=16,
        final_eval_episodes=16,
        obs=OBS,
    )
    cfg.student = student_cfg_class("mlp")(name="mlp", obs_groups=["student"])
    folder.mkdir(parents=True, exist_ok=True)

    def env(num_envs: int) -> VecEnv:
        return DerivedGroups(RegulatorEnv(num_envs), cfg.obs, "Toy", seed)

    teacher = LinearTeacher(REGULATOR_GAIN.clone())
    return DistillationRunner(env(8), teacher, cfg, RunDir(folder), make_eval_env=env if two_envs else None)


@pytest.mark.parametrize("two_envs", [True, False])
def test_a_resumed_run_is_the_one_that_was_not_stopped(tmp_path: Path, two_envs: bool) -> None:
    """Noise, lost readings, delays and histories in progress are part of the state: the same weights, bit for bit."""
    make(tmp_path / "whole", two_envs=two_envs).run()
    cut = make(tmp_path / "cut", two_envs=two_envs)
    cut.context.interrupted = lambda: "SIGTERM" if cut.epoch == 3 else None
    with pytest.raises(RunInterrupted):
        cut.run()
    again = make(tmp_path / "cut", two_envs=two_envs, seed=99)
    assert again.resume() == ""
    assert again.epoch == 3
    again.run()
    whole, resumed = (
        load_checkpoint(tmp_path / name / "final_student.pt")["model_state_dict"] for name in ("whole", "cut")
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert whole.keys() == resumed.keys()


def test_the_labels_are_those_of_the_clean_observations(tmp_path: Path) -> None:
    """What the teacher is asked about is not corrupted: each label is its gain times the state, exactly."""
    runner = make(tmp_path, two_envs=True)
    seen: list[torch.Tensor] = []
    step = runner.teacher.step

    def noted(obs: torch.Tensor, state: torch.Tensor | None = None) -> object:
        seen.append(obs.clone())
        return step(obs, state)

    runner.teacher.step = noted
    runner.epoch = 0
    runner.begin()
    seen.clear()
    states: list[torch.Tensor] = []
    inner = runner.env.env  # type: ignore[attr-defined]  # the wrapper's own
    inner_step = inner.step

    def watched(actions: torch.Tensor) -> object:
        states.append(inner.state.clone())
        return inner_step(actions)

    inner.step = watched
    runner.collect(0)
    assert len(states) == len(seen) > 0
    assert all(torch.equal(state, obs) for state, obs in zip(states, seen, strict=True))
