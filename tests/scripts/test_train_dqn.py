"""Teachers of ``train_dqn.py``: several environments in one DQN."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import train_dqn  # noqa: E402

from foundation.teachers import TeacherPolicyWrapper  # noqa: E402


def test_minatar_has_an_update_for_every_four_env_steps():
    """Eight environments step together, and two updates follow."""
    cfg = train_dqn.settings_for("MinAtar/Seaquest-v1", train_dqn.parse(["--task", "MinAtar/Seaquest-v1"]))
    assert cfg.num_envs * cfg.options["train_freq"] == 4 * cfg.options["gradient_steps"]


def trained(folder: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> Path:
    """Train on CartPole for 80 env steps with 4 environments; return the folder."""
    options = {"learning_starts": 40, "train_freq": 1, "gradient_steps": 2, "batch_size": 8}
    cfg = train_dqn.DqnCfg(80, (8,), 40, options, num_envs=4, num_eval_envs=3, optimizer={"fused": True})
    monkeypatch.setitem(train_dqn.SETTINGS, "CartPole", cfg)
    arguments = ["--task", "CartPole-v1", "--output", str(folder), "--target_return", "600", "--seed", str(seed)]
    assert train_dqn.main([*arguments, "--num_eval_episodes", "6"]) == 0
    return folder


def test_several_environments_train_one_network(tmp_path, monkeypatch):
    """Env steps of all count: evaluations of 6 episodes at 40 and 80, updates of those after the fortieth."""
    pytest.importorskip("stable_baselines3")
    folder = trained(tmp_path / "a", monkeypatch, seed=3)
    with np.load(folder / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [40, 80]
        assert evaluations["results"].shape == (2, 6)
        best = int(evaluations["results"].mean(axis=1).argmax())
    with zipfile.ZipFile(folder / "model.zip") as model:
        saved = json.loads(model.read("data"))
    assert saved["num_timesteps"] == (40, 80)[best]
    # An evaluation comes before the updates of its step: at 80 those of the nine steps from 44 to 76 are made.
    assert saved["_n_updates"] == (0, 2 * 9)[best]
    assert TeacherPolicyWrapper(folder / "teacher.zip").num_parameters == 4 * 8 + 8 + 8 * 2 + 2


def test_the_seed_decides_a_teacher(tmp_path, monkeypatch):
    """The same seed gives the same weights and the same evaluations, another seed others."""
    pytest.importorskip("stable_baselines3")
    found = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        folder = trained(tmp_path / name, monkeypatch, seed)
        weights = TeacherPolicyWrapper(folder / "teacher.zip").state_dict()
        with np.load(folder / "evaluations.npz") as evaluations:
            found.append(
                np.concatenate([evaluations["results"].ravel(), *(w.numpy().ravel() for w in weights.values())])
            )
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
