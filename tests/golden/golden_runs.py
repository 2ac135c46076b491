"""Command lines of the golden runs, and the comparison of what they write.

Everything here rests on the commands, the files that they read and write, and the names importable from ``foundation``:
the package may be laid out anew around them.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
FIXTURES = HERE / "fixtures"
SHIPPED = ROOT / "foundation" / "assets" / "teachers" / "point_ctrl"
COMMANDS = ("train", "distillation", "play", "teacher_info")
STUDENTS = ("gru", "history", "lstm", "mlp", "tcn")
HALF_WAY = Path("logs/distillation/golden/2026-01-01_00-00-00_half_way")
"""Folder of the interrupted run below a working folder."""

_TASK = ["--task", "Isaac-Quadcopter-Point-Ctrl-v0", "--device", "cpu"]
_SHORT = ["env.episode_length_s=0.5", "distill.final_eval_episodes=16"]
_RUN = [
    *(*_TASK, "--n_epochs", "6", "--epoch_teacher_forcing", "2", "--num_eval_episodes", "16"),
    *("--num_envs", "16", "--num_episodes", "16", "--learning_rate", "3e-3", *_SHORT),
]
_SMALL = [
    *(*_TASK, "--n_epochs", "6", "--epoch_teacher_forcing", "2", "--num_eval_episodes", "8"),
    *("--num_envs", "4", "--num_episodes", "4", "--learning_rate", "3e-3", "--batch_size", "32", *_SHORT),
    *("distill.student.hidden_dims=[16,16]", "distill.teacher.check=false"),
]
_ONE = ["--teacher_checkpoint", "teacher/model.pt"]
_MANY = [
    *("--teacher_checkpoint", "teachers", "--num_active_teachers", "1", "--teacher_selection", "worst"),
    "distill.teacher.emphasis=4",
]
RUNS = {
    "mlp": [*_RUN, *_ONE],
    "gru": [*_RUN, *_ONE, "student=gru"],
    "kl": [*_RUN, *_ONE, "loss=kl", "distill.student.stochastic=true"],
    "many_teachers": [*_RUN, *_MANY],
    "offline": ["--offline", "--dataset", "dataset", "--n_epochs", "6", "--batch_size", "32", "--device", "cpu"],
    "half_way": [*_SMALL, *_ONE, "--save_interval", "3", "--experiment_name", "golden", "--run_name", "half_way"],
    "save_dataset": [*_SMALL, *_ONE, "--save_dataset", "dataset"],
}
"""Name -> arguments of ``distillation.py``; the last two made fixtures."""
SHORTEST = [
    *(*_TASK, *_ONE, "--n_epochs", "1", "--num_eval_episodes", "4", "--num_envs", "4", "--num_episodes", "4"),
    *("env.episode_length_s=0.2", "distill.final_eval_episodes=4", "distill.teacher.check=false"),
]
"""Arguments of the shortest run, made for the config that it writes."""


def start(name: str, *args: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    """Start one of the commands in a folder, on one thread and without kernels of this machine's own compiler."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "FOUNDATION_NATIVE": "0"}
    argv = [sys.executable, str(ROOT / "foundation" / "rsl_rl" / f"{name}.py"), *args]
    return subprocess.Popen(argv, cwd=folder, env=env, text=True, stdin=subprocess.DEVNULL, **options)


