"""Ctrl-C, SIGTERM and SIGHUP: the run saves, leaves within seconds with the usual exit code, and resumes exactly."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
import torch
from command_server import CommandServer, shared
from tiny_runs import arguments, differing, run_folder, write_teacher

SIGNALS = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}
STAGES = [
    ("baselines", 1, 0),
    ("collection", 2, 1),
    ("learning", 2, 2),
    ("evaluation", 2, 3),
    ("final_evaluation", 1, 8),
]
"""Stage, which time it is entered after the last resume, epochs that are then finished."""
LIMIT = 5.0
"""From the signal to the end of the process [s]."""


@pytest.fixture(scope="module")
def server() -> CommandServer:
    return shared()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model_1.pt")


@pytest.fixture(scope="module")
def whole(server: CommandServer, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert server.run(arguments(teacher), folder).code == 0
    return run_folder(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_in_any_stage_saves_and_the_resumed_run_is_exact(
    name: str, server: CommandServer, teacher: Path, whole: Path, tmp_path: Path
) -> None:
    """One run, stopped in every stage in turn: exit code, time, what is saved, and the same bits at the end."""
    argv = arguments(teacher)
    for stage, nth, finished in STAGES:
        note = tmp_path / f"{stage}.txt"
        setup = {"stage": stage, "nth": nth, "number": int(signal.Signals[name]), "note": str(note)}
        command = server.run(argv, tmp_path, setup={"crash_points:signal_in": setup})
        assert time.time() - float(note.read_text()) < LIMIT
        assert command.code == SIGNALS[name], command.text
        run = run_folder(tmp_path)
        how_far = f"Stopped ({name}) after epoch {finished} of 8. "
        assert how_far + f"Go on with: --resume --load_run {run.name}\n" in command.text
        assert "Traceback" not in command.text
        assert torch.load(run / "checkpoint_latest.pt", weights_only=True)["resume"]["epoch"] == finished
        assert f"Epoch {finished + 1}/" not in command.text
        assert not (run / "summary.json").exists()
        argv = ["--resume"]
    last = server.run(argv, tmp_path)
    assert last.code == 0, last.text
    for checkpoint in ("final_student.pt", "best_student.pt", "checkpoint_epoch_6.pt"):
        assert differing(run_folder(tmp_path) / checkpoint, whole / checkpoint) == []


@pytest.mark.parametrize("name", SIGNALS)
@pytest.mark.parametrize(
    "where", ["foundation.cli.load_teachers:TeacherPolicyWrapper", "foundation.engines.torch:TorchEngine.make_env"]
)
def test_a_signal_before_the_run_begins_leaves_nothing_behind(
    where: str, name: str, server: CommandServer, teacher: Path, tmp_path: Path
) -> None:
    """While the teacher is read or the simulator starts there is nothing to save: no folder stays, no traceback."""
    setup = {"crash_points:signal_before": {"target": where, "number": int(signal.Signals[name])}}
    command = server.run(arguments(teacher), tmp_path, setup=setup)
    assert command.code == SIGNALS[name]
    assert "Traceback" not in command.text
    assert not list(tmp_path.glob("logs/distillation/*/*"))


def test_a_second_signal_leaves_at_once(server: CommandServer, teacher: Path, tmp_path: Path) -> None:
    """Whoever asks twice does not wait; what was saved before can be resumed."""
    setup = {"stage": "collection", "nth": 3, "number": int(signal.SIGINT), "times": 2}
    command = server.run(arguments(teacher), tmp_path, setup={"crash_points:signal_in": setup})
    assert command.code == 130
    assert "stopped without saving" in command.text
    resumed = server.run(["--resume"], tmp_path)
    assert resumed.code == 0 and "after epoch 2 (exact)" in resumed.text


def test_a_signal_while_saving_lets_the_epoch_be_saved(server: CommandServer, teacher: Path, tmp_path: Path) -> None:
    """The epoch that was finished when the signal came is kept."""
    setup = {"stage": "saving", "nth": 2, "number": int(signal.SIGTERM)}
    command = server.run(arguments(teacher), tmp_path, setup={"crash_points:signal_in": setup})
    assert command.code == 143
    assert torch.load(run_folder(tmp_path) / "checkpoint_latest.pt", weights_only=True)["epoch"] == 2
