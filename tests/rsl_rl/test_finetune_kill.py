"""A fine-tuning run that is killed, or stopped by Ctrl-C, in the middle: resumed, it ends with the same bits."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import pytest
import torch
from command_server import Command, shared
from tiny_runs import NUM_ACTIONS, TASK, differing

from foundation.students import StudentPolicy

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "foundation" / "rsl_rl" / "finetune.py"
FLAGS = ["--checkpoint", "s.pt", "--device", "cpu", "--num_envs", "8", "env.episode_length_s=0.4"]
FLAGS += ["agent.num_steps_per_env=8", "--max_iterations", "12", "--eval_interval", "3", "--num_eval_episodes", "8"]
FLAGS += ["--final_eval_episodes", "8", "--critic_warmup_iterations", "2", "--kl_coef", "0.5", "--save_interval", "100"]
KILLS = 8
"""Twenty, and a hundred iterations, take eighty seconds."""
MOST_SAVES = 4
LONGEST = 0.04
"""A kill comes after a random number of saves, fewer than this, and a random time, at most this [s]."""
LONG = ["--max_iterations", "50", "--eval_interval", "10"]
"""Of a run that is not over before its last kill."""


def start(folder: Path, *argv: str) -> Command:
    """Start ``finetune.py`` in a folder, as a process of its own."""
    return shared().start([*argv], folder, script=SCRIPT)


def run_of(folder: Path) -> Path:
    """The only run of a folder."""
    (run,) = (folder / "logs" / "finetune").glob("*/*")
    return run


def wait_for_saves(folder: Path, number: int, process: Command) -> None:
    """Return once the newest checkpoint has been written so many times."""
    seen: set[int] = set()
    while len(seen) < number and process.poll() is None:
        for path in folder.glob("logs/finetune/*/*/checkpoint_latest.pt"):
            seen.add(path.stat().st_mtime_ns)
        time.sleep(0.002)


def wait_for_params(folder: Path, process: Command) -> None:
    """Return once the run can be resumed."""
    while not list(folder.glob("logs/finetune/*/*/params/finetune.yaml")) and process.poll() is None:
        time.sleep(0.002)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    torch.manual_seed(0)
    policy = StudentPolicy(26, NUM_ACTIONS, (8,))
    values = {"student": policy.describe(), "model_state_dict": policy.state_dict(), "task": TASK}
    torch.save(values | {"obs_groups": ["policy"], "obs_slice": None, "clip_actions": 1.0}, folder / "s.pt")
    process = start(folder, *FLAGS)
    assert process.wait() == 0, process.text
    return folder


@pytest.mark.parametrize(
    ("number", "saves"), [(signal.SIGKILL, 2), (signal.SIGKILL, 5), (signal.SIGKILL, 9), (signal.SIGINT, 4)]
)
def test_what_is_left_is_resumed_exactly(number, saves, whole, tmp_path):
    """Killed at different moments: files are whole, and the resumed run ends as if nothing had happened."""
    (tmp_path / "s.pt").write_bytes((whole / "s.pt").read_bytes())
    process = start(tmp_path, *FLAGS)
    wait_for_saves(tmp_path, saves, process)
    process.kill(number)
    assert process.wait() == (130 if number is signal.SIGINT else -signal.SIGKILL), process.text
    resumed = start(tmp_path, "--resume")
    assert resumed.wait() == 0, resumed.text
    assert "(exact)" in resumed.text
    for name in ("checkpoint_latest.pt", "final_student.pt", "best_student.pt"):
        assert not differing(run_of(whole) / name, run_of(tmp_path) / name), name


@pytest.mark.slow
def test_a_run_that_is_killed_at_eight_random_moments_ends_with_the_same_bits(whole, tmp_path):
    """One run, killed at random moments and resumed again and again: all its files are those of the whole run.

    Some kills come before a resumed run has saved anything, others after some iterations, at any time within one.
    """
    folders = {name: tmp_path / name for name in ("uninterrupted", "killed")}
    for folder in folders.values():
        folder.mkdir()
        (folder / "s.pt").write_bytes((whole / "s.pt").read_bytes())
    reference = start(folders["uninterrupted"], *FLAGS, *LONG)
    assert reference.wait() == 0, reference.text
    draw = random.Random(15)
    process = start(folders["killed"], *FLAGS, *LONG)
    wait_for_params(folders["killed"], process)
    reached = []
    for _ in range(KILLS):
        wait_for_saves(folders["killed"], draw.randrange(MOST_SAVES), process)
        time.sleep(draw.uniform(0.0, LONGEST))
        process.kill(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, f"it ended too early, after {reached}:\n{process.text}"
        process = start(folders["killed"], "--resume")
        process.wait_for("(exact)")
        reached.append(int(process.text.partition("after iteration ")[2].split()[0]))
    assert process.wait() == 0, process.text
    assert reached == sorted(reached) and len(set(reached)) > 3, reached
    for name in ("checkpoint_latest.pt", "final_student.pt", "best_student.pt"):
        one, other = (run_of(folder) / name for folder in folders.values())
        assert not differing(one, other), (name, reached)
