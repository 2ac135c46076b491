"""``kill -9`` at random moments, then ``--resume``: nothing is half-written, and the result is the same, bit for bit.

``FOUNDATION_KILLS=30`` asks for that many kills of every run, which is then longer.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_server import Command, CommandServer, shared
from tiny_runs import arguments, differing, run_folder, write_teacher

KILLS = int(os.environ.get("FOUNDATION_KILLS", "0"))

VARIANTS = {
    "mlp": [],
    "gru": ["student=gru", "student.hidden_size=12"],
    "evicted": ["dataset.size=1024"],
    "reservoir": ["dataset.size=1024", "dataset.eviction=reservoir", "collection.beta.kind=linear"],
    "on_policy": ["--on_policy"],
    "episodes": ["collection.mode=episodes"],
    "newest": ["dataset.newest_epochs=2", "optimizer.name=soap", "optimizer.ema_decay=0.9"],
    "compiled": ["env.compile=true"],
    "averaged": ["optimizer.ema_decay=0.9", "collection.epsilon=0.1", "--no-teacher_deterministic"],
}


@pytest.fixture(scope="module")
def server() -> CommandServer:
    return shared()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher") / "model_1.pt")


def check_files(run: Path) -> None:
    """Every file that is there can be read; what could not be finished is hidden."""
    for path in run.rglob("*"):
        if path.is_dir() or path.name.startswith("."):
            assert path.is_dir() or path.suffix == ".tmp", f"unexpected hidden file {path}"
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".yaml":
            assert isinstance(yaml.safe_load(path.read_text()), dict)
        elif path.suffix == ".json":
            assert isinstance(json.loads(path.read_text()), dict)
        else:
            assert path.suffix == ".pkl" or ".tfevents." in path.name, f"unexpected file {path}"


def curves(run: Path) -> dict[str, dict[int, float]]:
    """Read the run as TensorBoard does; every tag has one value per step, in order."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    found = {}
    for tag in events.Tags()["scalars"]:
        steps = [event.step for event in events.Scalars(tag)]
        assert steps == sorted(set(steps)), f"{tag} has steps {steps}"
        if not tag.startswith("performance/"):  # wall-clock times
            found[tag] = {event.step: event.value for event in events.Scalars(tag)}
    return found


def killed(server: CommandServer, argv: list[str], folder: Path, dice: random.Random) -> Command:
    """Run a command and kill it at a random moment: of its time, of its renames, or half way through a write."""
    kind = dice.choice(["time", "operation", "write"])
    setup: dict[str, Any] = {}
    if kind == "operation":
        setup = {"crash_points:die_at": {"operation": dice.randint(1, 40)}}
    elif kind == "write":
        setup = {"crash_points:die_at": {"operation": dice.randint(1, 1500), "writes": True}}
    command = server.start(argv, folder, setup=setup)
    if kind == "time":
        time.sleep(dice.uniform(0.02, 1.5))
        command.kill()
    command.wait()
    return command


def interrupted(server: CommandServer, argv: list[str], folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """Start a run, kill and resume it, and let the last attempt end. Return kills and attempts that began to train."""
    dice, done, begun, started = random.Random(seed), 0, 0, 0
    while done < kills or not begun:
        while int(time.time()) == started:  # event files are named by the second, and read in that order
            time.sleep(0.02)
        started = int(time.time())
        command = killed(server, next_attempt(argv, folder), folder, dice)
        assert command.code in (-9, 0), command.text
        assert "Traceback" not in command.text and "error:" not in command.text, command.text
        assert "not exact" not in command.text
        done += command.code == -9
        begun += "Student:" in command.text
        assert command.code != 0 or list((folder / "logs").rglob("summary.json")), command.text
        for run in (folder / "logs" / "distillation").glob("*/*"):
            check_files(run)
    command = server.run(next_attempt(argv, folder), folder)
    assert command.code == 0, command.text
    return done, begun


def next_attempt(argv: list[str], folder: Path) -> list[str]:
    """Resume, or start anew if the run was killed before it had written what it was started with."""
    for run in (folder / "logs" / "distillation").glob("*/*"):
        if (run / "params" / "distillation.yaml").exists():
            return ["--resume"]
        run.rename(folder / f"stillborn_{time.time_ns()}")
    return argv


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_and_resumed_equals_uninterrupted(
    variant: str, server: CommandServer, teacher: Path, tmp_path: Path
) -> None:
    """Every file is loadable after each kill, and the students at the end are those of the uninterrupted run."""
    epochs = 8 + KILLS // 3
    argv = arguments(teacher, *VARIANTS[variant], n_epochs=epochs)
    whole = server.run(argv, tmp_path / "whole")
    assert whole.code == 0, whole.text
    wanted = KILLS or (6 if variant == "mlp" else 2)
    kills, begun = interrupted(server, argv, tmp_path / "killed", wanted, seed=len(variant))
    print(f"{variant}: {kills} kills; {begun} attempts reached the epochs")
    one, other = run_folder(tmp_path / "whole"), run_folder(tmp_path / "killed")
    names = sorted(path.name for path in one.glob("*.pt"))
    assert names == sorted(path.name for path in other.glob("*.pt"))
    assert {"final_student.pt", "best_student.pt", "checkpoint_epoch_6.pt"} <= set(names)
    assert {name: differing(one / name, other / name) for name in names} == {name: [] for name in names}
    assert not list(other.rglob(".*")) and not (other / "dataset").exists()
    a, b = curves(one), curves(other)
    assert sorted(a["training/loss"]) == list(range(1, epochs + 1))
    assert a.keys() == b.keys()
    for tag in a:
        assert a[tag] == pytest.approx(b[tag]), tag
