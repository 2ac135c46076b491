"""``distillation.py`` as its users run it: flags, overrides, files, console, resuming."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_server import run_script
from small_teacher import SMALL, TASK, write_teacher
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "foundation" / "rsl_rl" / "distillation.py"
DOCUMENTED_TAGS = {
    "data_collection/mean_return",
    "data_collection/std_return",
    "training/loss",
    "evaluation/mean_return",
    "evaluation/std_return",
    "evaluation/mean_length",
}


def command(*argv: str, cwd: Path, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder, without a terminal and without this clone on ``PYTHONPATH``."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, str(script), *argv], cwd=cwd, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@dataclass
class Run:
    """A finished run of the command."""

    cwd: Path
    folder: Path
    out: str
    err: str

    def params(self, name: str) -> Any:
        return yaml.safe_load((self.folder / "params" / f"{name}.yaml").read_text())

    def scalars(self) -> dict[str, list[int]]:
        events = EventAccumulator(str(self.folder))
        events.Reload()
        return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


ARGUMENTS = [
    *("--task", TASK, "--teacher_checkpoint", "teacher.pt", *SMALL, "--num_envs", "6", "--seed", "3"),
    *("--experiment_name", "first", "--run_name", "try", "--logger", "tensorboard", "--log_project_name", "p"),
    *("--save_interval", "1", "--eval_interval", "1", "--batch_size", "8", "--sequence_length", "1", "--headless"),
    *("--learning_rate", "1e-3", "--no-shuffle", "--on_policy", "--no-teacher_deterministic", "--num_episodes", "6"),
    *("--video", "--video_length", "5", "--video_interval", "10", "--teacher_min_return", "-1e9"),
    *("env.init.position=0.25", "rewards.alive=2", "agent.max_iterations=7", "num_steps_per_env=9"),
    *("distill.loss=huber", "distill.student.hidden_dims=[16,8]", "distill.student.obs_groups=[deployable]"),
    *("schedule=dagger", "distill.collection.mode=steps", "distill.batch_size=99"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run with (nearly) every flag and every form of override."""
    cwd = tmp_path_factory.mktemp("cli")
    write_teacher(cwd / "teacher.pt")
    done = command(*ARGUMENTS, cwd=cwd)
    assert done.returncode == 0, done.stderr
    folders = list((cwd / "logs" / "distillation" / "first").iterdir())
    assert len(folders) == 1
    return Run(cwd, folders[0], done.stdout, done.stderr)


def test_the_documented_files_are_there(run: Run) -> None:
    """The output tree is the documented one, and the working folder holds nothing else (no ``outputs/``)."""
    names = {str(path.relative_to(run.folder)) for path in run.folder.rglob("*") if path.is_file()}
    assert run.folder.name.endswith("_try")
    assert {"summary.json", "best_student.pt", "final_student.pt", "checkpoint_epoch_1.pt"} <= names
    assert {f"params/{n}" for n in ("env.yaml", "env.pkl", "agent.yaml", "agent.pkl", "distillation.yaml")} <= names
    assert any(name.startswith("events.out.tfevents.") for name in names)
    assert any(name.startswith("videos/distillation/rl-video-") and name.endswith(".mp4") for name in names)
    assert not [name for name in names if ".tmp" in name]
    assert {path.name for path in run.cwd.iterdir()} == {"teacher.pt", "logs"}


def test_the_documented_tags_are_logged_every_epoch(run: Run) -> None:
    """TensorBoard has the documented tags, one value per epoch counted from 1."""
    scalars = run.scalars()
    assert set(scalars) >= DOCUMENTED_TAGS
    assert scalars["training/loss"] == [1, 2]
    assert scalars["evaluation/mean_return"] == [1, 2]


def test_the_console_says_what_is_promised(run: Run) -> None:
    """The documented lines are printed, the last one names the student; why the engine was chosen is logged once."""
    assert "Teacher architecture: obs=26, actions=4, hidden=[16]" in run.out
    assert "Teacher observation groups: policy 26" in run.out
    assert "Data collection - Mean return: " in run.out and " ± " in run.out
    assert "Training - Mean loss: 0." in run.out
    assert run.err.count("[INFO] engine 'torch'") == 1
    assert run.out.splitlines()[-1] == str(run.folder.relative_to(run.cwd) / "best_student.pt")


def test_flags_and_both_forms_of_override_take_effect(run: Run) -> None:
    """What was typed is in ``params/``: ``env.`` and bare keys, groups, lists; flags beat overrides."""
    env, agent, cfg = run.params("env"), run.params("agent"), run.params("distillation")
    assert (env["init"]["position"], env["rewards"]["alive"], env["scene"]["num_envs"], env["seed"]) == (0.25, 2, 6, 3)
    assert (agent["max_iterations"], agent["num_steps_per_env"]) == (7, 9)
    assert (cfg["batch_size"], cfg["learning_rate"], cfg["seed"], cfg["num_envs"]) == (8, 1e-3, 3, 6)
    assert (cfg["shuffle"], cfg["on_policy"], cfg["teacher_deterministic"]) == (False, True, False)
    assert (cfg["loss"]["name"], cfg["student"]["hidden_dims"]) == ("huber", [16, 8])
    assert (cfg["teacher"]["obs_groups"], cfg["student"]["obs_groups"]) == (["policy"], ["deployable"])


