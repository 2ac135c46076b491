"""Distil a DQN while it is being trained, and compare the two learning curves (Rusu et al. 2015, section 5.4).

    python scripts/online_distillation.py
    python scripts/online_distillation.py --tasks CartPole-v1 --seeds 0 1 2

For each seed ``train_dqn.py`` and ``distillation.py --watch_teacher`` run side by side: the best policy so far teaches,
and a small student is evaluated after each epoch. A finished pair is kept in ``<folder>/stages.json`` and is not run
again. Writes ``<out>.json``, ``<out>.md`` and ``<out>.png``. Needs the extras sb3 and bench.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np

EXPERIMENT = "online"
EPISODES = 16
"""Episodes of every evaluation, of teacher and student alike."""
STUDENT = [
    "experiment=cartpole",
    *("--num_envs", "16", "--num_episodes", "8", "--n_epochs", "10000", "--save_interval", "10000"),
    *("--num_eval_episodes", str(EPISODES), "distill.final_eval_episodes=64"),
]
"""Arguments of the student's run, which is stopped when the teacher's has ended."""
NEVER = 1e9
"""A mean return that no task has, so that the teacher's training does not stop early."""
PATIENCE = 120.0
"""Time that the student has for its last evaluation when the teacher is trained, and for its end [s]."""
LOOK = 1.0
"""Time between two looks at what the trainings have written [s]."""

TASKS = {"CartPole-v1": 40_000, "Acrobot-v1": 60_000}
"""Env steps of the teacher's training by task."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from foundation.cli.cli_args import seed
    from foundation.cli.parser import ScriptParser

    parser = ScriptParser(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["CartPole-v1"], help="(CartPole-v1)")
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2], help="(0 1 2)")
    parser.add_argument("--folder", type=Path, default=Path("logs/online"), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/online"), help="(default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing: write the page of what is done")
    return parser.read(argv)


@dataclass
class Watched:
    """An evaluation curve, and when each of its points was first seen."""

    steps: list[float] = field(default_factory=list)
    """Env steps of the teacher, or epochs of the student."""
    returns: list[float] = field(default_factory=list)
    """Mean returns."""
    seconds: list[float] = field(default_factory=list)
    """Since the run began [s]."""

    def extend(self, steps: Sequence[float], returns: Sequence[float], now: float) -> None:
        """Take what has been added to the curve since the last look."""
        known = len(self.steps)
        self.steps += steps[known:]
        self.returns += returns[known:]
        self.seconds += [now] * (len(self.steps) - known)


class Study:
    """The runs of one folder."""

    def __init__(self, args: argparse.Namespace):
        """Open, or begin, the folder."""
        from raptor.stages import Stages

        self.args = args
        self.folder: Path = args.folder.resolve()
        self.out: Path = args.out.resolve()
        self.stages = Stages(self.folder, {"student": STUDENT})

    def run(self) -> None:
        """Run the pairs that are not done yet, and report after each."""
        if not self.args.report:
            self.check_packages()
            for task in self.args.tasks:
                for seed in self.args.seeds:
                    self.stages.run(f"{task} s{seed}", lambda task=task, seed=seed: self.pair(task, seed))
                    self.report()
        self.report()

    def check_packages(self) -> None:
        """Refuse, before anything is run, what is missing."""
        from foundation.core.errors import UserError

        for package, extra in {"stable_baselines3": "sb3", "matplotlib": "bench"}.items():
            if importlib.util.find_spec(package) is None:
                raise UserError(f"{package} is missing: pip install -e '.[{extra}]' in the clone's folder")

    def pair(self, task: str, seed: int) -> dict[str, Any]:
        """Train and distil at once; return both curves over the teacher's env steps."""
        from raptor.stages import ROOT, STAMP

        folder = self.folder / f"{task}_s{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("*.*"):  # of an attempt that was stopped
            left.unlink()
        run_name = f"{task}_s{seed}"
        since = time.strftime(STAMP)
        teacher = start(
            ROOT / "scripts" / "train_dqn.py",
            ["--task", task, "--output", str(folder), "--seed", str(seed), "--total_timesteps", str(TASKS[task])],
            ["--target_return", str(NEVER), "--num_eval_episodes", str(EPISODES)],
            log=folder / "teacher.log",
        )
        student = start(
            ROOT / "foundation" / "rsl_rl" / "distillation.py",
            ["--task", task, "--watch_teacher", str(folder), "--seed", str(seed), "--device", "cpu", *STUDENT],
            ["--experiment_name", EXPERIMENT, "--run_name", run_name],
            log=folder / "student.log",
        )
        try:
            curves = follow(teacher, student, folder, run_name, since)
        finally:
            for process in (teacher, student):
                end(process)
        return online(*curves)

    def report(self) -> None:
        """Write numbers, picture and page of what is done."""
        from raptor.stages import write_json

        kept = {
            name: {key: value for key, value in stage.items() if key != "wall_seconds"}
            for name, stage in self.stages.done.items()
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.out.with_suffix(".json"), kept)
        if kept:
            draw(kept, self.out.with_suffix(".png"))
        self.out.with_suffix(".md").write_text(page(kept, self.out.name), encoding="utf-8")


