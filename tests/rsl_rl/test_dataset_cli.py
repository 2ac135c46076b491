"""``--save_dataset``, ``--dataset`` and ``--offline`` at the command line: bad input, kills, a student that flies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_server import CommandServer, shared
from made_datasets import layout, save
from tiny_runs import arguments, differing, run_folder, write_teacher

from foundation.cli.command import run_command
from foundation.dataset.disk.reader import SavedDataset
from foundation.rsl_rl.distillation import main

OFFLINE = ["--offline", "--dataset", "dataset", "--device", "cpu", "--n_epochs", "2"]


@pytest.fixture(scope="module")
def server() -> CommandServer:
    return shared()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model_1.pt")


def flip(folder: Path) -> None:
    path = folder / "chunk_000001.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def newer(folder: Path) -> None:
    index = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(index | {"version": 9}))


def without_files(folder: Path) -> None:
    index = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(index | {"files": []}))


BAD = {
    "missing folder": (["--offline", "--dataset", "nowhere"], None, "no dataset at 'nowhere'"),
    "flipped byte": (OFFLINE, flip, "chunk_000001.safetensors' is corrupt"),
    "other version": (OFFLINE, newer, "version 9"),
    "empty dataset": (OFFLINE, without_files, "is empty"),
    "no dataset": (["--offline"], None, "give --dataset PATH"),
    "other task": ([*OFFLINE, "--task", "Other-v0"], None, "task Toy, not Other-v0"),
    "other groups": ([*OFFLINE, "student.obs_groups=[other]"], None, "obs_groups ['policy'], not ['other']"),
    "nothing passes": ([*OFFLINE, "dataset.filter.min_length=99"], None, "no episode passes distill.dataset.filter"),
    "quantile": ([*OFFLINE, "dataset.filter.return_quantile=2"], None, "return_quantile is 2"),
    "held out": ([*OFFLINE, "dataset.held_out=1"], None, "held_out is 1"),
    "nothing to save": ([*OFFLINE, "--save_dataset", "more"], None, "--save_dataset"),
    "an environment's key": ([*OFFLINE, "env.sim.dt=1"], None, "'env.sim.dt=1'"),
    "unknown key": ([*OFFLINE, "distill.dataset.lod=x"], None, "'load'"),
    "unknown flag": ([*OFFLINE, "--datset", "x"], None, "'--dataset'"),
    "video": ([*OFFLINE, "--video"], None, "--video"),
    "a loss that wants more": ([*OFFLINE, "loss=kl", "student.stochastic=true"], None, "the teacher's std"),
    "too large": ([*OFFLINE, "dataset.memory_gb=1e-7"], None, "dataset.memory_gb"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_one_line(name, tmp_path, monkeypatch, capsys):
    """Exit code 2, one ``error:`` line that says what is wrong, no traceback, no folder left behind."""
    argv, spoil, says = BAD[name]
    save(tmp_path / "dataset", layout(), 6).close()
    if spoil is not None:
        spoil(tmp_path / "dataset")
    monkeypatch.chdir(tmp_path)
    assert run_command(main, argv) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and says in errors[0], printed.err
    assert "Traceback" not in printed.out + printed.err
    assert not (tmp_path / "logs").exists()


@pytest.mark.slow
def test_saving_stops_in_one_line_where_the_disk_is_full(server, teacher, tmp_path):
    """The files that are listed stay whole."""
    argv = arguments(teacher, "--save_dataset", "saved", "distill.teacher.check=false")
    setup = {"crash_points:fail_writes": {"name": "chunk_", "after": 2}}
    command = server.run(argv, tmp_path, setup=setup)
    assert command.code == 2, command.text
    assert "No space left" in command.error and "chunk_000002" in command.error
    saved = SavedDataset(tmp_path / "saved")
    assert [saved.read(entry)["rows"].shape[0] for entry in saved.files] == [entry.chunks for entry in saved.files]
    assert len(saved.files) == 2


@pytest.mark.slow
def test_killed_while_saving_and_resumed_the_dataset_is_the_same(server, teacher, tmp_path):
    """Killed (SIGKILL) at a few of its writes and resumed, a run leaves the files of one that was not, bit for bit."""
    argv = arguments(teacher, "--save_dataset", "saved", "distill.teacher.check=false", n_epochs=4)
    whole = server.run(argv, tmp_path / "whole")
    assert whole.code == 0, whole.text
    kills = 0
    killed = tmp_path / "killed"
    for operation in (28, 24, 21):
        started = (killed / "logs").exists()
        setup = {"crash_points:die_at": {"operation": operation}}
        command = server.run(["--resume"] if started else argv, killed, setup=setup)
        kills += command.code == -9
        assert "error:" not in command.text, command.text
    command = server.run(["--resume", "--n_epochs", "4"], killed)
    assert command.code == 0, command.text
    assert kills >= 2
    one, other = (SavedDataset(tmp_path / name / "saved") for name in ("whole", "killed"))
    assert [entry.crc32 for entry in one.files] == [entry.crc32 for entry in other.files]
    assert differing(run_folder(tmp_path / "whole") / "final_student.pt", run_folder(killed) / "final_student.pt") == []
    check_offline(server, other.path, tmp_path)


def check_offline(server: CommandServer, saved: Path, folder: Path) -> None:
    """The dataset trains a student offline, also one with memory, which ``play.py`` can fly."""
    from foundation.rsl_rl import play

    argv = ["--offline", "--dataset", str(saved), "--device", "cpu", "--n_epochs", "2", "--batch_size", "8"]
    command = server.run([*argv, "student=gru", "--sequence_length", "10"], folder / "offline")
    assert command.code == 0, command.text
    run = run_folder(folder / "offline")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["dataset"]["rows"] == SavedDataset(saved).num_rows
    assert torch.load(run / "best_student.pt", weights_only=True)["student"]["name"] == "gru"
    flown = ["--task", summary["task"], "--checkpoint", str(run / "best_student.pt"), "--device", "cpu"]
    assert run_command(play.main, [*flown, "--num_envs", "4", "--num_episodes", "4", "env.episode_length_s=0.2"]) == 0
