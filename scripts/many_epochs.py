"""Run thousands of tiny epochs of the whole runner, and show that memory, file handles and time per epoch stay flat.

    python scripts/many_epochs.py                 # 3,000 epochs with evaluations, logs, checkpoints and shards
    python scripts/many_epochs.py --epochs 100    # fewer

Ends with code 1 where something grew: the resident memory by more than --most_mb, the file handles at all, or the CPU
time of an epoch by more than --most_slower. The first tenth of the epochs warms up and counts for nothing. Writes
``<out>.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from benchmarks.common import LABEL_BOUND, STUDENT_GROUP, TASK, TEACHER_GROUP, make_env, shipped_teacher
from benchmarks.dataset import resident_bytes

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.overrides import Overrides
from foundation.config.resolve import resolve_distillation_cfg
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes
from foundation.runs.metrics_writer import make_writer
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.students import student_cfg_class
from foundation.teachers import TeacherPolicyWrapper

POINTS = 10
"""Parts of the run whose figures are compared, the first of which warms up."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--epochs", type=int, default=3000, help="tiny epochs (default: %(default)s)")
    parser.add_argument("--most_mb", type=float, default=20.0, help="growth that is let pass [MB] (%(default)s)")
    parser.add_argument("--most_slower", type=float, default=0.25, help="share that is let pass (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="with distill.optimizer.compile=true")
    parser.add_argument("--folder", type=Path, default=Path("logs/many_epochs"), help="of the run (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/many_epochs"), help="file, without suffix")
    args = parser.read(argv)
    if args.epochs < 2 * POINTS:
        parser.error(f"--epochs must be at least {2 * POINTS}")
    return args


def config(args: argparse.Namespace) -> DistillationCfg:
    """Return a tiny run: 8 environments with episodes of 20 steps, and a ring that is full after few epochs."""
    values: dict[str, Any] = {
        "task": TASK,
        "device": "cpu",
        "seed": 0,
        "num_envs": 8,
        "num_episodes": 1,
        "n_epochs": args.epochs,
        "epoch_teacher_forcing": max(1, args.epochs // 4),
        "batch_size": 16,
        "eval_interval": 50,
        "save_interval": 50,
        "num_eval_episodes": 4,
        "final_eval_episodes": 4,
        "teacher.obs_groups": [TEACHER_GROUP],
        "teacher.check": False,
        "student.obs_groups": [STUDENT_GROUP],
        "student.hidden_dims": [8],
        "dataset.size": 640,
        "dataset.chunk_steps": 8,
        "optimizer.ema_decay": 0.9,
        "optimizer.compile": args.compile,
    }
    return resolve_distillation_cfg(Overrides(), values, student_cfg_class=student_cfg_class)


def handles() -> int:
    """Return the open file handles of this process."""
    return len(os.listdir("/proc/self/fd"))


def measure(args: argparse.Namespace) -> list[dict[str, float]]:
    """Run, and return memory [MB], file handles and median CPU time of an epoch [ms] at the end of each part."""
    cfg = config(args)
    run_dir = RunDir.create(str(args.folder), "run")
    steps = 20
    teacher = TeacherPolicyWrapper(str(shipped_teacher()), device="cpu")
    runner = DistillationRunner(
        make_env(8, "cpu", 0, steps=steps),
        teacher,
        cfg,
        run_dir,
        make_eval_env=lambda number: make_env(number, "cpu", 1, steps=steps),
        label_bound=LABEL_BOUND,
        writer=make_writer("tensorboard", run_dir.path),
    )
    runner.begin()
    rows: list[dict[str, float]] = []
    seconds: list[float] = []
    for epoch in range(args.epochs):
        start = time.process_time()
        runner.run_epoch(epoch)
        seconds.append(time.process_time() - start)
        if (epoch + 1) % (args.epochs // POINTS) == 0:
            gc.collect()
            rows.append(
                {
                    "epoch": epoch + 1,
                    "memory_mb": resident_bytes() / 1e6,
                    "handles": handles(),
                    "epoch_ms": 1e3 * statistics.median(seconds),
                    "slowest_ms": 1e3 * max(seconds),
                }
            )
            shown = "epoch {epoch}: {memory_mb:.1f} MB, {handles} handles, {epoch_ms:.2f} ms".format(**rows[-1])
            print(shown, flush=True)
            seconds.clear()
    return rows


def grown(rows: Sequence[dict[str, float]], most_mb: float, most_slower: float) -> list[str]:
    """Return what has grown from the end of the first part to the last one; empty where all is flat."""
    first, last = rows[0], rows[-1]
    found = []
    if last["memory_mb"] > first["memory_mb"] + most_mb:
        found.append(f"memory from {first['memory_mb']:.1f} to {last['memory_mb']:.1f} MB")
    if last["handles"] > first["handles"]:
        found.append(f"file handles from {first['handles']} to {last['handles']}")
    # Of the two halves behind the warm-up: a part of a second is noise on a shared machine.
    times = [row["epoch_ms"] for row in rows[1:]]
    early, late = statistics.median(times[: len(times) // 2]), statistics.median(times[len(times) // 2 :])
    if late > early * (1.0 + most_slower):
        found.append(f"an epoch from {early:.2f} to {late:.2f} ms")
    return found


def run(args: argparse.Namespace) -> None:
    """Measure, write and judge."""
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = measure(args)
    path = args.out.with_suffix(".json")
    atomic_write_bytes(path, (json.dumps({"epochs": args.epochs, "rows": rows}, indent=1) + "\n").encode())
    found = grown(rows, args.most_mb, args.most_slower)
    if found:
        raise UserError(f"after {args.epochs} epochs there grew: {'; '.join(found)}")
    print(f"Flat over {args.epochs} epochs. Written: {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check and return its exit code."""
    return run_command(lambda arguments: run(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
