"""Measure how cost grows: with environments, stored transitions, teachers, the student's size and processes.

    python scripts/growth.py                  # goes on where an earlier call stopped
    python scripts/growth.py --only 'envs/*'  # some of it

Every size is a piece, kept in ``<folder>/<part>/<size>.json`` and measured once. Writes ``<out>.json``, ``<out>.png``
and the page ``<out>.md`` from all pieces that are there: tables, slopes, what memory was computed and found, and, from
these, what larger runs than this machine's would need.
"""

from __future__ import annotations

import argparse
import fnmatch
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from benchmarks import common, ours, raptor, simulator
from benchmarks.dataset import resident_bytes

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes, load_json
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.learning.learner import Learner
from foundation.students import make_student

ROOT = Path(__file__).resolve().parents[1]
NUM_OBS, NUM_ACTIONS, BATCH_SIZE, UPDATES = 22, 4, 256, 200
NUM_ENVS = 1024
"""Environments of a chunk of the made-up datasets."""
RANK_EPOCHS = (2, 302)
"""Epochs of two runs with as many processes: what the start costs is in both, and cancels in their difference."""


@dataclass(frozen=True)
class Part:
    """One quantity that grows."""

    title: str
    quantity: str
    """What is varied."""
    sizes: Sequence[int]
    cost: str
    """What is measured, with its unit: the figure's axis."""
    figure: str
    """Name of the figure among a piece's."""
    memory: str
    """What ``computed`` and ``found`` are bytes of."""
    why: str
    """Why it grows as it does."""


PARTS = {
    "envs": Part(
        *("Environments of the built-in simulator", "environments", (16, 64, 256, 1024, 4096, 16384, 65536)),
        *("CPU time of a batched step [s]", "seconds", "environment"),
        "A step is a fixed number of kernels: with few environments it costs their launches and hardly grows, with "
        "many "
        "the arithmetic, in proportion.",
    ),
    "transitions": Part(
        *("Stored transitions", "transitions", (10_000, 100_000, 1_000_000, 10_000_000)),
        *(f"CPU time of an epoch of {UPDATES} updates [s]", "seconds", "transition"),
        "An epoch costs what its new transitions cost, however many are stored. What grows is the time of a gather "
        "from "
        "memory that no cache holds.",
    ),
    "teachers": Part(
        *("Teachers", "teachers", (1, 10, 100, 1000)),
        *("CPU time of an epoch, ten episodes of 100 steps of each [s]", "seconds", "teacher"),
        "Transitions, labels and minibatches are in proportion to the teachers; with few of them the launches of the "
        "kernels cost more than the arithmetic.",
    ),
    "students": Part(
        *("Parameters of the student", "parameters", (1_000, 10_000, 100_000, 1_000_000, 10_000_000)),
        *(f"CPU time of an update of {BATCH_SIZE} transitions [s]", "seconds", "parameter"),
        "Small students cost the launches of an update's kernels; large ones the matrix products, in proportion.",
    ),
    "ranks": Part(
        *("Processes", "processes", (1, 2, 3, 4)),
        *("wall time of an epoch, 128 environments in each [s]", "seconds", "process"),
        "An epoch of K processes has K times the transitions. Each update waits for an exchange of gradients, and that "
        "for the slowest process. For a small student on a CPU the exchange takes longer than the update (1.4 ms for "
        "24 kB by gloo between two processes of this machine, 0.6 ms for an update of [64, 64]): two processes on two "
        "free cores take more than twice the time of one. Processes beyond the cores wait for those that do not run. "
        "It pays where an update takes longer than an exchange, with larger students and batches.",
    ),
}


# -- pieces ----------------------------------------------------------------------------------------------------------


