"""A user's own task, ``examples/own_task.py``, from the working folder through every command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TASK = ["--task", "own_task:Point-v0", "--device", "cpu", "--num_envs", "8"]


def run(folder: Path, script: str, *arguments: str, expect: int = 0) -> str:
    command = [sys.executable, str(ROOT / "foundation" / "rsl_rl" / script), *TASK, *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stderr


def test_a_task_in_the_working_folder_is_trained_distilled_and_played(tmp_path):
    """``--task module:Id`` finds a module beside the user, whom no installation knows, in all three commands."""
    shutil.copy(ROOT / "examples" / "own_task.py", tmp_path)
    run(tmp_path, "train.py", "--max_iterations", "1")
    teacher = next(tmp_path.rglob("best_model.pt"))
    small = ["--n_epochs", "1", "--num_episodes", "8", "--num_eval_episodes", "8", "--final_eval_episodes", "8"]
    run(tmp_path, "distillation.py", "--teacher_checkpoint", str(teacher), *small)
    run(tmp_path, "play.py", "--num_episodes", "8", "--json", "result.json")
    assert json.loads((tmp_path / "result.json").read_text())["num_episodes"] == 8

    # Distilling and playing need no agent's config; training by one does, and says so.
    task = tmp_path / "own_task.py"
    task.write_text(task.read_text().replace('"rsl_rl_cfg_entry_point": OnPolicyRunnerCfg,', ""))
    run(tmp_path, "distillation.py", "--teacher_checkpoint", str(teacher), "--experiment_name", "bare", *small)
    run(tmp_path, "play.py", "--num_episodes", "8", "--experiment_name", "bare")
    refused = run(tmp_path, "train.py", "--max_iterations", "1", expect=2)
    assert "'Point-v0' has no 'rsl_rl_cfg_entry_point'" in refused