def start(script: Path, *arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start one of the repository's scripts, which ends with this process; its output goes to ``log``."""
    from foundation.core.child_process import end_with_parent

    command = [sys.executable, str(script), *(token for part in arguments for token in part)]
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, preexec_fn=end_with_parent())


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a process, as Ctrl-C does; one that does not end is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def follow(
    teacher: subprocess.Popen[bytes], student: subprocess.Popen[bytes], folder: Path, run_name: str, since: str
) -> tuple[Watched, Watched]:
    """Look at both trainings until the teacher's has ended and the student was evaluated once more.

    Args:
        teacher: The teacher's training.
        student: The student's.
        folder: Where the teacher's evaluations are.
        run_name: Of the student's run.
        since: Older runs of that name are not looked at.

    Returns:
        The curves of teacher and student.

    Raises:
        UserError: If either fails.
    """
    from foundation.core.errors import UserError

    begun = time.monotonic()
    curves = Watched(), Watched()
    enough: int | None = None
    deadline = float("inf")
    while enough is None or (len(curves[1].steps) < enough and time.monotonic() < deadline):
        time.sleep(LOOK)
        now = time.monotonic() - begun
        curves[0].extend(*read_evaluations(folder), now)
        curves[1].extend(*read_student(run_name, since), now)
        for process, name in ((teacher, "teacher"), (student, "student")):
            if process.poll() not in (None, 0) or (name == "student" and process.poll() == 0):
                raise UserError(f"the {name}'s training has failed; its output is in '{folder / name}.log'")
        if enough is None and teacher.poll() == 0:
            enough = len(curves[1].steps) + 1
            deadline = time.monotonic() + PATIENCE
    return curves


def read_evaluations(folder: Path) -> tuple[list[float], list[float]]:
    """Return env steps and mean returns of a training by Stable-Baselines3; nothing while its file is being written."""
    try:
        with np.load(folder / "evaluations.npz", allow_pickle=False) as saved:
            return saved["timesteps"].astype(float).tolist(), saved["results"].mean(axis=1).tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return [], []


def read_student(run_name: str, since: str) -> tuple[list[float], list[float]]:
    """Return epochs and mean returns of the newest run of a name; nothing while its file is being written."""
    from foundation.core.errors import UserError
    from foundation.report.event_file import read_scalars

    runs = sorted(Path("logs/distillation").joinpath(EXPERIMENT).glob(f"*_{run_name}"))
    if not runs or runs[-1].name < since:
        return [], []
    try:
        curve = read_scalars(runs[-1]).get("evaluation/mean_return")
    except UserError:
        return [], []
    return ([], []) if curve is None else (curve.steps, curve.values)


def online(teacher: Watched, student: Watched) -> dict[str, Any]:
    """Return both curves over the teacher's env steps, and what says how smooth they are.

    The student's curve is compared at the teacher's evaluations, by its last evaluation before each, so that both have
    as many points.
    """
    known = [(0.0, 0.0), *zip(teacher.seconds, teacher.steps, strict=True)]
    at = np.interp(student.seconds, [seconds for seconds, _ in known], [steps for _, steps in known])
    pairs = []
    for steps, value in zip(teacher.steps, teacher.returns, strict=True):
        before = [own for place, own in zip(at, student.returns, strict=True) if place <= steps]
        if before:
            pairs.append((value, before[-1]))
    first, second = ([pair[index] for pair in pairs] for index in range(2))
    return {
        "teacher": {"env_steps": teacher.steps, "returns": teacher.returns} | smoothness(first),
        "student": {"env_steps": at.tolist(), "returns": student.returns} | smoothness(second),
        "points": len(pairs),
    }