def command(name: str, *args: str, folder: Path) -> str:
    """Run one of the commands in a folder and return what it printed; its failure is an error that shows all of it."""
    process = start(name, *args, folder=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    printed, _ = process.communicate(timeout=300)
    if process.returncode:
        raise RuntimeError(f"{name}.py {' '.join(args)}: exit code {process.returncode}\n{printed}")
    return printed


def write_teachers(folder: Path) -> None:
    """Write ``teacher/`` (the shipped one) and ``teachers/`` (two variants of it with perturbed weights)."""
    shutil.copytree(SHIPPED, folder / "teacher")
    shutil.copytree(SHIPPED / "params", folder / "teachers" / "params")
    checkpoint = torch.load(SHIPPED / "model.pt", weights_only=True)
    generator = torch.Generator().manual_seed(7)
    for number, scale in enumerate((0.01, 0.05)):
        varied = {key: _perturbed(value, scale, generator) for key, value in _groups(checkpoint).items()}
        torch.save({**checkpoint, **varied}, folder / "teachers" / f"variant_{number}.pt")


def _groups(checkpoint: dict[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    return {key: value for key, value in checkpoint.items() if key.endswith("state_dict") and "optimizer" not in key}


def _perturbed(state: dict[str, torch.Tensor], scale: float, generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {
        name: value * (1 + scale * torch.randn(value.shape, generator=generator)) if name.endswith("weight") else value
        for name, value in state.items()
    }


def run_in(folder: Path) -> Path:
    """Return the one run under a working folder."""
    (run,) = (folder / "logs" / "distillation").glob("*/*")
    return run


def digest(checkpoint: Path) -> str:
    """Hash the weights of a checkpoint: sorted names, types, shapes and bits."""
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["model_state_dict"]
    result = hashlib.sha256()
    for name in sorted(state):
        value = state[name].contiguous()
        result.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        result.update(value.numpy().tobytes())
    return result.hexdigest()


def outcome(run: Path, printed: str) -> dict[str, Any]:
    """Return what a finished run is compared by: the final weights' hash, and its figures."""
    summary = json.loads((run / "summary.json").read_text())
    figures = {key: summary[key] for key in ("best_student_return", "teacher_return") if key in summary}
    for key, line in (("training_loss", "Training - Mean loss"), ("held_out_loss", "Evaluation - Held-out loss")):
        if values := re.findall(rf"{line}: ([-+.\deE]+)", printed):
            figures[f"final_{key}"] = float(values[-1])
    return {"final_student": digest(run / "final_student.pt"), "figures": figures}


def played(student: str, folder: Path, command: Callable[..., str] = command) -> dict[str, float]:
    """Play ``student_<name>.pt`` of a folder by ``play.py`` and return its figures."""
    args = ["--checkpoint", f"student_{student}.pt", "--device", "cpu", "--num_envs", "16", "--num_episodes", "16"]
    command("play", *args, "--json", "played.json", "env.episode_length_s=0.5", folder=folder)
    figures = json.loads((folder / "played.json").read_text())
    return {"mean_return": figures["return"]["mean"], "mean_length": figures["length"]["mean"]}


def actions_of(checkpoint: Path) -> list[Any]:
    """Return three steps of actions of a policy, shape (3, 2, 4), on observations that are a formula."""
    from foundation import TeacherPolicyWrapper

    policy = TeacherPolicyWrapper(str(checkpoint), "cpu")
    grid = torch.arange(3 * 2 * policy.num_obs, dtype=torch.float32).reshape(3, 2, policy.num_obs)
    return [policy.act((step % 17 - 8) / 8).tolist() for step in grid]


def typed_as(value: Any) -> str:
    """Return a value as it is typed in an override: JSON, but with bare keys of mappings."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {typed_as(entry)}" for key, entry in value.items()) + "}"
    return json.dumps(value)


def config_of(run: Path) -> dict[str, Any]:
    """Return the distillation config that a run wrote."""
    return yaml.safe_load((run / "params" / "distillation.yaml").read_text())


def flags_of(name: str, folder: Path) -> dict[str, Any]:
    """Return every flag of a command with its default, from the parser that its script reads the command line with."""
    script = ROOT / "foundation" / "rsl_rl" / f"{name}.py"
    argv = [sys.executable, str(HERE / "show_parser.py"), str(script)]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["flags"]


def machine() -> dict[str, str]:
    """Return what the bits depend on besides the code."""
    processor = ""
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "processor": processor,  # a BLAS has kernels of its own for each
    }


def platform_line() -> str:
    """Return the platform and Python, for the record."""
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