def held_by(tensors: Iterator[torch.Tensor]) -> int:
    """Return the bytes of tensors, memory that several of them share once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def measure_envs(size: int) -> dict[str, float]:
    """Measure a batched step of so many environments."""
    before = resident_bytes()
    env = common.make_env(size, "cpu", seed=0)
    advance, _ = simulator.eager(env)
    rate = simulator.steps_per_second(env, advance, 1, 3.0)
    held = held_by(value for value in vars(env).values() if isinstance(value, torch.Tensor))
    return {
        "seconds": size / rate["per_cpu_second"],
        "env_steps_per_cpu_second": rate["per_cpu_second"],
        "computed": held / size,
        "found": max(0, resident_bytes() - before) / size,
    }


def measure_transitions(size: int) -> dict[str, float]:
    """Measure an epoch with so many stored transitions."""
    chunk = 32 * min(NUM_ENVS, size // 32)
    spec = BufferSpec(NUM_OBS, chunk // 32, -(-size // chunk) * chunk, {"mean": NUM_ACTIONS}, chunk_steps=32)
    before = resident_bytes()
    dataset = DistillationDataset(spec)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(32, spec.num_envs, spec.row_size, generator=generator)
    for number in range(dataset.max_chunks):
        dataset.begin_chunk()
        dataset.rows[number].copy_(rows)
        dataset.resets[number] = False
        dataset.commit_chunk()
    found = resident_bytes() - before
    return {
        "seconds": learning_seconds([64, 64], dataset),
        "computed": spec.transition_bytes,
        "found": max(0, found) / len(dataset),
        "transitions": len(dataset),
    }


def learning_seconds(hidden_dims: list[int], dataset: DistillationDataset, updates: int = UPDATES) -> float:
    """Return the CPU time of an epoch of so many updates, after one that does not count [s]."""
    cfg = ours.settings({"student.hidden_dims": hidden_dims, "optimizer.updates_per_epoch": updates})
    torch.manual_seed(0)
    learner = Learner(make_student(cfg.student, NUM_OBS, NUM_ACTIONS), cfg)
    learner.fit_normalizer(dataset.chunk_obs(0))
    learner.learn(dataset, BATCH_SIZE, 0)
    start = time.process_time()
    learner.learn(dataset, BATCH_SIZE, 1)
    return time.process_time() - start


def measure_teachers(size: int) -> dict[str, float]:
    """Measure an epoch of so many teachers."""
    row = raptor.epoch_rate(size, "cpu", None, 3 if size < 1000 else 1, compiled=False, steps=100)
    ensemble = raptor.teachers(min(size, 8), 26, raptor.TEACHER_DIMS, "cpu")
    layers = [26, *raptor.TEACHER_DIMS, NUM_ACTIONS]
    weights = sum(4 * (inputs + 1) * outputs for inputs, outputs in itertools.pairwise(layers))
    found = held_by(iter(ensemble.state_dict().values())) / min(size, 8)
    rate = row["transitions_per_second"]
    return {"seconds": row["epoch_seconds"], "transitions_per_cpu_second": rate, "computed": weights, "found": found}


def hidden_of(parameters: int) -> list[int]:
    """Return two equal hidden layers that make about so many parameters."""
    linear = NUM_OBS + NUM_ACTIONS + 2
    width = round((math.sqrt(linear**2 + 4 * parameters) - linear) / 2)
    return [width, width]


def measure_students(size: int) -> dict[str, float]:
    """Measure an update of a student of about so many parameters."""
    spec = BufferSpec(NUM_OBS, NUM_ENVS, 32 * NUM_ENVS, {"mean": NUM_ACTIONS}, chunk_steps=32)
    dataset = DistillationDataset(spec)
    dataset.begin_chunk()
    dataset.rows[0].normal_(generator=torch.Generator().manual_seed(0))
    dataset.resets[0] = False
    dataset.commit_chunk()
    hidden_dims = hidden_of(size)
    updates = 200 if size <= 100_000 else 20 if size <= 1_000_000 else 4
    student = make_student(ours.settings({"student.hidden_dims": hidden_dims}).student, NUM_OBS, NUM_ACTIONS)
    number = sum(parameter.numel() for parameter in student.parameters())
    before = resident_bytes()
    seconds = learning_seconds(hidden_dims, dataset, updates) / updates
    # Weights, their average, gradients and Adam's two moments, four bytes each.
    found = max(0, resident_bytes() - before) / number
    return {"seconds": seconds, "parameters": number, "computed": 20.0, "found": found}


def measure_ranks(size: int, folder: Path) -> dict[str, float]:
    """Measure an epoch of so many processes, by the wall clock."""
    seconds = []
    for epochs in RANK_EPOCHS:
        work = folder / f"ranks_{size}_{epochs}"
        work.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={size}"]
        command += [str(ROOT / "foundation" / "rsl_rl" / "distillation.py"), "--task", common.TASK, "--device", "cpu"]
        command += ["--teacher_checkpoint", str(common.shipped_teacher()), "--distributed", "--num_envs", "128"]
        command += ["experiment=fast_adam", "--n_epochs", str(epochs), "--eval_interval", "1000"]
        command += ["--save_interval", "1000", "--num_eval_episodes", "16", "--final_eval_episodes", "16"]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        seconds.append(time.perf_counter() - start)
        if done.returncode:
            lines = f"{done.stdout}\n{done.stderr}".splitlines()
            why = [line for line in lines if line.startswith("error:")] or lines[-1:]
            raise UserError(f"{size} processes: {why[0]}")
    few, many = RANK_EPOCHS
    return {"seconds": (seconds[1] - seconds[0]) / (many - few), "start_seconds": seconds[0]}


def measure(part: str, size: int, folder: Path) -> dict[str, float]:
    """Measure one piece."""
    if part == "ranks":
        return measure_ranks(size, folder)
    measures: dict[str, Callable[[int], dict[str, float]]] = {
        "envs": measure_envs,
        "transitions": measure_transitions,
        "teachers": measure_teachers,
        "students": measure_students,
    }
    return measures[part](size)


def measure_alone(part: str, size: int, folder: Path) -> dict[str, float]:
    """Measure a piece in a process of its own, whose memory no other has touched."""
    command = [sys.executable, str(Path(__file__).resolve()), "--piece", part, str(size), "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path.cwd())
    if done.returncode:
        raise UserError(f"{part}/{size} failed: {(done.stderr or done.stdout).strip()[-400:]}")
    return json.loads(done.stdout.splitlines()[-1])


# -- the page --------------------------------------------------------------------------------------------------------


def slopes(sizes: Sequence[float], costs: Sequence[float]) -> list[float | None]:
    """Return the exponent from each size to the next: 0 is flat, 1 in proportion. None for the first."""
    out: list[float | None] = [None]
    for (small, few), (large, many) in itertools.pairwise(zip(sizes, costs, strict=True)):
        out.append(math.log(many / few) / math.log(large / small))
    return out


def table(part: Part, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of a part."""
    has_memory = any("computed" in row for row in rows)
    memory = f" | bytes of a {part.memory}, computed | found" if has_memory else ""
    lines = [f"| {part.quantity} | {part.cost} | slope{memory} |", "|---:|---:|---:|" + ("---:|---:|" * has_memory)]
    exponents = slopes([row["size"] for row in rows], [row[part.figure] for row in rows])
    for row, exponent in zip(rows, exponents, strict=True):
        shown = "" if exponent is None else f"{exponent:.2f}"
        cells = f" | {row['computed']:,.0f} | {row['found']:,.0f}" if has_memory else ""
        lines.append(f"| {row['size']:,} | {row[part.figure]:.4g} | {shown}{cells} |")
    return lines


