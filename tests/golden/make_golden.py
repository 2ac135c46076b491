"""Record the golden runs: run once, on the commit that they are of, ``python tests/golden/make_golden.py``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from golden_runs import (
    COMMANDS,
    FIXTURES,
    HERE,
    OFFLINE,
    ROOT,
    RUNS,
    arguments,
    command,
    flags_of,
    machine,
    only_run,
    result_of,
)


def write_teacher(path: Path, seed: int) -> None:
    """Write an RSL-RL checkpoint that hovers badly: a [24, 24] network around a constant thrust."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [26, 24, 24, 4]
    state: dict[str, torch.Tensor] = {"std": torch.full((4,), 0.2)}
    for who, last in (("actor", 4), ("critic", 1)):
        for layer, (rows, columns) in enumerate(zip([*sizes[1:-1], last], sizes[:-1], strict=True)):
            state[f"{who}.{2 * layer}.weight"] = torch.randn(rows, columns, generator=generator) * 0.3 / columns**0.5
            state[f"{who}.{2 * layer}.bias"] = torch.full((rows,), 0.6 if layer == 2 else 0.0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model_state_dict": state, "iter": 1, "infos": None}, path)
    (path.parent / "params").mkdir(exist_ok=True)
    (path.parent / "params" / "agent.yaml").write_text("policy:\n  activation: elu\n")


def run_and_record(name: str, folder: Path) -> dict:
    """Run one and return its result."""
    done = command("distillation", *arguments(name), folder=folder)
    if done.returncode:
        sys.exit(f"{name}: {done.stdout}{done.stderr}")
    return result_of(only_run(folder))


def kill_half_way(folder: Path) -> None:
    """Start a run and kill it once its fourth epoch is saved."""
    script = ROOT / "foundation" / "rsl_rl" / "distillation.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "FOUNDATION_NATIVE": "0"}
    process = subprocess.Popen(
        [sys.executable, str(script), *arguments("half_way"), "--n_epochs", "6"], cwd=folder, env=env
    )
    while not list((folder / "logs").glob("*/*/*/checkpoint_epoch_4.pt")):
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()


def main() -> None:
    """Write ``golden.json`` and ``fixtures/``."""
    shutil.rmtree(FIXTURES, ignore_errors=True)
    write_teacher(FIXTURES / "teacher" / "model.pt", 1)
    for seed in (1, 2):
        write_teacher(FIXTURES / "teachers" / f"quad_{seed}.pt", seed)
    results = {}
    for name in RUNS:
        with tempfile.TemporaryDirectory() as text:
            folder = Path(text)
            shutil.copytree(FIXTURES, folder, dirs_exist_ok=True)
            results[name] = run_and_record(name, folder)
            if name in ("mlp", "gru"):
                shutil.copy(only_run(folder) / "best_student.pt", FIXTURES / f"student_{name}.pt")
            if name == "save_dataset":
                shutil.copytree(folder / "dataset", FIXTURES / "dataset")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        shutil.copytree(FIXTURES, folder, dirs_exist_ok=True)
        done = command("distillation", *OFFLINE, folder=folder)
        if done.returncode:
            sys.exit(f"offline: {done.stdout}{done.stderr}")
        results["offline"] = result_of(only_run(folder))
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        shutil.copytree(FIXTURES / "teacher", folder / "teacher")
        kill_half_way(folder)
        run = only_run(folder)
        for file in run.glob("events*"):
            file.unlink()
        shutil.copytree(run, FIXTURES / "half_way")
    flags = {name: flags_of(name, HERE) for name in COMMANDS}
    text = json.dumps({"machine": machine(), "runs": results, "flags": flags}, indent=1)
    (HERE / "golden.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
