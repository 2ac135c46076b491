"""Measure this project: distillation against RSL-RL's ``DistillationRunner``, where the time goes, the simulator.

    python scripts/benchmark.py                       # everything; the sweep is most of the half hour
    python scripts/benchmark.py --parts distill memory --seeds 5 --resume    # the race; goes on where it stopped
    python scripts/benchmark.py --quick               # tiny sizes, to see that it runs

Writes ``<out>.json`` (after each setting of a sweep, each run of a race and each part) and the races' learning curves,
``<out>.png``, ``<out>_memory.png`` and ``<out>_last_percent.png``, and prints tables. The rivals' settings in a race
are those that were best in a sweep of the same size as ours: this call's, or that of ``--swept``.
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
    from benchmarks import race

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

PARTS = (
    *("sweep", "refine", "distill", "sweep_memory", "memory", "last_percent"),
    *("kinds", "breakdown", "simulator", "dataset", "raptor"),
)
RACES = {"distill": "", "memory": "_memory", "last_percent": "_last_percent"}
"""Parts that draw, and what their pictures' names end with."""
SWEEPS = {"distill": "sweep", "memory": "sweep_memory"}
"""Races, and the sweep that chooses their rivals' settings."""
BUDGETS = {"ours": 8.0, "isaaclab_like": 10.0, "best": 6.0, "best_memory": 12.0}
"""Training time of a run [s]."""
SWEEP_BUDGETS = {"ours": 4.0, "rsl_rl": 8.0}
"""The same in the sweeps."""
SWEPT = Path("docs/results/benchmark_sweep.json")


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
    parser.add_argument("--swept", type=Path, default=SWEPT, help="JSON with earlier sweeps (default: %(default)s)")
    parser.add_argument(
        "--l2f_python", type=Path, help="interpreter with the package l2f, to measure it too (scripts/test_l2f.sh)"
    )
    parser.add_argument("--resume", action="store_true", help="go on from --out's JSON: measure what it does not have")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    args = parser.read(argv)
    if args.raptor:
        args.parts = ["raptor"]
    if args.seeds < 1 or args.sweep_seeds < 1 or args.episodes < 1:
        parser.error("--seeds, --sweep_seeds and --episodes must be at least 1")
    args.out = args.out or Path("logs/quick/benchmark" if args.quick else "docs/results/benchmark")
    return args