def test_who_chose_what_is_said_and_kept(run: Run) -> None:
    """Student, loss, schedule and dataset with who chose each: on the console, and in ``params/overrides.yaml``."""
    line = "student mlp (default, hidden_dims and obs_groups typed), loss huber (typed), schedule dagger (typed"
    assert line in run.err
    choices = run.params("overrides")["choices"]
    assert choices["loss"] == {"name": "huber", "chosen": "typed"}
    assert set(choices) == {"student", "loss", "schedule", "dataset"}


def test_overrides_that_change_nothing_are_named(run: Run) -> None:
    """Distillation has its own learner: of the agent's config it reads three keys, and says which."""
    (line,) = [line for line in run.err.splitlines() if "no effect on distillation" in line]
    assert "agent.max_iterations=7" in line
    assert "agent.clip_actions, agent.experiment_name, agent.obs_groups" in line


def test_the_checkpoint_is_plain(run: Run) -> None:
    """``best_student.pt`` loads with ``weights_only`` and has the documented keys; the student has 22 inputs."""
    checkpoint = torch.load(run.folder / "best_student.pt", weights_only=True)
    assert {"epoch", "model_state_dict", "optimizer_state_dict", "best_return"} <= set(checkpoint)
    shapes = {tuple(t.shape) for t in checkpoint["model_state_dict"].values() if t.ndim == 2}
    assert shapes == {(16, 22), (8, 16), (4, 8)}
    summary = json.loads((run.folder / "summary.json").read_text())
    assert {"teacher_return", "best_student_return", "success_rate", "env_steps", "wall_seconds"} <= set(summary)
    students = 22 * 16 + 16 + 16 * 8 + 8 + 8 * 4 + 4
    assert summary["parameters"] == {"student": students, "teacher": 26 * 16 + 16 + 16 * 4 + 4}, "of its actor alone"


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the default student, stopped by its number of epochs, and the same command with ``--resume``."""
    cwd = tmp_path_factory.mktemp("plain")
    write_teacher(cwd / "teacher.pt")
    arguments = ["--task", TASK, "--teacher_checkpoint", "teacher.pt", *SMALL]
    first = run_script("distillation.py", *arguments, "env.rewards.alive=2", folder=cwd)
    assert first.returncode == 0, first.stderr
    again = run_script("distillation.py", "--resume", "--n_epochs", "4", folder=cwd)
    assert again.returncode == 0, again.stderr
    (folder,) = (cwd / "logs" / "distillation" / "quadcopter_point_ctrl").iterdir()
    return Run(cwd, folder, again.stdout, again.stderr)


def test_a_resumed_run_goes_on_in_its_own_folder(plain_run: Run) -> None:
    """``--resume`` alone remembers task, teacher, settings and overrides; TensorBoard shows one curve."""
    assert "Resuming" in plain_run.out and "Epoch 3/4" in plain_run.out and "Epoch 2/" not in plain_run.out
    assert plain_run.scalars()["training/loss"] == [1, 2, 3, 4]
    assert plain_run.params("env")["rewards"]["alive"] == 2
    assert plain_run.params("distillation")["n_epochs"] == 4
    assert torch.load(plain_run.folder / "final_student.pt", weights_only=True)["epoch"] == 4


def test_the_documented_snippet_works_beside_the_script(plain_run: Run) -> None:
    """``from distillation import StudentPolicy`` loads ``best_student.pt`` with a strange command line around it."""
    snippet = (
        "import sys, torch\n"
        "from distillation import DistillationDataset, StudentPolicy, TeacherPolicyWrapper, collect_episodes\n"
        "student = StudentPolicy(26, 4)\n"
        f"student.load_state_dict(torch.load({str(plain_run.folder / 'best_student.pt')!r})['model_state_dict'])\n"
        "action = student(torch.zeros(3, 26))\n"
        "assert action.shape == (3, 4) and torch.isfinite(action).all()\n"
        "print('flies')\n"
    )
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", snippet, "--not", "ours"], cwd=SCRIPT.parent, env=env, capture_output=True, text=True
    )
    assert done.stdout == "flies\n", done.stderr


def test_help_is_quick_and_complete(tmp_path: Path) -> None:
    """``--help`` names every documented flag, and does so without importing torch."""
    began = time.perf_counter()
    done = command("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert time.perf_counter() - began < 5.0
    flags = (
        "task teacher_checkpoint num_envs seed device experiment_name run_name resume load_run checkpoint logger "
        "log_project_name video video_length video_interval n_epochs num_episodes batch_size sequence_length "
        "learning_rate eval_interval num_eval_episodes save_interval teacher_min_return epoch_teacher_forcing shuffle "
        "no-shuffle on_policy teacher_deterministic no-teacher_deterministic engine headless"
    )
    assert not [flag for flag in flags.split() if f"--{flag}" not in done.stdout]
    assert not list(tmp_path.iterdir())


def test_a_closed_pipe_is_not_an_error(tmp_path: Path) -> None:
    """``distillation.py --help | head -1`` ends quietly."""
    pipeline = f"{sys.executable} {SCRIPT} --help | head -n 1"
    done = subprocess.run(["bash", "-c", pipeline], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.startswith("usage:")
    assert "Traceback" not in done.stderr
