"""What goes wrong in the middle of a run: NaN and a full disk. One line, exit code 2, the last good epoch is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_server import Command, CommandServer, shared
from tiny_runs import arguments, differing, run_folder, tensors, write_teacher

SMALL = {"n_epochs": 5, "epoch_teacher_forcing": 2, "num_eval_episodes": 8, "save_interval": 2}
OWN = ["loss=spoiled:loss", "batch_size=100000", "optimizer.update_ratio=1"]
"""With so large a batch an epoch is one update: a loss that is finite hides weights that are not."""


@pytest.fixture(scope="module")
def server() -> CommandServer:
    return shared()


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    teacher = write_teacher(tmp_path_factory.mktemp("teacher") / "model_1.pt")
    return arguments(teacher, *OWN, **SMALL, task="spoiled:Spoiled-v0")


@pytest.fixture(scope="module")
def whole(server: CommandServer, argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run in which nothing goes wrong."""
    folder = tmp_path_factory.mktemp("whole")
    command = server.run(argv, folder)
    assert command.code == 0, command.text
    return run_folder(folder)


def check_failure(command: Command, folder: Path, *says: str) -> int:
    """One line, exit code 2, everything loads and is finite. Return the epochs that are kept."""
    assert command.code == 2, command.text
    assert "Traceback" not in command.text
    assert [line for line in command.text.splitlines() if line.startswith("error:")] == [command.error]
    for word in says:
        assert word in command.error
    run = run_folder(folder)
    for path in run.rglob("*.pt"):
        for name, tensor in tensors(torch.load(path, weights_only=True)).items():
            assert bool(torch.isfinite(tensor.float()).all()), f"{path.name}: {name}"
    assert not list(run.rglob(".*"))
    return torch.load(run / "checkpoint_latest.pt", weights_only=True)["resume"]["epoch"]


def check_same_end(server: CommandServer, folder: Path, whole: Path) -> None:
    """Once the trouble is over, the run goes on as if it had never been."""
    resumed = server.run(["--resume", "--import", "spoiled"], folder)
    assert resumed.code == 0, resumed.text
    assert "(exact)" in resumed.text or "after epoch 5 (of 5" in resumed.text
    for name in ("final_student.pt", "best_student.pt", "checkpoint_epoch_4.pt"):
        assert differing(run_folder(folder) / name, whole / name) == []


SPOILED = {
    "observations": (110, ["environment", "observations", "policy"]),
    "rewards": (110, ["environment", "rewards"]),
    "teacher": (67, ["teacher", "mean"]),  # it labels 32 steps of each forced epoch, and then whole chunks
    "loss": (3, ["loss", "epoch 3"]),
    "gradient": (3, ["gradient", "epoch 3", "spoiled:loss"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SPOILED)
def test_nan_in_the_middle_of_a_run_is_named_and_the_last_good_epoch_kept(
    what: str, server: CommandServer, argv: list[str], whole: Path, tmp_path: Path
) -> None:
    """Environment, teacher or loss: the line says which, no checkpoint is spoiled, and the run can be resumed."""
    call, says = SPOILED[what]
    command = server.run(argv, tmp_path, setup={"spoiled:spoil": {"what": what, "call": call}})
    assert check_failure(command, tmp_path, *says) >= 1
    check_same_end(server, tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "after"),
    [("checkpoint_latest", 3), ("best_student", 0), ("checkpoint_epoch_2", 0), ("epoch_00000", 2), ("summary", 0)],
)
def test_a_full_disk_in_the_middle_of_a_run_keeps_what_was_saved(
    name: str, after: int, server: CommandServer, argv: list[str], whole: Path, tmp_path: Path
) -> None:
    """Whichever file the disk has no room for: the line names it, the old files are whole, the run can be resumed."""
    command = server.run(argv, tmp_path, setup={"crash_points:fail_writes": {"name": name, "after": after}})
    check_failure(command, tmp_path, name, "No space left on device")
    check_same_end(server, tmp_path, whole)


def test_event_files_that_cannot_grow_stop_the_run_with_one_line(
    server: CommandServer, argv: list[str], tmp_path: Path
) -> None:
    """TensorBoard writes from a thread of its own: its error reaches the user all the same."""
    command = server.run(argv, tmp_path, setup={"crash_points:fail_events": {}})
    check_failure(command, tmp_path, "cannot write logs", "No space left on device")


def test_a_log_folder_that_may_not_be_written_is_one_line(
    server: CommandServer, argv: list[str], tmp_path: Path
) -> None:
    """Without the right to make the run's folder nothing is left behind."""
    command = server.run(argv, tmp_path, setup={"crash_points:forbid_folders": {}})
    assert command.code == 2 and "Traceback" not in command.text, command.text
    assert "logs/distillation" in command.error and "Permission denied" in command.error
    assert [path.name for path in tmp_path.iterdir()] == ["output.txt"]
