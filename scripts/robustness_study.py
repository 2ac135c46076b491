"""Measure how robust and how similar students are that were distilled from one teacher, and write table and picture.

    python scripts/robustness_study.py                       # distil an MLP, a GRU and a history student, then measure
    python scripts/robustness_study.py --runs RUN RUN ...    # of runs that are there

What is distilled and measured already stays as it is: the same command goes on where it was stopped.

Writes docs/results/robustness.json and robustness.svg, and prints the table of docs/results/robustness.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from foundation.cli.cli_args import positive_int
from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.cli.studies import write_json
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes, load_json
from foundation.evaluation.robustness import mean_over_range
from foundation.report.charts import Line, grid, line_chart
from foundation.report.pictures import mapping, mappings, number, numbers
from foundation.rsl_rl import distillation, play

ROOT = Path(__file__).resolve().parents[1]
TASK = "Isaac-Quadcopter-Point-Ctrl-v0"
TEACHER = ROOT / "foundation" / "assets" / "teachers" / "point_ctrl" / "model.pt"
STUDIES = ("robustness", "similarity")
EXPERIMENT = "students"
RUNS = Path("logs/distillation")
STUDENTS = {
    "mlp": ["experiment=fast_adam"],
    "gru": ["experiment=fast_gru", "student=gru"],
    "history": ["experiment=fast_gru", "student=history", "--learning_rate", "3e-3"],  # at the preset's it diverges
}
"""Name of a run -> how its student is distilled."""
SAVE_INTERVAL = 60
"""Epochs from one checkpoint to the next: a fifth of the presets' 300."""


def build_parser() -> ScriptParser:
    """Return the command's parser."""
    parser = ScriptParser(prog="robustness_study.py", description=__doc__)
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="runs to measure (default: distil them)")
    parser.add_argument("--steps", type=positive_int, metavar="N", help="stop after N distillations and measurements")
    parser.add_argument(
        "--num_episodes", type=positive_int, default=48, metavar="N", help="episodes at each value (48)"
    )
    folder = ROOT / "docs" / "results"
    parser.add_argument("--output", default=str(folder), metavar="FOLDER", help="where to (docs/results)")
    return parser


def distil(name: str) -> None:
    """Distil a student, or go on where that was stopped."""
    flags = ["--task", TASK, "--teacher_checkpoint", str(TEACHER), "--device", "cpu"]
    flags += ["--experiment_name", EXPERIMENT, "--run_name", name, "--save_interval", str(SAVE_INTERVAL)]
    begun = newest_run(name)
    if begun is not None:
        flags += ["--resume", "--load_run", begun.name]
    if run_command(distillation.main, [*flags, *STUDENTS[name]]):
        raise UserError(f"the distillation of '{name}' did not end well: see above")


def newest_run(name: str) -> Path | None:
    """Return the newest run of a student from which something was saved; None where there is none."""
    found = sorted((RUNS / EXPERIMENT).glob(f"*_{name}"))
    return next((folder for folder in reversed(found) if any(folder.glob("*.pt"))), None)


def is_distilled(folder: Path | None) -> bool:
    """Whether a run has reached its end."""
    return folder is not None and (folder / "summary.json").exists()


def is_measured(folder: Path) -> bool:
    """Whether both studies of a run are there."""
    return all((folder / f"{name}.json").exists() for name in STUDIES)


def measure(folder: Path, num_episodes: int) -> None:
    """Measure a run's best student."""
    argv = ["--load_run", str(folder.absolute()), "--device", "cpu", "--num_episodes", str(num_episodes)]
    if run_command(play.main, [*argv, "--robustness", "--similarity", "--no-export"]):
        raise UserError(f"'{folder}' could not be measured: see above")


def steps_left(runs: Sequence[Path], num_episodes: int) -> list[Callable[[], None]]:
    """List what is still to be done: of the given runs, or of the students where none is given."""
    if runs:
        return [partial(measure, folder, num_episodes) for folder in runs if not is_measured(folder)]
    left: list[Callable[[], None]] = []
    for name in STUDENTS:
        folder = newest_run(name)
        if not is_distilled(folder):
            left += [partial(distil, name), lambda name=name: measure(found_run(name), num_episodes)]
        elif folder is not None and not is_measured(folder):
            left.append(partial(measure, folder, num_episodes))
    return left


def found_run(name: str) -> Path:
    """Return the run of a student."""
    folder = newest_run(name)
    if folder is None:
        raise UserError(f"there is no run of '{name}' in {RUNS / EXPERIMENT}")
    return folder