def on_paper() -> list[str]:
    """Return what larger runs need, as computed from sizes alone."""
    layers = [26, *raptor.TEACHER_DIMS, NUM_ACTIONS]
    teacher = sum((inputs + 1) * outputs for inputs, outputs in itertools.pairwise(layers))
    spec = BufferSpec(NUM_OBS, NUM_ENVS, 32 * NUM_ENVS, {"mean": NUM_ACTIONS}, chunk_steps=32)
    many = BufferSpec(
        NUM_OBS, NUM_ENVS, 32 * NUM_ENVS, {"mean": NUM_ACTIONS}, chunk_steps=32, num_teachers=2, track_episodes=True
    )
    student = 22 * 64 + 64 + 64 * 64 + 64 + 64 * 4 + 4
    ranks, envs, stored = 64, 4096, 100_000_000
    each = -(-1_000_000 // ranks)
    half_second = 50 * 10 * each * many.transition_bytes
    return [
        "## On paper",
        "",
        "Computed from sizes, not measured.",
        "",
        f"**{ranks} GPUs, {envs:,} environments on each**: {ranks * envs:,} environments, seeds `seed + rank`. A "
        f"message "
        f"of gradients is {4 * student / 1e3:.0f} kB for an MLP [64, 64] and 40 MB for a student of 10 million "
        "parameters, once an update; a ring sends about twice that through every link, so that at 25 GB/s the large "
        "one "
        f"takes {2 * 40e6 / 25e9 * 1e3:.1f} ms, and the small one is all latency: raise `--batch_size` with the number "
        f"of processes. {stored:,} transitions are {stored * spec.transition_bytes / 1e9:.1f} GB over all, "
        f"{stored * spec.transition_bytes / ranks / 1e6:.0f} MB on each, and never leave it. Rank 0 writes the "
        "checkpoints; transitions for an exact resume are written by each rank, "
        "within `distill.dataset.disk_gb` each.",
        "",
        f"**A million teachers** of [64, 64] on 26 inputs have {teacher:,} parameters each, "
        f"{4e6 * teacher / 1e9:.1f} GB in all: no one device should hold them, nor label with all of them at once. "
        f"Over "
        f"{ranks} processes it is {each:,} teachers and {4 * each * teacher / 1e6:.0f} MB each, stacked as 1,000 are "
        f"today. With ten environments to a teacher a batched step is {10 * each:,} environments per process; a "
        f"transition has {many.transition_bytes:.0f} bytes with its teacher's index (int32, enough) and its episode's "
        f"number (int32: 2.1 billion episodes). Half a second of each is {half_second / 1e9:.1f} "
        "GB per process. What is missing: `teachers.yaml` and the checkpoints are read by every process, where each "
        "needs "
        "only its own; one archive per process would do. The table of teachers' returns is a line each: only the worst "
        "should be printed.",
        "",
    ]


def page(found: dict[str, list[dict[str, Any]]], machine: dict[str, Any], picture: str) -> str:
    """Return the page of the pieces that are there."""
    lines = [
        "# Growth",
        "",
        f"`python scripts/growth.py`, {machine['cpu']}, {machine['cpu_cores']} cores, one thread; it goes on where it",
        "stopped. A slope is the exponent from the size before: 0 is flat, 1 in proportion. Memory that was *computed*",
        "is what tensors of these sizes take; *found* is what the process grew by, per piece, allocator and all: small",
        "sizes show the process and not the piece.",
        "",
        f"![Cost over size]({picture})",
        "",
    ]
    for name, part in PARTS.items():
        if found.get(name):
            lines += [f"## {part.title}", "", *table(part, found[name]), "", part.why, ""]
    return "\n".join([*lines, *on_paper()])


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw every part's cost over its size, with a line of slope 1 for the eye."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [name for name in PARTS if found.get(name)]
    figure, panels = plt.subplots(1, len(shown), figsize=(3.1 * len(shown), 3.2), dpi=140, squeeze=False)
    for axes, name in zip(panels[0], shown, strict=True):
        part, rows = PARTS[name], found[name]
        sizes = [row["size"] for row in rows]
        costs = [row[part.figure] for row in rows]
        axes.plot(sizes, [costs[-1] * size / sizes[-1] for size in sizes], color="#bbbbbb", linestyle=(0, (4, 3)))
        axes.plot(sizes, costs, marker="o", markersize=4, color="#0b6e4f")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(part.title, fontsize=9)
        axes.set_xlabel(part.quantity, fontsize=8)
        axes.set_ylabel("\n[".join(part.cost.rsplit(" [", 1)), fontsize=7)
        axes.tick_params(labelsize=7, which="both")
        if sizes[-1] < 10 * sizes[0]:  # powers of ten would name one size alone
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.set_xticks([], minor=True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def collected(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the figures of all pieces that are there, by part and in order of size."""
    out: dict[str, list[dict[str, Any]]] = {}
    for name, part in PARTS.items():
        files = [(size, folder / name / f"{size}.json") for size in part.sizes]
        out[name] = [{"size": size, **load_json(file)} for size, file in files if file.is_file()]
    return out


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--only", default="*", metavar="PATTERN", help="pieces to measure, such as 'envs/*' (all)")
    parser.add_argument("--folder", type=Path, default=Path("logs/growth"), help="of the pieces (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/growth"), help="files, without suffix")
    parser.add_argument("--piece", nargs=2, metavar=("PART", "SIZE"), help="measure this one, here, and print it")
    return parser.read(argv)


def run(args: argparse.Namespace) -> None:
    """Measure what is missing, and write the page."""
    torch.set_num_threads(1)
    if args.piece is not None:
        print(json.dumps(measure(args.piece[0], int(args.piece[1]), args.folder)))
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "the page has a picture, drawn with matplotlib: pip install -e '.[bench]' in the clone's folder"
        )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name, part in PARTS.items():
        for size in part.sizes:
            file = args.folder / name / f"{size}.json"
            if file.is_file() or not fnmatch.fnmatch(f"{name}/{size}", args.only):
                continue
            start = time.monotonic()
            figures = measure_alone(name, size, args.folder)
            file.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(file, (json.dumps(figures) + "\n").encode())
            print(f"{name}/{size}: {figures['seconds']:.4g} s ({time.monotonic() - start:.0f} s)", flush=True)
    found = collected(args.folder)
    if not any(found.values()):
        raise UserError(f"--only {args.only}: no piece has such a name, and none has been measured yet")
    machine = common.machine("cpu")
    atomic_write_bytes(
        args.out.with_suffix(".json"), (json.dumps({"machine": machine, **found}, indent=1) + "\n").encode()
    )
    draw(found, args.out.with_suffix(".png"))
    args.out.with_suffix(".md").write_text(page(found, machine, args.out.with_suffix(".png").name), encoding="utf-8")
    print(f"Written: {args.out}.json, .png and .md")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the measurement and return its exit code."""
    return run_command(lambda arguments: run(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
