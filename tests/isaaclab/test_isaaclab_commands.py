"""The commands, each in a process of its own, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from isaac_envs import TASK, linear_teacher, run_command, script, the_run


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
    teacher = linear_teacher(tmp_path / "teacher", [[-6.0, -4.0]] * num_actions)
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
    run_command(tmp_path, script("distillation.py"), *typed, "--headless", "--engine", "isaaclab", *tokens)
    run = the_run(tmp_path, "distillation")
    assert json.loads((run / "summary.json").read_text())["return_ratio"] > 0.97
    cfg = yaml.safe_load((run / "params" / "distillation.yaml").read_text())
    assert (cfg["teacher"]["obs_groups"], cfg["student"]["obs_groups"]) == ([read], ["policy"])
    assert cfg["student"]["hidden_dims"] == hidden_dims
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["logs", "teacher"]


@pytest.mark.slow
def test_train_then_distil_then_play_then_fine_tune(tmp_path):
    """The line of commands on our task, with bare overrides; folders and parameters are those of the documentation."""
    lean = ["--engine", "isaaclab", "--device", "cpu", "--headless", "--task", TASK]
    quick = ["scene.num_envs=8", "env.sim.dt=0.01", "env.decimation=1", "env.episode_length_s=0.5"]
    run_command(
        tmp_path, script("train.py"), *lean, *quick, "--max_iterations", 1, "agent.seed=3", "agent.eval_interval=0"
    )
    trained = the_run(tmp_path, "rsl_rl")
    teacher = max(trained.glob("model_*.pt"))
    assert yaml.safe_load((trained / "params" / "agent.yaml").read_text())["seed"] == 3
    assert yaml.safe_load((trained / "params" / "env.yaml").read_text())["scene"]["num_envs"] == 8
    distil = ["--n_epochs", 2, "--epoch_teacher_forcing", 1, "--num_episodes", 8, "--num_eval_episodes", 8]
    distil += ["--teacher_checkpoint", teacher, "distill.final_eval_episodes=8", "distill.teacher.check=false"]
    done = run_command(tmp_path, script("distillation.py"), *lean, *quick, *distil)
    assert "Teacher architecture: obs=26, actions=4, hidden=[" in done.stdout
    run = the_run(tmp_path, "distillation")
    assert Path(yaml.safe_load((run / "params" / "env.yaml").read_text())["log_dir"]).name == run.name
    expected = {"best_student.pt", "final_student.pt", "summary.json", "params"}
    assert expected <= {entry.name for entry in run.iterdir()}
    params = {entry.name for entry in (run / "params").iterdir()}
    assert {"env.yaml", "env.pkl", "agent.yaml", "agent.pkl", "distillation.yaml"} <= params
    play = ["--checkpoint", run / "best_student.pt", "--num_episodes", 8]
    run_command(tmp_path, script("play.py"), *lean, *quick, *play)
    tune = ["--checkpoint", run / "best_student.pt", "--teacher_checkpoint", teacher, "--kl_coef", 0.5]
    tune += ["--max_iterations", 3, "--critic_warmup_iterations", 1, "--num_eval_episodes", 8]
    done = run_command(tmp_path, script("finetune.py"), *lean, *quick, *tune, "finetune.final_eval_episodes=8")
    tuned = the_run(tmp_path, "finetune")
    assert "it learns alone for 1 iterations" in done.stdout
    assert yaml.safe_load((tuned / "params" / "env.yaml").read_text())["scene"]["num_envs"] == 8
    run_command(
        tmp_path, script("play.py"), *lean, *quick, "--checkpoint", tuned / "final_student.pt", "--num_episodes", 8
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["logs"], "no outputs/ folder is left behind"


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    """A misspelt override ends the command before anything is simulated or written."""
    done = run_command(
        tmp_path,
        script("train.py"),
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
    run_command(tmp_path, *command, "--num_envs", 8, "--max_iterations", 1)
    run = the_run(tmp_path, "rsl_rl")
    assert list(run.glob("model_*.pt"))
