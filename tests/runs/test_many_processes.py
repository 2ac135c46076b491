"""``distillation.py --distributed``: several processes are one run, whatever stops one of them.

``FOUNDATION_KILLS=20`` asks for that many kills at random moments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import many_teachers
import pytest
import torch
from command_server import shared
from ranks import Launched, distil
from tiny_runs import arguments, differing, run_folder, write_teacher

KILLS = int(os.environ.get("FOUNDATION_KILLS", "8"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model_1.pt")


def small(teacher: Path, *more: Any, **flags: Any) -> list[str]:
    """Return the arguments of a run of four epochs."""
    return arguments(teacher, *more, **{"n_epochs": 4, "epoch_teacher_forcing": 2, **flags})


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((run_folder(folder) / "summary.json").read_text())


def latest(folder: Path) -> dict[str, Any]:
    return torch.load(run_folder(folder) / "checkpoint_latest.pt", weights_only=True)


def test_all_processes_hold_the_same_student_and_one_speaks(teacher: Path, tmp_path: Path) -> None:
    """Same weights, moments and optimiser in both after four epochs; one folder, one line per epoch, steps of both."""
    text = distil(small(teacher), tmp_path, 2)
    assert differing(run_folder(tmp_path) / "final_student.pt", tmp_path / "final_1.pt") == []
    assert (tmp_path / "output_1.txt").read_text() == ""
    assert text.count("Epoch 4/4") == text.count("Logging to") == 1
    assert "in 16 environments of each of 2 processes" in text
    found = summary(tmp_path)
    assert found["processes"] == 2
    # A chunk is 32 steps, and every process collects at least one in an epoch.
    assert found["env_steps"] == found["dataset_rows"] >= 2 * 16 * 32 * 4
    assert found["final_eval_episodes"] == 32
    assert len(list(run_folder(tmp_path).glob("events*"))) == 1
    assert not list(run_folder(tmp_path).glob("dataset*"))


def test_many_teachers_values_and_moments_are_the_same_in_all(tmp_path: Path) -> None:
    """Selection by returns, position offsets, a standardised value loss and an average: one student in both."""
    fleet = many_teachers.write_set(tmp_path / "fleet", 3, vehicles=True)
    chosen = ["--num_active_teachers", "2", "--teacher_selection", "worst", "--position_offset_correction"]
    value = ["distill.loss.auxiliary={value: 0.1}", "distill.student.value_head=true", "optimizer.ema_decay=0.9"]
    text = distil(small(fleet, *chosen, *value, n_epochs=3, epoch_teacher_forcing=1), tmp_path, 2)
    assert differing(run_folder(tmp_path) / "final_student.pt", tmp_path / "final_1.pt") == []
    assert text.count("3 teachers - Mean return") == 1
    assert set(summary(tmp_path)["teachers"]["each"]) == {f"quad_{index:04d}" for index in range(3)}


def test_the_seed_decides_everything_and_processes_differ(teacher: Path, tmp_path: Path) -> None:
    """Twice the same seed gives the same bits, another seed others; the second process collects something else."""
    for name, seed in (("first", 3), ("second", 3), ("other", 4)):
        distil(small(teacher, seed=seed), tmp_path / name, 2)
    first, second, other = (run_folder(tmp_path / name) / "final_student.pt" for name in ("first", "second", "other"))
    assert differing(first, second) == []
    assert "model_state_dict/normalizer.mean" in differing(first, other)
    alone = shared().run(small(teacher, seed=3), tmp_path / "alone")
    assert alone.code == 0, alone.text
    assert "model_state_dict/normalizer.mean" in differing(first, run_folder(tmp_path / "alone") / "final_student.pt")


def end_within(launched: Launched, seconds: float, but: int) -> list[int]:
    """Wait for all processes but one; return their exit codes."""
    begun = time.monotonic()
    codes = [command.wait(seconds) for rank, command in enumerate(launched.commands) if rank != but]
    assert time.monotonic() - begun < seconds
    return codes


def test_a_killed_process_stops_the_other_and_the_run_resumes_exactly(teacher: Path, tmp_path: Path) -> None:
    """Either is killed: the other ends in 10 s with one line, and resumed the run ends with the bits of a whole one."""
    distil(small(teacher, n_epochs=12), tmp_path / "whole", 2)
    for rank in (0, 1):
        folder = tmp_path / f"killed_{rank}"
        launched = Launched([*small(teacher, n_epochs=12), "--distributed"], folder, 2)
        launched.commands[0].wait_for("Epoch 3/12")
        time.sleep(random.Random(rank).random() * 0.1)
        launched.commands[rank].kill(signal.SIGKILL)
        assert end_within(launched, 10.0, but=rank) == [2], launched.text
        error = launched.commands[1 - rank].error
        assert "another process of this run has ended" in error and "--resume --load_run" in error
        assert launched.text.count("error:") == 1 and "Traceback" not in launched.text
        assert latest(folder)["epoch"] >= 2  # the line of an epoch comes before its checkpoint
        text = distil(["--resume"], folder, 2)
        assert "(exact)" in text, text
        one, two = (run_folder(path) / "final_student.pt" for path in (tmp_path / "whole", folder))
        assert differing(one, two) == []


@pytest.mark.slow
def test_kills_at_random_moments(teacher: Path, tmp_path: Path) -> None:
    """One of two is killed at any moment, often: the other ends within 10 s, with one line; what is saved loads."""
    draw = random.Random(0)
    for attempt in range(KILLS):
        folder = tmp_path / str(attempt)
        rank = draw.randrange(2)
        launched = Launched([*small(teacher, n_epochs=1000), "--distributed"], folder, 2)
        launched.commands[0].wait_for("Logging to")
        time.sleep(2.0 * draw.random())
        launched.commands[rank].kill(signal.SIGKILL)
        assert end_within(launched, 10.0, but=rank) == [2], launched.text
        assert launched.text.count("error:") == 1 and "Traceback" not in launched.text
        saved = list((folder / "logs").rglob("*.pt"))  # before anything was, the folder is removed
        for path in saved:
            torch.load(path, weights_only=True)
        if attempt % 5 == 0 and any(path.name == "checkpoint_latest.pt" for path in saved):
            argv = ["--resume", "--n_epochs", str(latest(folder)["epoch"] + 1)]
            command = shared().run(argv, folder)
            assert command.code == 0 and "the number of processes is 1, was 2" in command.text


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_stops_both(rank: int, teacher: Path, tmp_path: Path) -> None:
    """SIGTERM to either: both end with the code of the signal, after one line, and what was finished is saved."""
    launched = Launched([*small(teacher, n_epochs=1000), "--distributed"], tmp_path, 2)
    launched.commands[0].wait_for("Epoch 2/")
    launched.commands[rank].kill(signal.SIGTERM)
    assert launched.wait(10.0) == [143, 143], launched.text
    assert launched.text.count("Stopped (SIGTERM) after epoch") == 1
    assert latest(tmp_path)["epoch"] >= 2


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_resuming_with_another_number_of_processes(before: int, after: int, teacher: Path, tmp_path: Path) -> None:
    """It says so, keeps every transition, and goes on from the same student, with transitions of all."""
    launched = Launched([*small(teacher, n_epochs=1000), "--distributed"], tmp_path, before)
    launched.commands[0].wait_for("Epoch 3/")
    for command in launched.commands:
        command.kill(signal.SIGTERM)
    launched.wait(10.0)
    saved = latest(tmp_path)
    epochs = saved["epoch"] + 2
    text = distil(["--resume", "--n_epochs", epochs], tmp_path, after)
    assert f"(exact, but n_epochs is {epochs}, was 1000; the number of processes is {after}, was {before})" in text
    chunk = 16 * 32
    assert saved["resume"]["dataset_rows"] == saved["resume"]["env_steps"] >= before * chunk * saved["epoch"]
    found = summary(tmp_path)
    assert found["dataset_rows"] == found["env_steps"] >= saved["resume"]["env_steps"] + after * chunk * 2
    assert found["epochs"] == epochs and found["processes" if after > 1 else "epochs"] in (after, epochs)
    assert not list(run_folder(tmp_path).glob("dataset*"))


def save_dataset(teacher: Path, folder: Path) -> Path:
    """Save a dataset of 8 chunks of 32 steps in 16 environments."""
    command = shared().run(small(teacher, "--save_dataset", "saved", n_epochs=8), folder)
    assert command.code == 0, command.text
    return folder / "saved"


def test_offline_each_process_learns_from_its_chunks(teacher: Path, tmp_path: Path) -> None:
    """Both hold the same student of all chunks; too many processes and too large batches are one line; it resumes."""
    saved = save_dataset(teacher, tmp_path / "collected")
    argv = ["--offline", "--dataset", saved, "--device", "cpu", "--n_epochs", "3"]
    text = distil(argv, tmp_path / "two", 2)
    assert differing(run_folder(tmp_path / "two") / "final_student.pt", tmp_path / "two" / "final_1.pt") == []
    data = summary(tmp_path / "two")["dataset"]
    assert data["rows"] == 8 * 32 * 16 and data["rows_to_learn_from"] + data["rows_held_out"] == data["rows"]
    assert data["rows_held_out"] == 2 * 32 * 16  # a chunk of each
    assert text.count("Epoch 3/3") == 1
    text = distil([*argv, "--batch_size", "2000"], tmp_path / "large", 2, code=2)
    assert text.count("error:") == 1 and "fewer than the 2000 of a batch" in text
    text = distil(argv, tmp_path / "many", 5, code=2)
    assert text.count("error:") == 1 and "8 chunks, and each of 5 processes needs two" in text
    command = shared().run(["--resume", "--n_epochs", "4"], tmp_path / "two")
    assert "(exact, but n_epochs is 4, was 3; the number of processes is 1, was 2)" in command.text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--multi_task", "tasks.yaml"], "--multi_task is for one process"),
        (["--watch_teacher", "."], "--watch_teacher is for one process"),
        (["--save_dataset", "x"], "--save_dataset is for one process"),
        (["--multirun", "seed=1,2"], "--multirun starts its jobs in one process"),
        (["--teacher_checkpoint", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_what_is_for_one_process_is_refused_once(more: list[str], message: str, teacher: Path, tmp_path: Path) -> None:
    """One line, though each process finds it."""
    base = small(teacher)
    if more[0] in ("--teacher_checkpoint", "--watch_teacher", "--multi_task"):
        at = base.index("--teacher_checkpoint")
        del base[at : at + 2]
    text = distil([*base, *more], tmp_path, 2, code=2)
    # What is refused before the processes know each other, each of them says.
    assert text.count("error:") == (2 if more[0] == "--multirun" else 1) and message in text


def test_distributed_without_torchrun(teacher: Path, tmp_path: Path) -> None:
    """One line says how to start it; started by torchrun with one process it is a run like any other."""
    command = shared().run([*small(teacher), "--distributed"], tmp_path)
    assert command.code == 2
    assert "start them by 'torchrun --nproc_per_node=2 distillation.py ... --distributed'" in command.error
    one = shared().run([*small(teacher), "--distributed"], tmp_path / "one", environment={"WORLD_SIZE": "1"})
    none = shared().run(small(teacher), tmp_path / "none")
    assert one.code == none.code == 0
    students = [run_folder(tmp_path / name) / "final_student.pt" for name in ("one", "none")]
    assert differing(*students) == []


@pytest.mark.slow
def test_torchrun_starts_it_and_ctrl_c_stops_it(teacher: Path, tmp_path: Path) -> None:
    """The command of the documentation ends well; SIGINT to torchrun stops both processes, which say so once."""
    script = Path(__file__).resolve().parents[2] / "foundation" / "rsl_rl" / "distillation.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    argv = [*command, *small(teacher, n_epochs=2), "--distributed"]
    done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Best student") == 1
    argv = [*command, *small(teacher, n_epochs=1000), "--distributed"]
    output = tmp_path / "stopped.txt"
    with output.open("w") as file:
        process = subprocess.Popen(argv, cwd=tmp_path, env=environment, stdout=file, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 100.0
    while "Epoch 2/" not in output.read_text():
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.wait(20.0)
    text = output.read_text()
    assert text.count("SIGINT: saving and leaving") == text.count("Stopped (SIGINT) after epoch") == 1, text