class Benchmark:
    """The parts of one call, and what they have measured.

    Args:
        args: The command line.
        report: Takes a line of progress.
    """

    def __init__(self, args: argparse.Namespace, report: Callable[[str], None]):
        from benchmarks import common

        self.args = args
        self.report = report
        self.path = args.out.with_suffix(".json")
        self.result: dict[str, Any] = {"machine": common.machine(args.device), "quick": args.quick}
        self.earlier = self._earlier() if args.resume else {}
        self.result |= self.earlier
        self._bench: race.Bench | None = None

    def _earlier(self) -> dict[str, Any]:
        """Read what an earlier call has measured, if it was this machine's and of these sizes."""
        from foundation.core.files import load_json

        if not self.path.is_file():
            self.report(f"--resume: there is no {self.path} yet, all is measured")
            return {}
        earlier = load_json(self.path)
        about = json.loads(json.dumps(self.result))
        if not isinstance(earlier, dict) or {name: earlier.get(name) for name in about} != about:
            self.report(f"--resume: {self.path} is of another machine or of other sizes, all is measured")
            return {}
        return {name: value for name, value in earlier.items() if name not in about}

    def keep(self, name: str, value: object) -> None:
        """Put what a part has measured so far into the JSON."""
        self.result[name] = value
        write(self.result, self.path)

    @property
    def teacher(self) -> Path:
        """The teacher's checkpoint."""
        from benchmarks import common

        return self.args.teacher or common.shipped_teacher()

    @property
    def bench(self) -> race.Bench:
        """Where races and sweeps run; made when it is first needed."""
        from benchmarks import race

        if self._bench is None:
            self._bench = race.Bench(self.teacher, self.args.device, self.args.episodes, self.report)
        return self._bench

    def sweep(self, name: str) -> None:
        """Sweep both sides: ``sweep`` without memory, ``sweep_memory`` with."""
        from benchmarks import sweep

        sides = sweep.sides_with_memory() if name == "sweep_memory" else None
        if self.args.quick:
            sides = sides or {"ours": ({}, {}), "rsl_rl": (sweep.stock.TUNED, {})}
            axes = {"ours": {"batch_size": [16]}, "rsl_rl": {"learning_rate": [2e-3]}}
            sides = {side: (base, axes[side]) for side, (base, _) in sides.items()}
        budgets = dict.fromkeys(SWEEP_BUDGETS, 0.3) if self.args.quick else SWEEP_BUDGETS
        seeds = range(100, 100 + self.args.sweep_seeds)
        known = self.earlier.get(name)
        done = {side: len((known or {}).get(side, {}).get("rows", [])) for side in SWEEP_BUDGETS}
        if any(done.values()):
            self.report(f"--resume: {done['ours']} settings of ours and {done['rsl_rl']} of RSL-RL's are there")
        self.bench.warm_up(*(() if sides is None else (base for base, _ in sides.values())))
        self.keep(name, sweep.sweep_both(self.bench, seeds, budgets, known, lambda rows: self.keep(name, rows), sides))

    def refine(self) -> None:
        """Sweep RSL-RL's settings once more, around the one that was first at the first level."""
        from benchmarks import race, stock, sweep

        swept = self.result.get("sweep") or swept_earlier(self.args.swept, "sweep")
        best = {} if swept is None else sweep.best_found((stock.TUNED, swept["rsl_rl"]["rows"]))
        centre = next(iter(best.values()), stock.TUNED)
        axes = {"learning_rate": [3e-3]} if self.args.quick else sweep.REFINED_AXES
        budget = 0.3 if self.args.quick else SWEEP_BUDGETS["rsl_rl"]
        seeds = range(200, 200 + self.args.sweep_seeds)
        known = self.earlier.get("refine", {})
        about = {"base": json.loads(json.dumps(race.describe(centre))), "budget": budget, "seeds": len(seeds)}
        rows = known.get("rows", []) if {key: known.get(key) for key in about} == about else []
        self.bench.warm_up(centre)
        keep = lambda done: self.keep("refine", {**about, "rows": done})  # noqa: E731
        sweep.sweep(self.bench, "rsl_rl", centre, axes, seeds, budget, rows, keep)

    def rivals(self, name: str) -> dict[str, race.Rival]:
        """Return who takes part in a race; the first is ours."""
        from benchmarks import last_percent, recurrent, stock, sweep
        from benchmarks.race import Rival

        budgets = dict.fromkeys(BUDGETS, 0.3) if self.args.quick else BUDGETS
        if name == "last_percent":
            candidates = last_percent.rivals(budgets["ours"] if self.args.quick else last_percent.BUDGET)
            return dict(list(candidates.items())[:2]) if self.args.quick else candidates
        swept = self.result.get(SWEEPS[name]) or swept_earlier(self.args.swept, SWEEPS[name])
        memory = name == "memory"
        preset, centre = (recurrent.PRESET, stock.TUNED_GRU) if memory else ({}, stock.TUNED)
        budget = budgets["best_memory" if memory else "best"]
        out = {"ours": Rival(preset, budgets["ours"], f"foundation, experiment={preset.get('experiment', 'fast')}")}
        if not memory:
            like = stock.ISAACLAB_LIKE
            out["isaaclab_like"] = Rival(like, budgets["isaaclab_like"], f"RSL-RL, as in Isaac Lab: {like.label}")
        sweeps = [] if swept is None else [(centre, swept["rsl_rl"]["rows"])]
        refined = None if memory else self.result.get("refine") or swept_earlier(self.args.swept, "refine")
        if refined is not None:
            sweeps.append((stock.StockSettings.of(refined["base"]), refined["rows"]))
        best = sweep.best_found(*sweeps)
        if not best:
            self.report(f"No setting of RSL-RL's in a {SWEEPS[name]} has reached a level: it runs with {centre.label}")
            return out | {"centre": Rival(centre, budget, f"RSL-RL: {centre.label}")}
        for level, setting in best.items():
            assert isinstance(setting, stock.StockSettings)
            label = f"RSL-RL, best found to {100 * float(level):g} %: {setting.label}"
            out[f"best_{level}"] = Rival(setting, budget, label)
        return out

    def race(self, name: str) -> None:
        """Race, and draw the learning curves."""
        from benchmarks import figure, race

        bench, rivals = self.bench, self.rivals(name)
        bench.warm_up(*(rival.setting for rival in rivals.values()))
        traces = race.race(
            bench,
            rivals,
            range(self.args.seeds),
            self.earlier.get(name),
            lambda done: self.keep(name, race.summarise(bench, rivals, done)),
        )
        self.keep(name, race.summarise(bench, rivals, traces))
        labels = {key: rival.label for key, rival in rivals.items()}
        figure.draw(traces, labels, picture(self.args.out, name), wall=self.args.device.startswith("cuda"))

    def kinds(self) -> None:
        """Train every kind of student."""
        from benchmarks import recurrent

        quick = self.args.quick
        self.keep("kinds", recurrent.kinds(self.bench, range(1 if quick else 2), 2 if quick else 150))

    def raptor(self) -> None:
        """Measure many teachers."""
        from benchmarks import raptor

        self.keep("raptor", raptor.raptor(self.args.device, quick=self.args.quick, report=self.report))

    def breakdown(self) -> None:
        """Measure where an epoch's time goes."""
        from benchmarks import breakdown

        quick = self.args.quick
        small = {"num_envs": 32, "num_episodes": 2} if quick else {}
        shares = breakdown.shares(self.teacher, self.args.device, small, 2 if quick else 20)
        sizes = (32, 20, 1) if quick else (512, 250, 7)
        overhead = breakdown.overhead(self.teacher, self.args.device, *sizes)
        counted = breakdown.operations(self.teacher, self.args.device, *sizes[:2])
        parts = {"shares": shares, "overhead": overhead, "operations": counted}
        learning = breakdown.learning(self.teacher, self.args.device, small, 2 if quick else 40)
        self.keep("breakdown", {**parts, "learning": learning})

    def simulator(self) -> None:
        """Measure the simulator."""
        from benchmarks import simulator

        sizes = [64] if self.args.quick else [512, 4096, 16384]
        if self.args.device.startswith("cuda") and not self.args.quick:
            sizes.append(65536)
        self.keep(
            "simulator",
            simulator.simulator(
                self.args.device,
                sizes,
                0.05 if self.args.quick else 3.0,
                compiled=not self.args.quick,
                original=self.args.l2f_python,
                report=self.report,
            ),
        )

    def dataset(self) -> None:
        """Measure a large dataset."""
        from benchmarks import dataset

        size = (40_000, 64, 0.05) if self.args.quick else (20_000_000, 4096, 5.0)
        self.keep("dataset", dataset.dataset(*size))

    def measure(self) -> None:
        """Measure the parts asked for, in their order."""
        from benchmarks import common

        if not self.args.quick and "import_cpu_seconds" not in self.result:
            self.result["import_cpu_seconds"] = common.import_seconds()
        for name in PARTS:
            if name not in self.args.parts:
                continue
            if name in SWEEPS.values():
                self.sweep(name)
            elif name in RACES:
                self.race(name)
            elif name == "refine" or name not in self.earlier:
                getattr(self, name)()


