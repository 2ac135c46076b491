"""Measure this project: distillation against RSL-RL's ``DistillationRunner``, where the time goes, the simulator.

    python scripts/benchmark.py                       # everything; the sweep is most of the half hour
    python scripts/benchmark.py --parts distill       # one part
    python scripts/benchmark.py --quick               # tiny sizes, to see that it runs

Writes ``<out>.json`` (after each setting of the sweep, each seed and each part) and ``<out>.png`` (the learning curves)
and prints tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.snapshots import Trace

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

PARTS = ("sweep", "distill", "recurrent", "breakdown", "simulator", "dataset", "raptor")
BUDGETS = {"ours": 8.0, "isaaclab_like": 45.0, "tuned": 15.0}
"""Training time of a run [s]."""
SWEEP_BUDGETS = {"ours": 4.0, "rsl_rl": 8.0}
"""The same in the sweep."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from foundation.cli.parser import ScriptParser

    parser = ScriptParser(__doc__)
    parser.add_argument("--device", default="cpu", help="torch device (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each setting (default: %(default)s)")
    parser.add_argument("--sweep_seeds", type=int, default=2, help="runs of each sweep setting (default: %(default)s)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    parser.add_argument("--raptor", action="store_true", help="many teachers alone: the same as --parts raptor")
    parser.add_argument("--episodes", type=int, default=512, help="episodes in a snapshot's evaluation")
    parser.add_argument("--teacher", type=Path, default=None, help="RSL-RL checkpoint (default: the shipped one)")
    parser.add_argument("--out", type=Path, help="files to write, without suffix (default: docs/results/benchmark)")
    parser.add_argument("--resume", action="store_true", help="go on with the sweep that --out's JSON has a part of")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    args = parser.read(argv)
    if args.raptor:
        args.parts = ["raptor"]
    if args.seeds < 1 or args.sweep_seeds < 1 or args.episodes < 1:
        parser.error("--seeds, --sweep_seeds and --episodes must be at least 1")
    args.out = args.out or Path("logs/quick/benchmark" if args.quick else "docs/results/benchmark")
    return args


def measure_distillation(
    args: argparse.Namespace, teacher: Path, result: dict[str, Any], report: Any, keep: Callable[[], None]
) -> None:
    """Run the sweep and the race; ``keep`` is called whenever there is more in ``result``."""
    from benchmarks import figure, race, stock, sweep

    budgets = dict.fromkeys(BUDGETS, 0.3) if args.quick else BUDGETS
    bench = race.Bench(teacher, args.device, args.episodes, report)
    bench.warm_up()
    tuned = stock.TUNED
    if "sweep" in args.parts:
        if args.quick:
            sweep.STOCK_AXES = {"learning_rate": [2e-3]}
            sweep.our_axes = lambda: {"batch_size": [256]}
        both = dict.fromkeys(SWEEP_BUDGETS, 0.3) if args.quick else SWEEP_BUDGETS
        known = earlier_sweep(args, result, report) if args.resume else None

        def keep_rows(rows: dict[str, Any]) -> None:
            result["sweep"] = rows
            keep()

        seeds = range(100, 100 + args.sweep_seeds)
        keep_rows(sweep.sweep_both(bench, seeds, both, known, keep_rows))
        tuned = stock.StockSettings(**result["sweep"]["rsl_rl"]["best"])
    if "distill" in args.parts:
        settings: dict[str, race.Setting] = {"ours": {}, "isaaclab_like": stock.ISAACLAB_LIKE, "tuned": tuned}

        def keep_seed(done: dict[str, list[Trace]]) -> None:
            result["distill"] = race.summarise(bench, settings, done)
            keep()

        traces = race.race(bench, settings, range(args.seeds), budgets, keep_seed)
        is_cuda = args.device.startswith("cuda")
        figure.draw(traces, LABELS, args.out.with_suffix(".png"), wall=is_cuda)


def earlier_sweep(args: argparse.Namespace, result: dict[str, Any], report: Any) -> dict[str, Any] | None:
    """Read the settings of a sweep that was cut off, if it was this machine's and of these sizes."""
    from foundation.core.files import load_json

    path = args.out.with_suffix(".json")
    if not path.is_file():
        report(f"--resume: there is no {path} yet, the sweep begins")
        return None
    earlier = load_json(path)
    about = json.loads(json.dumps({name: result[name] for name in ("machine", "quick")}))
    known = earlier.get("sweep") if isinstance(earlier, dict) else None
    if known is None or {name: earlier.get(name) for name in about} != about:
        report(f"--resume: {path} has no sweep of this machine, the sweep begins")
        return None
    done = {name: len(known.get(name, {}).get("rows", [])) for name in ("ours", "rsl_rl")}
    report(f"--resume: {path} has {done['ours']} settings of ours and {done['rsl_rl']} of RSL-RL's")
    return known


def measure_recurrent(
    args: argparse.Namespace, teacher: Path, result: dict[str, Any], report: Any, keep: Callable[[], None]
) -> None:
    """Race students with memory, then train every kind of student."""
    from benchmarks import race, recurrent

    bench = race.Bench(teacher, args.device, args.episodes, report)
    budgets = dict.fromkeys(recurrent.BUDGETS, 0.3) if args.quick else recurrent.BUDGETS
    own = result["recurrent"] = {}

    def keep_seed(done: dict[str, Any]) -> None:
        own["race"] = done
        keep()

    recurrent.recurrent(bench, range(args.seeds), budgets, keep_seed)
    own["kinds"] = recurrent.kinds(bench, range(1 if args.quick else 2), 2 if args.quick else 150)


LABELS = {
    "ours": "foundation, experiment=fast",
    "isaaclab_like": "RSL-RL, Isaac-Lab-like settings",
    "tuned": "RSL-RL, best found",
}
MEMORY_LABELS = {"ours": "foundation, experiment=fast_gru", "tuned": "RSL-RL, GRU of 16 units, best found"}


def measure(args: argparse.Namespace, result: dict[str, Any], report: Any, keep: Callable[[], None]) -> None:
    """Measure the parts asked for.

    Args:
        args: The command line.
        result: What goes into the JSON; filled part by part.
        report: Takes a line of progress.
        keep: Called after each seed and each part: writes what there is.
    """
    import torch

    torch.set_num_threads(1)
    from benchmarks import breakdown, common, simulator

    teacher = args.teacher or common.shipped_teacher()
    result |= {"machine": common.machine(args.device), "quick": args.quick}
    if not args.quick:
        result["import_cpu_seconds"] = common.import_seconds()
    if {"sweep", "distill"} & set(args.parts):
        measure_distillation(args, teacher, result, report, keep)
    if "recurrent" in args.parts:
        measure_recurrent(args, teacher, result, report, keep)
        keep()
    if "raptor" in args.parts:
        from benchmarks import raptor

        result["raptor"] = raptor.raptor(args.device, quick=args.quick, report=report)
        keep()
    if "breakdown" in args.parts:
        small = {"num_envs": 32, "num_episodes": 2} if args.quick else {}
        result["breakdown"] = {
            "shares": breakdown.shares(teacher, args.device, small, 2 if args.quick else 20),
            "overhead": breakdown.overhead(
                teacher, args.device, 32 if args.quick else 512, 20 if args.quick else 250, 1 if args.quick else 7
            ),
        }
        keep()
    if "simulator" in args.parts:
        sizes = [64] if args.quick else [1024, 4096, 16384]
        if args.device.startswith("cuda") and not args.quick:
            sizes.append(65536)
        result["simulator"] = simulator.simulator(args.device, sizes, 0.05 if args.quick else 3.0)
        keep()
    if "dataset" in args.parts:
        from benchmarks import dataset

        size = (40_000, 64, 0.05) if args.quick else (20_000_000, 4096, 5.0)
        result["dataset"] = dataset.dataset(*size)
        keep()


def check(args: argparse.Namespace) -> None:
    """Refuse before the first measurement what would fail after the last: a missing package, a place to write.

    Raises:
        UserError: In one line.
    """
    from foundation.core.errors import UserError

    if "distill" in args.parts and importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            "--parts distill draws with the package matplotlib: pip install -e '.[bench]' in the clone's folder"
        )
    for suffix in (".json", ".png") if "distill" in args.parts else (".json",):
        path = args.out.with_suffix(suffix)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh = not path.exists()
            path.open("a").close()  # what is there stays until there are figures to replace it
            if fresh:
                path.unlink()
        except OSError as error:
            raise UserError(f"--out {args.out}: cannot write {path} ({error.strerror}); choose another place") from None


def write(result: dict[str, Any], path: Path) -> None:
    """Write the JSON whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def run(args: argparse.Namespace) -> None:
    """Measure, show and write."""
    check(args)
    from benchmarks import tables
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    path = args.out.with_suffix(".json")
    result: dict[str, Any] = {}
    measure(args, result, lambda line: console.print(line, markup=False), lambda: write(result, path))
    tables.show(console, result, LABELS, MEMORY_LABELS)
    console.print(f"Written: {path}" + (f" and {args.out.with_suffix('.png')}" if "distill" in result else ""))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    from foundation.cli.command import run_command

    return run_command(lambda arguments: run(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
