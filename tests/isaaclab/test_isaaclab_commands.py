"""The commands, each in a process of its own, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from isaac_envs import TASK

ROOT = Path(__file__).parents[2]


def _run(folder: Path, *command: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a Python command in ``folder``; its tasks module is importable."""
    paths = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def _script(name: str) -> Path:
    return ROOT / "foundation" / "rsl_rl" / name


def _lift_teacher(folder: Path, num_obs: int, num_actions: int) -> Path:
    """Write a teacher that solves the toy tasks: action = -6 height - 4 climb rate, in every action."""
    rows = torch.eye(num_obs).repeat_interleave(2, 0)
    rows[1::2] *= -1
    gains = torch.tensor([-6.0, 6.0, -4.0, 4.0])[: 2 * num_obs].repeat(num_actions, 1)
    state = {
        "actor.0.weight": rows,
        "actor.0.bias": torch.zeros(len(rows)),
        "actor.2.weight": gains,
        "actor.2.bias": torch.zeros(num_actions),
        "critic.0.weight": rows,
        "critic.0.bias": torch.zeros(len(rows)),
        "critic.2.weight": gains[:1],
        "critic.2.bias": torch.zeros(1),
        "std": torch.full((num_actions,), 0.1),
    }
    (folder / "params").mkdir(parents=True)
    (folder / "params" / "agent.yaml").write_text("policy:\n  activation: relu\n")
    torch.save({"model_state_dict": state, "iter": 1, "infos": None}, folder / "model_1.pt")
    return folder / "model_1.pt"


def _the_run(folder: Path, kind: str) -> Path:
    (run,) = (folder / "logs" / kind).glob("*/*")
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "num_actions", "read", "hidden_dims"),
    [("Toy-Lift-Manager", 1, "teacher", [32, 16]), ("Toy-Lift-Marl", 2, "policy", [64, 64])],
    ids=["manager-based", "multi-agent"],
)
def test_tasks_of_the_other_workflows_distil(task, num_actions, read, hidden_dims, tmp_path):
    """A student of a noisy manager-based task, and of a multi-agent one, holds the height as its teacher does.

    Groups and sizes are those of the task's own distillation config, where it has one.
    """
    teacher = _lift_teacher(tmp_path / "teacher", 2, num_actions)
    flags = {
        "task": f"toy_tasks:{task}",
        "teacher_checkpoint": teacher,
        "num_envs": 16,
        "n_epochs": 8,
        "epoch_teacher_forcing": 4,
        "num_episodes": 16,
        "num_eval_episodes": 16,
        "learning_rate": 3e-3,
        "device": "cpu",
        "experiment_name": "toy",
    }
    typed = [part for name, value in flags.items() for part in (f"--{name}", value)]
    tokens = ["distill.final_eval_episodes=32", "distill.optimizer.update_ratio=10"]
    tokens.append("distill.teacher.check=false")  # of five episodes each it cannot tell the teacher from random pulls
    _run(tmp_path, _script("distillation.py"), *typed, "--headless", "--engine", "isaaclab", *tokens)
    run = _the_run(tmp_path, "distillation")
    assert json.loads((run / "summary.json").read_text())["return_ratio"] > 0.97
    cfg = yaml.safe_load((run / "params" / "distillation.yaml").read_text())
    assert (cfg["teacher"]["obs_groups"], cfg["student"]["obs_groups"]) == ([read], ["policy"])
    assert cfg["student"]["hidden_dims"] == hidden_dims
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["logs", "teacher"]


@pytest.mark.slow
def test_train_then_distil_then_play(tmp_path):
    """The line of commands on our task, with bare overrides; folders and parameters are those of the documentation."""
    lean = ["--engine", "isaaclab", "--device", "cpu", "--headless", "--task", TASK]
    quick = ["scene.num_envs=8", "env.sim.dt=0.01", "env.decimation=1", "env.episode_length_s=0.5"]
    _run(tmp_path, _script("train.py"), *lean, *quick, "--max_iterations", 1, "agent.seed=3", "agent.eval_interval=0")
    trained = _the_run(tmp_path, "rsl_rl")
    teacher = max(trained.glob("model_*.pt"))
    assert yaml.safe_load((trained / "params" / "agent.yaml").read_text())["seed"] == 3
    assert yaml.safe_load((trained / "params" / "env.yaml").read_text())["scene"]["num_envs"] == 8
    distil = ["--n_epochs", 2, "--epoch_teacher_forcing", 1, "--num_episodes", 8, "--num_eval_episodes", 8]
    distil += ["--teacher_checkpoint", teacher, "distill.final_eval_episodes=8", "distill.teacher.check=false"]
    done = _run(tmp_path, _script("distillation.py"), *lean, *quick, *distil)
    assert "Teacher architecture: obs=26, actions=4, hidden=[" in done.stdout
    run = _the_run(tmp_path, "distillation")
    assert Path(yaml.safe_load((run / "params" / "env.yaml").read_text())["log_dir"]).name == run.name
    expected = {"best_student.pt", "final_student.pt", "summary.json", "params"}
    assert expected <= {entry.name for entry in run.iterdir()}
    params = {entry.name for entry in (run / "params").iterdir()}
    assert {"env.yaml", "env.pkl", "agent.yaml", "agent.pkl", "distillation.yaml"} <= params
    play = ["--checkpoint", run / "best_student.pt", "--num_episodes", 8]
    _run(tmp_path, _script("play.py"), *lean, *quick, *play)
    assert [entry.name for entry in tmp_path.iterdir()] == ["logs"], "no outputs/ folder is left behind"


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    """A misspelt override ends the command before anything is simulated or written."""
    done = _run(
        tmp_path,
        _script("train.py"),
        *("--engine", "isaaclab", "--device", "cpu", "--task", TASK, "env.scene.num_env=8"),
        expect=2,
    )
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        "error: unknown key 'env.scene.num_env'. Did you mean 'num_envs'?"
    ]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("logs/*/*/*"))


@pytest.mark.slow
def test_isaac_labs_own_train_command_finds_the_task(tmp_path):
    """``python -m isaaclab train`` trains the task through the entry point that this package declares."""
    command = ["-m", "isaaclab", "train", "--rl_library", "rsl_rl", "--task", TASK, "--device", "cpu", "--viz", "none"]
    _run(tmp_path, *command, "--num_envs", 8, "--max_iterations", 1)
    run = _the_run(tmp_path, "rsl_rl")
    assert list(run.glob("model_*.pt"))