def swept_earlier(path: Path, name: str) -> dict[str, Any] | None:
    """Return a sweep of an earlier call; None where the file has none."""
    from foundation.core.files import load_json

    values = load_json(path) if path.is_file() else None
    return values.get(name) if isinstance(values, dict) else None


def picture(out: Path, name: str) -> Path:
    """Return where a race's learning curves go."""
    return out.with_name(f"{out.name}{RACES[name]}.png")


def check(args: argparse.Namespace) -> None:
    """Refuse before the first measurement what would fail after the last: a missing package, a place to write.

    Raises:
        UserError: In one line.
    """
    from foundation.core.errors import UserError

    races = [part for part in args.parts if part in RACES]
    if races and importlib.util.find_spec("matplotlib") is None:
        raise UserError(
            f"--parts {races[0]} draws with the package matplotlib: pip install -e '.[bench]' in the clone's folder"
        )
    for path in (args.out.with_suffix(".json"), *(picture(args.out, name) for name in races)):
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
    import torch

    torch.set_num_threads(1)
    from benchmarks import tables
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    benchmark = Benchmark(args, lambda line: console.print(line, markup=False))
    benchmark.measure()
    tables.show(console, benchmark.result)
    console.print(f"Written: {benchmark.path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return its exit code."""
    from foundation.cli.command import run_command

    return run_command(lambda arguments: run(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
