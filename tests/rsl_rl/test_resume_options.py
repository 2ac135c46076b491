"""``--resume`` with other settings, of a finished run, from a periodic checkpoint, without the data, twice at once."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from command_server import CommandServer, shared
from tiny_runs import arguments, differing, run_folder, write_teacher

from foundation.core.files import lock_folder

SMALL = {"n_epochs": 4, "epoch_teacher_forcing": 2, "save_interval": 2}


@pytest.fixture(scope="module")
def server() -> CommandServer:
    return shared()


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return arguments(write_teacher(tmp_path_factory.mktemp("teacher") / "model_1.pt"), **SMALL)


def stop_after(server: CommandServer, argv: list[str], folder: Path, text: str, *more: str) -> Path:
    """Start a run, kill it once it has said something, and return its folder."""
    command = server.start([*argv, *more], folder)
    command.wait_for(text)
    command.kill()
    assert command.wait() == -9
    return run_folder(folder)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (["--num_envs", "8"], "--num_envs 16, now 8"),
        (["student=gru"], "architecture differs"),
        (["distill.student.hidden_dims=[32]"], "architecture differs"),
        (["distill.student.obs_groups=[deployable]"], "architecture differs"),
        (["distill.dataset.chunk_steps=16"], "dataset"),
        (["distill.dataset.dtype=float16"], "resume with the same dataset.dtype"),
        (["--run_name", "x"], "--run_name is 'x', which names the folder of a new run"),
        (["experiment_name=x"], "leave --experiment_name out"),
        (["--teacher_min_return", "-1e9"], "--teacher_min_return is -1000000000.0, and the run began with null"),
        (["--position_offset_correction"], "--position_offset_correction is true, and the run began with false"),
        (["--checkpoint", "best_student.pt"], "no state to resume from"),
        (["--checkpoint", "checkpoint_epoch_9.pt"], "checkpoint_epoch_2.pt"),
    ],
)
def test_settings_that_cannot_change_are_refused_and_nothing_is_spoiled(
    changed: list[str], says: str, stopped: Path, server: CommandServer
) -> None:
    """One line that names the setting; the run's files stay as they were, so that a plain ``--resume`` still works."""
    run = run_folder(stopped)
    before = contents(run)
    command = server.run(["--resume", *changed], stopped)
    assert command.code == 2 and "Traceback" not in command.text, command.text
    assert says in command.error
    assert contents(run) == before


def contents(run: Path) -> dict[Path, bytes]:
    """Read a run's files, but for the event file and what a kill in the middle of a write left, which is swept up."""
    files = (path for path in run.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if ".tfevents." not in path.name and path.suffix != ".tmp"}