def smoothness(returns: Sequence[float]) -> dict[str, float]:
    """Return the mean absolute change between evaluations, and how far they lie below the best so far."""
    if len(returns) < 2:
        return {"mean_change": 0.0, "mean_drop": 0.0, "largest_drop": 0.0}
    values = np.asarray(returns)
    drops = np.maximum.accumulate(values) - values
    return {
        "mean_change": float(np.abs(np.diff(values)).mean()),
        "mean_drop": float(drops.mean()),
        "largest_drop": float(drops.max()),
    }


MEASURES = {
    "mean_change": "mean change between evaluations",
    "mean_drop": "mean distance below the best so far",
    "largest_drop": "largest distance below the best so far",
}
"""What is compared, as the page has it."""


def draw(done: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw teacher and student over the teacher's env steps, a panel for each run."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(3, len(done))
    rows = -(-len(done) // columns)
    size = (max(5.6, 3.4 * columns), 2.9 * rows + 0.3)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharey="row")
    for panel, (name, run) in zip(axes.flat, done.items(), strict=False):
        teacher = run["teacher"]
        student = run["student"]
        steps = np.asarray(teacher["env_steps"]) / 1000.0
        best = np.maximum.accumulate(teacher["returns"])
        panel.plot(steps, teacher["returns"], color="tab:grey", label="teacher in training", linewidth=1.2)
        panel.step(steps, best, where="post", color="tab:grey", linestyle=":", label="its best so far, which teaches")
        student_steps = np.asarray(student["env_steps"]) / 1000.0
        panel.plot(student_steps, student["returns"], color="tab:blue", label="student", linewidth=1.4)
        panel.set(title=name.replace(" s", ", seed "), xlabel="teacher's env steps [thousands]")
    for row in axes:
        row[0].set_ylabel("mean return")
    for panel in axes.flat[len(done) :]:
        panel.axis("off")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def page(done: dict[str, dict[str, Any]], name: str) -> str:
    """Return the page of what is done."""
    tasks = list(dict.fromkeys(key.rpartition(" ")[0] for key in done))
    lines = [
        "# Online distillation",
        "",
        f"`python scripts/online_distillation.py{_typed(tasks)}` (extras sb3 and bench). A DQN trains while",
        "`distillation.py --watch_teacher` distils its best policy so far into a student (Rusu et al. 2015, section",
        f"5.4). Each evaluation, of teacher and student, is the mean return of {EPISODES} episodes. The student is",
        "compared by its last evaluation before each of the teacher's, so that both curves have as many points.",
        f"Raw numbers: `{name}.json`.",
        "",
    ]
    for task in tasks:
        runs = [run for key, run in done.items() if key.rpartition(" ")[0] == task]
        lines += [f"## {task}", "", f"{_seeds(len(runs))}; medians and ranges.", "", *table(runs), ""]
        lines += [verdict(runs), ""]
    lines += [f"![The teachers' returns jump; the students' follow the best so far]({name}.png)"] if done else []
    return "\n".join(lines) + "\n"


def _typed(tasks: Sequence[str]) -> str:
    return "" if list(tasks) in ([], ["CartPole-v1"]) else f" --tasks {' '.join(tasks)}"


def _seeds(count: int) -> str:
    return "One seed" if count == 1 else f"{count} seeds"


def table(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of one task."""
    lines = ["| mean return | teacher in training | student |", "|---|---:|---:|"]
    for measure, text in MEASURES.items():
        cells = [spread([run[who][measure] for run in runs]) for who in ("teacher", "student")]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    for text, pick in (("last evaluation", -1), ("best evaluation", None)):
        cells = [
            spread([run[who]["returns"][pick] if pick else max(run[who]["returns"]) for run in runs])
            for who in ("teacher", "student")
        ]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return lines


def verdict(runs: Sequence[dict[str, Any]]) -> str:
    """Say in how many runs the student's curve was the smoother one, by each measure."""
    counts = [
        f"{sum(run['student'][measure] < run['teacher'][measure] for run in runs)} by the {text}"
        for measure, text in MEASURES.items()
    ]
    return f"Runs of {len(runs)} in which the student's curve was the smoother one: {', '.join(counts)}."


def spread(found: Sequence[float]) -> str:
    """Write a median, with the range where there are several values."""
    if len(found) == 1:
        return f"{found[0]:.1f}"
    return f"{statistics.median(found):.1f} ({min(found):.1f} to {max(found):.1f})"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study."""
    Study(parse(argv)).run()
    return 0


if __name__ == "__main__":
    from foundation.cli.command import run_command

    sys.exit(run_command(main))
