"""``play.py`` leaves ``exported/policy.pt`` and ``policy.onnx`` beside the policy that it has played."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import torch

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.deploy import Policy
from foundation.rsl_rl import play

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from exported import fly  # noqa: E402
from test_export_command import quadrotor_student  # noqa: E402

SHORT = ("--num_episodes", "2", "--num_envs", "2", "--device", "cpu", "--engine", "torch", "env.episode_length_s=0.1")


def test_play_exports_what_it_played(tmp_path, monkeypatch, capsys):
    """The files act as the checkpoint does, clipped as the task clips; ``--no-export`` writes nothing."""
    monkeypatch.chdir(tmp_path)
    path = quadrotor_student(tmp_path / "run" / "best_student.pt")
    assert play.main(["--checkpoint", str(path), *SHORT, "--no-export"]) == 0
    assert not (path.parent / "exported").exists()
    assert play.main(["--checkpoint", str(path), *SHORT]) == 0
    said = capsys.readouterr().out
    assert said.count("Exported ") == 2
    exported = path.parent / "exported"
    assert {file.name for file in exported.iterdir()} == {"policy.pt", "policy.onnx", "policy_golden.npz"}
    flight = fly(load_policy(path, Overrides()).network, 1.0, steps=30)
    module, policy = torch.jit.load(str(exported / "policy.pt")), Policy(exported / "policy.onnx")
    for obs, resets, actions in zip(flight.obs, flight.resets, flight.actions, strict=True):
        module.reset_envs(torch.from_numpy(resets))
        policy.reset(resets)
        assert numpy.abs(module(torch.from_numpy(obs)).numpy() - actions).max() <= 1e-5
        assert numpy.abs(policy.step(obs) - actions).max() <= 1e-5
    assert policy.description.observations[0].name == "position_error"


def test_an_export_is_not_exported_again(tmp_path, monkeypatch):
    """Playing an exported file writes nothing beside it."""
    monkeypatch.chdir(tmp_path)
    path = quadrotor_student(tmp_path / "run" / "best_student.pt")
    assert play.main(["--checkpoint", str(path), *SHORT]) == 0
    task = "Isaac-Quadcopter-Point-Ctrl-v0"
    exported = path.parent / "exported"
    arguments = ["--checkpoint", str(exported / "policy.onnx"), "--task", task, "--obs_groups", "deployable", *SHORT]
    assert play.main(arguments) == 0
    assert not (exported / "exported").exists()


def test_what_cannot_be_exported_is_still_played(tmp_path, monkeypatch, caplog):
    """A policy that is only run, by its own runtime, is played; one line says why it is not exported."""
    monkeypatch.chdir(tmp_path)
    path = quadrotor_student(tmp_path / "run" / "best_student.pt")
    assert play.main(["--checkpoint", str(path), *SHORT]) == 0
    script = path.parent / "exported" / "policy.pt"
    arguments = ["--checkpoint", str(script), "--task", "Isaac-Quadcopter-Point-Ctrl-v0", "--obs_groups", "deployable"]
    given = [*arguments, *SHORT, "distill.teacher.run_as_is=true", "distill.teacher.num_obs=22"]
    assert play.main(given) == 0
    assert not (script.parent / "exported").exists()
