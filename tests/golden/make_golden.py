"""Record the golden runs: run once, at the commit that they are of, ``python tests/golden/make_golden.py``."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from golden_runs import (
    COMMANDS,
    FIXTURES,
    HALF_WAY,
    HERE,
    ROOT,
    RUNS,
    SHORTEST,
    STUDENTS,
    actions_of,
    command,
    config_of,
    flags_of,
    machine,
    outcome,
    platform_line,
    played,
    run_in,
    start,
    write_teachers,
)


def working_folder(stack: Path, name: str) -> Path:
    """Make a working folder with the teachers in it."""
    folder = stack / name
    folder.mkdir()
    write_teachers(folder)
    return folder


def record_runs(stack: Path) -> dict[str, Any]:
    """Run every run to its end, and keep the students and the dataset that are fixtures."""
    outcomes = {}
    for name in ("save_dataset", *(run for run in RUNS if run != "save_dataset")):
        folder = working_folder(stack, name)
        if name == "offline":
            shutil.copytree(FIXTURES / "dataset", folder / "dataset")
        outcomes[name] = outcome_of(name, folder)
        if name in ("mlp", "gru"):
            shutil.copy(run_in(folder) / "best_student.pt", FIXTURES / f"student_{name}.pt")
        if name == "save_dataset":
            shutil.copytree(folder / "dataset", FIXTURES / "dataset")
    return outcomes


def outcome_of(name: str, folder: Path) -> dict[str, Any]:
    """Run one to its end."""
    printed = command("distillation", *RUNS[name], folder=folder)
    return outcome(run_in(folder), printed)


def record_half_way(stack: Path) -> None:
    """Kill a run while it saves its third epoch, before the checkpoint to resume from is replaced; keep its folder."""
    folder = working_folder(stack, "killed")
    process = start("distillation", *RUNS["half_way"], folder=folder, stdout=subprocess.DEVNULL)
    while not list(folder.glob("logs/*/*/*/checkpoint_epoch_3.pt")):
        if process.poll() is not None:
            sys.exit("the run ended before it could be killed")
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if torch.load(run_in(folder) / "checkpoint_latest.pt", weights_only=True)["epoch"] != 2:
        sys.exit("the run went on before it was killed: try again")
    kept = FIXTURES / HALF_WAY.name
    shutil.copytree(run_in(folder), kept, ignore=shutil.ignore_patterns("*.tmp"))
    (events,) = kept.glob("events.out.tfevents.*")
    events.rename(kept / "events.out.tfevents.1.golden.1.0")  # its name holds that of the computer


def record_flags(stack: Path) -> dict[str, Any]:
    """Return the flags of every command, the keys of the config, and the keys of every student."""
    argv = [sys.executable, str(HERE / "show_parser.py"), str(ROOT / "foundation" / "rsl_rl" / "distillation.py")]
    keys = json.loads(subprocess.run(argv, capture_output=True, text=True, check=True).stdout)["keys"]
    students = {}
    for name in STUDENTS:
        folder = working_folder(stack, f"student_{name}")
        command("distillation", *SHORTEST, f"student={name}", folder=folder)
        students[name] = config_of(run_in(folder))["student"]
    return {"flags": {name: flags_of(name, stack) for name in COMMANDS}, "keys": keys, "students": students}


def main() -> None:
    """Write ``golden.json``, ``flags.json`` and ``fixtures/``."""
    torch.set_num_threads(1)
    shutil.rmtree(FIXTURES, ignore_errors=True)
    FIXTURES.mkdir()
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as text:
        stack = Path(text)
        golden = {"commit": commit.strip(), "platform": platform_line(), "machine": machine()}
        golden["runs"] = record_runs(stack)
        record_half_way(stack)
        golden["played"] = {name: played(name, FIXTURES) for name in ("mlp", "gru")}
        golden["actions"] = {name: actions_of(FIXTURES / f"student_{name}.pt") for name in ("mlp", "gru")}
        flags = record_flags(stack)
    shutil.rmtree(FIXTURES / "logs", ignore_errors=True)
    (FIXTURES / "played.json").unlink()
    (HERE / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
    (HERE / "flags.json").write_text(json.dumps(flags, indent=1) + "\n")


if __name__ == "__main__":
    main()
