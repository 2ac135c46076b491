"""Teachers of ``train_dqn.py``: several environments in one DQN."""

from __future__ import annotations

import json
import shlex
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import train_dqn  # noqa: E402

from foundation.core.errors import UserError  # noqa: E402
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


def test_several_environments_train_one_network(tmp_path, monkeypatch, capsys):
    """Env steps of all count: evaluations of 6 episodes at 40 and 80, updates of those after the fortieth.

    The last line is the command that distils the teacher, with a preset that there is.
    """
    pytest.importorskip("stable_baselines3")
    folder = trained(tmp_path / "a b", monkeypatch, seed=3)
    program, script, *words = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert program == "python" and (ROOT / script).is_file()
    assert words[:-1] == ["--task", "CartPole-v1", "--teacher_checkpoint", str(folder / "teacher.zip")]
    for experiment in [words[-1], *(f"experiment={cfg.experiment}" for cfg in train_dqn.SETTINGS.values())]:
        assert (ROOT / "configs" / "experiment" / f"{experiment.partition('=')[2]}.yaml").is_file()
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


def test_a_training_goes_on_from_another_models_weights(tmp_path, monkeypatch):
    """With no env steps to learn from the weights are the other's, also with other settings; their teachers agree."""
    pytest.importorskip("stable_baselines3")
    first = trained(tmp_path / "a", monkeypatch, seed=3)
    cfg = train_dqn.DqnCfg(40, (8,), 40, {"learning_starts": 40}, num_envs=4)
    monkeypatch.setitem(train_dqn.SETTINGS, "CartPole", cfg)
    monkeypatch.setitem(cfg.options, "exploration_final_eps", 0.25)
    arguments = ["--task", "CartPole-v1", "--start", str(first / "model.zip"), "--learning_rate", "1e-5"]
    assert train_dqn.main([*arguments, "--output", str(tmp_path / "b"), "--num_eval_episodes", "2", "--seed", "9"]) == 0
    weights = [TeacherPolicyWrapper(folder / "teacher.zip").state_dict() for folder in (first, tmp_path / "b")]
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value.numpy(), weights[1][name].numpy())
    with zipfile.ZipFile(tmp_path / "b" / "model.zip") as model:
        saved = json.loads(model.read("data"))
    assert (saved["learning_rate"], saved["exploration_initial_eps"]) == (1e-5, 0.25)


def test_a_model_of_another_task_is_refused_in_one_line(tmp_path, monkeypatch):
    """Its layers have other sizes."""
    pytest.importorskip("stable_baselines3")
    first = trained(tmp_path / "a", monkeypatch, seed=3)
    monkeypatch.setitem(train_dqn.SETTINGS, "Acrobot", train_dqn.DqnCfg(40, (8,), 40))
    arguments = ["--task", "Acrobot-v1", "--output", str(tmp_path / "b"), "--start", str(first / "model.zip")]
    with pytest.raises(UserError, match=r"not a model\.zip of this task and these layers") as caught:
        train_dqn.main(arguments)
    assert "\n" not in str(caught.value)