@pytest.fixture(scope="module")
def stopped(server: CommandServer, argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working directory of a run that was killed in its third epoch or later."""
    folder = tmp_path_factory.mktemp("stopped")
    stop_after(server, argv, folder, "Epoch 3/4")
    return folder


@pytest.mark.slow
def test_a_finished_run_goes_on_with_more_epochs(server: CommandServer, argv: list[str], tmp_path: Path) -> None:
    """It says that its data is gone; from there on it is exact again: killed or not, it ends in the same bits."""
    for folder in ("straight", "killed"):
        assert server.run(argv, tmp_path / folder).code == 0
    straight = server.run(["--resume", "--n_epochs", "7"], tmp_path / "straight")
    assert straight.code == 0
    assert "after epoch 4 (not exact: its dataset is not on disk" in straight.text
    run = stop_after(server, ["--resume", "--n_epochs", "7"], tmp_path / "killed", "Epoch 6/7")
    resumed = server.run(["--resume"], tmp_path / "killed")
    assert resumed.code == 0 and "(exact)" in resumed.text, resumed.text
    checkpoint = torch.load(run / "final_student.pt", weights_only=True)
    assert checkpoint["epoch"] == 7
    for name in ("final_student.pt", "best_student.pt", "checkpoint_epoch_6.pt"):
        assert differing(run / name, run_folder(tmp_path / "straight") / name) == []


@pytest.mark.slow
def test_a_finished_run_resumed_as_it_is_measures_its_best_student_again(
    server: CommandServer, argv: list[str], tmp_path: Path
) -> None:
    """Nothing is trained, nothing changes."""
    assert server.run(argv, tmp_path).code == 0
    run = run_folder(tmp_path)
    before = shutil.copytree(run, tmp_path / "before")
    command = server.run(["--resume"], tmp_path)
    assert command.code == 0 and "Epoch" not in command.text
    for name in ("final_student.pt", "best_student.pt"):
        assert differing(run / name, before / name) == []
    rows = [json.loads((folder / "summary.json").read_text())["dataset_rows"] for folder in (before, run)]
    assert rows[0] == rows[1] > 0, "the data has gone, but not how much it was"


def test_a_changed_setting_is_named(server: CommandServer, argv: list[str], tmp_path: Path) -> None:
    """``--resume --learning_rate`` goes on from the same bits and with another step size: both are said."""
    stop_after(server, argv, tmp_path, "Epoch 2/4")
    command = server.run(["--resume", "--learning_rate", "3e-4", "env.episode_length_s=0.5"], tmp_path)
    assert command.code == 0, command.text
    changed = "exact, but learning_rate is 3e-4, was 1e-3; env.episode_length_s is 0.5, was 0.4)"
    assert changed in command.text


def test_a_folder_renamed_while_its_run_goes_on_ends_it_in_one_line(
    server: CommandServer, argv: list[str], tmp_path: Path
) -> None:
    """No traceback, and no half run under the old name; the renamed one can be resumed."""
    command = server.start([*argv, "--n_epochs", "40"], tmp_path)
    command.wait_for("Epoch 2/40")
    run = run_folder(tmp_path)
    moved = run.rename(run.parent / f"{run.name}_moved")
    assert command.wait() == 2 and "Traceback" not in command.text, command.text
    assert "was removed or renamed while the run was going on" in command.error
    assert [path.name for path in run.parent.iterdir()] == [moved.name]
    resumed = server.run(["--resume", "--load_run", str(moved), "--n_epochs", "4"], tmp_path)
    assert resumed.code == 0, resumed.text


def test_a_run_whose_dataset_is_in_use_leaves_no_folder(server: CommandServer, argv: list[str], tmp_path: Path) -> None:
    """Another process saves to the same ``--save_dataset``: one line, and the newest run is still the one before."""
    (tmp_path / "data").mkdir()
    held = lock_folder(tmp_path / "data", "free here")
    command = server.run([*argv, "--save_dataset", str(tmp_path / "data")], tmp_path)
    assert held is not None
    os.close(held)
    assert command.code == 2 and "another process is saving to the dataset" in command.error
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_a_run_goes_back_to_a_periodic_checkpoint(server: CommandServer, argv: list[str], tmp_path: Path) -> None:
    """``--resume --checkpoint checkpoint_epoch_2.pt`` of a longer run trains epochs 3 and 4 again, exactly."""
    assert server.run(argv, tmp_path / "whole").code == 0
    run = stop_after(server, argv, tmp_path / "cut", "Epoch 4/4")
    command = server.run(["--resume", "--checkpoint", "checkpoint_epoch_2.pt"], tmp_path / "cut")
    assert command.code == 0, command.text
    assert "after epoch 2 (exact)" in command.text and "Epoch 3/4" in command.text
    assert differing(run / "final_student.pt", run_folder(tmp_path / "whole") / "final_student.pt") == []


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["0", "0.00005"])
def test_without_the_data_on_disk_a_resumed_run_says_so(
    budget: str, server: CommandServer, argv: list[str], tmp_path: Path
) -> None:
    """A disk budget of nothing, or of less than the data takes: "not exact", the reason, and the run goes on."""
    run = stop_after(server, argv, tmp_path, "Epoch 4/4", f"dataset.disk_gb={budget}")
    used = sum(path.stat().st_size for path in run.glob("dataset/*.pt"))
    assert used <= float(budget) * 1e9
    if float(budget):
        assert "--resume is not exact" in (tmp_path / "output.txt").read_text()
    command = server.run(["--resume"], tmp_path)
    assert command.code == 0
    assert "(not exact: its dataset is not on disk" in command.text


@pytest.mark.slow
def test_turning_on_policy_off_starts_with_an_empty_dataset(
    server: CommandServer, argv: list[str], tmp_path: Path
) -> None:
    """An on-policy run keeps no data: memory that was never written must not be learned from."""
    stop_after(server, argv, tmp_path, "Epoch 3/4", "--on_policy")
    command = server.run(["--resume", "--no-on_policy"], tmp_path)
    assert command.code == 0
    assert "(not exact: its dataset is not on disk" in command.text


@pytest.mark.slow
def test_two_processes_cannot_resume_the_same_run(server: CommandServer, argv: list[str], tmp_path: Path) -> None:
    """The second is refused in one line, and the first does not notice."""
    run = stop_after(server, argv, tmp_path, "Epoch 2/4")
    first = server.start(["--resume", "--n_epochs", "40"], tmp_path)
    first.wait_for("Epoch ")
    other = tmp_path / "other"
    second = server.run(["--resume", "--load_run", str(run)], other)
    assert second.code == 2, second.text
    assert "another process is writing to" in second.error
    assert first.poll() is None
    first.kill()
    first.wait()
    third = server.run(["--resume", "--n_epochs", "4"], tmp_path)
    assert third.code == 0, third.text


def test_a_run_killed_before_it_began_is_named(server: CommandServer, argv: list[str], tmp_path: Path) -> None:
    """A folder without parameters has nothing to go on with; the line says which folder and what to do."""
    folder = tmp_path / "logs" / "distillation" / "quad" / "2026-01-01_00-00-00"
    folder.mkdir(parents=True)
    command = server.run(["--resume"], tmp_path)
    assert command.code == 2
    assert "2026-01-01_00-00-00" in command.error and "start it anew" in command.error


@pytest.mark.slow
def test_a_resumed_run_keeps_the_clips_of_before(server: CommandServer, argv: list[str], tmp_path: Path) -> None:
    """Clips are named by the steps of the whole run, so that going on does not begin again with step 0."""
    video = ["--video", "--video_length", "10", "--video_interval", "20"]
    run = stop_after(server, [*argv, *video], tmp_path, "Epoch 2/4")
    first = run / "videos" / "distillation" / "rl-video-step-0.mp4"
    before = first.read_bytes()
    command = server.run(["--resume", *video], tmp_path)
    assert command.code == 0, command.text
    steps = sorted(int(path.stem.rpartition("-")[2]) for path in first.parent.glob("*.mp4"))
    assert first.read_bytes() == before and len(steps) > 3
    assert all(step % 20 == 0 for step in steps)
    assert not list(first.parent.glob(".*"))


def test_a_teacher_that_was_written_anew_is_not_exact(server: CommandServer, tmp_path: Path) -> None:
    """Training that went on writes ``best_model.pt`` again: the path is the same, the labels are not."""
    teacher = write_teacher(tmp_path / "teacher" / "best_model.pt")
    stop_after(server, arguments(teacher, **SMALL), tmp_path / "run", "Epoch 2/4")
    shutil.copytree(tmp_path / "run", tmp_path / "again")
    moved = shutil.copytree(tmp_path / "teacher", tmp_path / "moved") / teacher.name
    write_teacher(teacher, bias=0.5)
    command = server.run(["--resume"], tmp_path / "run")
    assert command.code == 0 and "(not exact: the teacher is not the one" in command.text, command.text
    command = server.run(["--resume", "--teacher_checkpoint", str(moved)], tmp_path / "again")
    assert command.code == 0 and "(exact, but teacher.checkpoint is " in command.text, command.text


@pytest.mark.parametrize(
    ("first", "then", "says"),
    [
        ([], ["optimizer.name=sgd"], "leave distill.optimizer.name=sgd out"),
        ([], ["distill.loss.auxiliary={feature: 0.1}"], "the same losses"),
        ([], ["--save_dataset", "rows"], "instead of 34 columns: observation groups, losses, --save_dataset"),
        ([], ["dataset.size=512"], "8 instead of 1 chunks: dataset.size"),
    ],
)
def test_what_the_saved_state_means_nothing_to_is_named(
    first: list[str], then: list[str], says: str, stopped: Path, server: CommandServer, tmp_path: Path
) -> None:
    """Another optimiser, a loss with weights of its own, a dataset of other sizes: one line, and no traceback."""
    shutil.copytree(stopped, tmp_path / "run")
    command = server.run(["--resume", *first, *then], tmp_path / "run")
    assert command.code == 2 and "Traceback" not in command.text, command.text
    assert says in command.error


def test_an_average_may_begin_and_end_at_a_resume(
    server: CommandServer, argv: list[str], stopped: Path, tmp_path: Path
) -> None:
    """``ema_decay`` switched on starts at the student; switched off, the student's own weights learn on."""
    shutil.copytree(stopped, tmp_path / "on")
    command = server.run(["--resume", "optimizer.ema_decay=0.5"], tmp_path / "on")
    assert command.code == 0 and "optimizer.ema_decay is 0.5, was null" in command.text, command.text
    run = stop_after(server, argv, tmp_path / "off", "Epoch 2/4", "optimizer.ema_decay=0.5")
    saved = torch.load(run / "checkpoint_latest.pt", weights_only=True)
    epochs = saved["epoch"]
    command = server.run(["--resume", "optimizer.ema_decay=null", "--learning_rate", "1e-30"], tmp_path / "off")
    assert command.code == 0 and epochs < 4, command.text
    final = torch.load(run / "final_student.pt", weights_only=True)["model_state_dict"]
    for name, weight in saved["training_state_dict"].items():
        if not name.startswith("normalizer"):
            assert torch.equal(final[name], weight), f"{name} is not the student's own"
