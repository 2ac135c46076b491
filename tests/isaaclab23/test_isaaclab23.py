"""The commands on Isaac Lab 2.3: AppLauncher, a real DirectRLEnv, RslRlVecEnvWrapper, rsl-rl-lib 3.0.1."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

HERE = Path(__file__).parent
COMMON = ["--engine", "isaaclab", "--task", "toy23_tasks:Toy-Push-v0", "--device", "cpu", "--headless"]


def _run(folder: Path, *command: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command of ours in a process with the stand-ins."""
    paths = [os.environ["ISAACLAB23"], str(HERE), str(HERE.parents[1])]
    done = subprocess.run(
        [sys.executable, str(HERE / "run_with_stand_ins.py"), *map(str, command)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == expect, done.stdout[-3000:] + done.stderr[-6000:]
    return done


def _the_run(folder: Path, kind: str) -> Path:
    (run,) = (folder / "logs" / kind).glob("*/*")
    return run


@pytest.mark.slow
def test_train_distil_and_play(tmp_path):
    """The three commands run through Kit's launcher and close it; overrides and parameters are as documented."""
    done = _run(tmp_path, "train", *COMMON, "--num_envs", 8, "--max_iterations", 2, "agent.seed=3", "gain=4.0")
    assert done.stdout.rstrip().endswith(
        "Kit was asked: SimulationApp SimulationContext SimulationContext.clear_instance SimulationApp.close"
    )
    trained = _the_run(tmp_path, "rsl_rl")
    assert yaml.safe_load((trained / "params" / "env.yaml").read_text())["gain"] == 4.0
    assert yaml.safe_load((trained / "params" / "agent.yaml").read_text())["seed"] == 3
    small = ["--n_epochs", 2, "--epoch_teacher_forcing", 1, "--num_episodes", 8, "--num_eval_episodes", 8]
    small += ["--teacher_checkpoint", max(trained.glob("model_*.pt"))]
    small += ["distill.final_eval_episodes=8", "distill.teacher.check=false"]
    done = _run(tmp_path, "distillation", *COMMON, "scene.num_envs=8", *small)
    assert "Teacher architecture: obs=2, actions=1, hidden=[16]" in done.stdout
    run = _the_run(tmp_path, "distillation")
    assert json.loads((run / "summary.json").read_text())["task"] == "toy23_tasks:Toy-Push-v0"
    assert yaml.safe_load((run / "params" / "env.yaml").read_text())["scene"]["num_envs"] == 8
    _run(tmp_path, "play", *COMMON, "--num_envs", 8, "--checkpoint", run / "best_student.pt", "--num_episodes", 8)
    assert [entry.name for entry in tmp_path.iterdir()] == ["logs"], "no outputs/ folder is left behind"


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("env.gian=4", "error: unknown key 'env.gian'. Did you mean 'gain'?"),
        ("env.scene.num_envs=abc", "error: 'env.scene.num_envs' is 'abc': it must be an integer"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(token, message, tmp_path):
    """Closing Kit would end the process with code 0: the command ends it itself."""
    done = _run(tmp_path, "train", *COMMON, token, expect=2)
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [message]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("task", "num_actions"), [("Toy-Push-v0", 1), ("Toy-Push-Marl-v0", 2)])
def test_the_engine_keeps_its_promises(task, num_actions, tmp_path):
    """Single-agent and converted multi-agent environments, whose wrapper serves neither observations nor counters."""
    done = _run(tmp_path, "contract", f"toy23_tasks:{task}", num_actions)
    assert "contract kept" in done.stdout


def test_auto_takes_the_built_in_engine_for_the_built_in_task(tmp_path):
    """Isaac Lab 2.3 cannot be asked before Kit runs; the line says why the torch engine was taken."""
    task = "Isaac-Quadcopter-Point-Ctrl-v0"
    small = ["--num_envs", 4, "--max_iterations", 1, "env.episode_length_s=0.1", "agent.eval_interval=0"]
    done = _run(tmp_path, "train", "--task", task, "--device", "cpu", *small)
    assert "engine 'torch' can run" in done.stderr
    assert "Isaac Lab 2 is installed" in done.stderr
    assert "SimulationApp" not in done.stdout