def read_studies(folder: Path) -> dict[str, Any]:
    """Return what the files of a run hold."""
    return {"summary": load_json(folder / "summary.json")} | {n: load_json(folder / f"{n}.json") for n in STUDIES}


def table(studies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table in Markdown: mean over each range, the teacher first; the best student of a row in bold.

    The mean is that over the values which all of the runs were measured at.
    """
    names = list(studies)
    lines = [f"| quantity | teacher | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for quantity, curves in curves_of(studies).items():
        values = sorted(set.intersection(*(set(numbers(curve["values"])) for curve in curves)))
        means = [_mean(curve, "student", values) for curve in curves]
        cells = [f"**{mean:.0f}**" if mean == max(means) else f"{mean:.0f}" for mean in means]
        label = f"{quantity.replace('_', ' ')}, {values[0]:g} to {values[-1]:g} {curves[0]['unit']}"
        lines.append(f"| {label} | {_mean(curves[0], 'teacher', values):.0f} | {' | '.join(cells)} |")
    return lines


def curves_of(studies: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Return the curves by quantity, one of each run; quantities that a run lacks are left out."""
    each = [{str(c["name"]): c for c in mappings(study["robustness"]["curves"])} for study in studies.values()]
    return {name: [curves[name] for curves in each] for name in each[0] if all(name in curves for curves in each)}


def _mean(curve: Mapping[str, Any], policy: str, values: Sequence[float]) -> float:
    """Return the mean return over a range, from the points at some of a curve's values."""
    points = dict(zip(numbers(curve["values"]), mappings(mapping(curve["points"]).get(policy)), strict=True))
    return mean_over_range(values, [number(points[value].get("mean_return")) for value in values])


def similarity_rows(studies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a table in Markdown: error of the actions on the states of both, and what explains it most."""
    lines = ["| student | RMSE, teacher's states | its own | explained most by (share) |", "|---|---|---|---|"]
    for name, study in studies.items():
        states = mappings(study["similarity"]["states"])
        errors = [number(mapping(one["figures"]).get("action_rmse")) for one in states]
        columns = mappings(states[-1]["columns"])[:2]
        most = ", ".join(f"{c['name']} {c['low']:.2g}..{c['high']:.2g} ({100 * c['share']:.0f} %)" for c in columns)
        lines.append(f"| {name} | {errors[0]:.4f} | {errors[-1]:.4f} | {most} |")
    return lines


def training_rows(studies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a table in Markdown: error of the actions on the student's own states over its training."""
    lines: list[str] = []
    for name, study in studies.items():
        snapshots = mappings(study["similarity"].get("training"))
        if not lines:
            epochs = [f"epoch {one['epoch']}" for one in snapshots]
            lines = [f"| student | {' | '.join(epochs)} |", "|---|" + "---|" * len(epochs)]
        own = [mapping(mapping(one["states"]).get("student")) for one in snapshots]
        errors = [f"{number(figures.get('action_rmse')):.4f}" for figures in own]
        lines.append(f"| {name} | {' | '.join(errors)} |")
    return lines


def pictures(studies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Draw the return of the teacher and of every student over each quantity."""
    charts = []
    for quantity, curves in curves_of(studies).items():
        first = curves[0]
        lines = [_line("teacher", numbers(first["values"]), mapping(first["points"]).get("teacher"))]
        lines += [
            _line(name, numbers(own["values"]), mapping(own["points"]).get("student"))
            for name, own in zip(studies, curves, strict=True)
        ]
        name = quantity.replace("_", " ")
        charts.append(line_chart(f"Return, {name}", f"{name} [{first['unit']}]", "mean return", lines))
    return charts


def _line(name: str, values: list[float], points: object) -> Line:
    return Line(name, values, [number(point.get("mean_return")) for point in mappings(points)], marks=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the files, and print the tables."""
    args = build_parser().read(argv)
    given = [Path(run) for run in args.runs or ()]
    steps = steps_left(given, args.num_episodes)
    for step in steps[: args.steps]:
        step()
    if args.steps is not None and len(steps) > args.steps:
        print(f"{len(steps) - args.steps} steps are left: the same command goes on")
        return 0
    folders = given or [found_run(name) for name in STUDENTS]
    studies = {folder.resolve().name.split("_", 2)[-1]: read_studies(folder) for folder in folders}
    output = Path(args.output)
    write_json(output / "robustness.json", studies)
    atomic_write_bytes(output / "robustness.svg", grid(pictures(studies)).encode())
    print("\n".join([*table(studies), "", *similarity_rows(studies), "", *training_rows(studies)]))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
