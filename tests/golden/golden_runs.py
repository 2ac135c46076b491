"""The command lines of the golden runs, and how what they write is compared.

They rest on the commands and on the files that these read and write alone, so that the package may be laid out anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FIXTURES = HERE / "fixtures"
COMMIT = "28860de"
"""The commit whose behaviour is recorded."""
TASK = "Isaac-Quadcopter-Point-Ctrl-v0"

_SMALL = {
    "--task": TASK,
    "--device": "cpu",
    "--n_epochs": 6,
    "--epoch_teacher_forcing": 2,
    "--learning_rate": 1e-3,
    "--num_envs": 16,
    "--num_episodes": 8,
    "--num_eval_episodes": 16,
    "--save_interval": 4,
}
_FIXED = ["env.episode_length_s=0.4", "distill.final_eval_episodes=32", "distill.teacher.check=false"]

ONE = ["--teacher_checkpoint", "teacher/model.pt"]
MANY = ["--teacher_checkpoint", "teachers", "--num_active_teachers", "1", "--teacher_selection", "worst"]
RUNS: dict[str, list[str]] = {
    "mlp": ONE,
    "gru": [*ONE, "student=gru"],
    "kl": [*ONE, "loss=kl", "distill.student.stochastic=true"],
    "many_teachers": [*MANY, "distill.teacher.emphasis=4"],
    "save_dataset": [*ONE, "--save_dataset", "dataset"],
    "half_way": [*ONE, "--experiment_name", "half_way"],
}
"""Name -> arguments besides the common ones."""
COMMANDS = ("train", "distillation", "play", "teacher_info")
OFFLINE = ["--offline", "--dataset", "dataset", "--n_epochs", "4", "--learning_rate", "1e-3", "--device", "cpu"]


def arguments(name: str) -> list[str]:
    """Return the command line of a run of the simulator."""
    common = [str(part) for item in _SMALL.items() for part in item]
    return [*common, *RUNS[name], *_FIXED]


def command(name: str, *args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run one of the commands in a folder, on one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "FOUNDATION_NATIVE": "0"}
    script = ROOT / "foundation" / "rsl_rl" / f"{name}.py"
    return subprocess.run(
        [sys.executable, str(script), *args], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )


def only_run(folder: Path) -> Path:
    """Return the one run under a working folder."""
    (run,) = (folder / "logs" / "distillation").glob("*/*")
    return run


def digest(checkpoint: Path) -> str:
    """Hash the weights of a checkpoint: names, types, shapes and bits."""
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["model_state_dict"]
    result = hashlib.sha256()
    for key in sorted(state):
        value = state[key].contiguous()
        result.update(f"{key} {value.dtype} {tuple(value.shape)} ".encode())
        result.update(value.numpy().tobytes())
    return result.hexdigest()


def result_of(run: Path) -> dict[str, Any]:
    """Return what a finished run is compared by."""
    summary = json.loads((run / "summary.json").read_text())
    student = summary.get("student", {})
    weights = {"final": digest(run / "final_student.pt"), "best": digest(run / "best_student.pt")}
    return {**weights, "mean_return": student.get("mean_return")}


def flags_of(name: str, folder: Path) -> list[str]:
    """Return the flags that ``--help`` of a command shows."""
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", command(name, "--help", folder=folder).stdout)))


def machine() -> dict[str, str]:
    """Return what the bits depend on besides the code."""
    return {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
