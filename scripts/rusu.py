"""Reproduce the tables of Rusu et al. (2015, "Policy Distillation") on small games: losses, compression, several games.

    python scripts/rusu.py                                   # everything that is not done yet
    python scripts/rusu.py --parts losses --games Acrobot-v1
    python scripts/rusu.py --report                          # write the page of what is done

Every finished run is kept in ``<folder>/stages.json`` and is not run again: the same command goes on, with more seeds
or games too. Writes ``<out>.json``, ``<out>.md`` and ``<out>.png`` after each. The teachers are trained first, by
``train_dqn.py``. Needs the extra sb3, and the extra gymnasium for MinAtar and LunarLander.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

EXPERIMENT = "rusu"
DISTIL = "foundation/rsl_rl/distillation.py"
PARTS = ("losses", "compression", "multi_task")
LOSSES = ("q_mse", "nll", "kl")
"""The three of the paper, in its order."""
SHARES = (0.25, 0.07, 0.04, 0.01, 0.003, 0.001)
"""Parameters of the student as a share of the teacher's: the paper's three, and smaller until it breaks."""
LOSS_SHARE = 0.07
"""Size of the student that the losses are compared on."""
MULTI_SHARE = 0.07
"""Size of the student of several games, of one teacher's parameters."""


@dataclass(frozen=True)
class Game:
    """A game and how it is learned."""

    task: str
    preset: str
    """``experiment=``."""
    teacher_steps: int | None = None
    """Env steps of the teacher at most; None: as ``train_dqn.py`` has it."""

    @property
    def name(self) -> str:
        """The id without what no folder's name may hold."""
        return self.task.replace("/", "-")


GAMES = {
    game.task: game
    for game in (
        Game("CartPole-v1", "rusu_control"),
        Game("Acrobot-v1", "rusu_control"),
        Game("MinAtar/Breakout-v1", "rusu_minatar", 300_000),
        Game("LunarLander-v3", "rusu_control"),
    )
}
TOGETHER = ("CartPole-v1", "Acrobot-v1")
"""Games of the student of several."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from foundation.cli.cli_args import seed
    from foundation.cli.parser import ScriptParser

    default = ["CartPole-v1", "Acrobot-v1", "MinAtar/Breakout-v1"]
    parser = ScriptParser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default: all)")
    parser.add_argument("--games", nargs="+", choices=list(GAMES), default=default, help=f"(default: {default})")
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2], help="of the students (0 1 2)")
    parser.add_argument("--folder", type=Path, default=Path("logs/rusu"), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/rusu"), help="(default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing: write the page of what is done")
    return parser.read(argv)


def num_parameters(num_obs: int, width: int, num_choices: int) -> int:
    """Return the parameters of a student of two hidden layers of one width."""
    return (num_obs + 1) * width + (width + 1) * width + (width + 1) * num_choices


def width_of(share: float, num_obs: int, num_choices: int, teacher: int) -> int:
    """Return the width of two hidden layers whose student comes nearest to a share of the teacher's parameters."""
    widths = range(1, 1025)
    return min(widths, key=lambda width: abs(num_parameters(num_obs, width, num_choices) - share * teacher))


class Study:
    """The runs of one folder."""

    def __init__(self, args: argparse.Namespace):
        """Open, or begin, the folder."""
        from raptor.stages import Stages

        self.args = args
        self.games = [GAMES[name] for name in args.games]
        self.folder: Path = args.folder.resolve()
        self.out: Path = args.out.resolve()
        self.stages = Stages(self.folder, {"shares": list(SHARES)})

    def run(self) -> None:
        """Run what is not done yet, one seed after the other: each game, then the student of several."""
        if self.args.report:
            self.report()
            return
        for seed in self.args.seeds:
            for game in self.games:
                if f"teacher {game.task}" not in self.stages.done:
                    self.stages.run(f"teacher {game.task}", lambda game=game: self.train(game))
                self.carry_out(self.runs(game, seed))
            if "multi_task" in self.args.parts and all(name in self.args.games for name in TOGETHER):
                name = f"multi_task {'+'.join(TOGETHER)} s{seed}"
                self.carry_out([(name, lambda seed=seed: self.distil_together(seed))])

    def carry_out(self, runs: Sequence[tuple[str, Callable[[], dict[str, Any]]]]) -> None:
        """Run what is not done yet, and report after each."""
        for name, action in runs:
            self.stages.run(name, action)
            self.report()

    def runs(self, game: Game, seed: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
        """Return the names and actions of a game's runs of one seed."""
        found: list[tuple[str, Callable[[], dict[str, Any]]]] = []
        for loss in LOSSES if "losses" in self.args.parts else ():
            name = f"losses {game.task} {loss} s{seed}"
            found.append((name, lambda loss=loss: self.distil(game, LOSS_SHARE, loss, seed)))
        for share in SHARES if "compression" in self.args.parts else ():
            name = f"compression {game.task} {share:g} s{seed}"
            found.append((name, lambda share=share: self.distil(game, share, "kl", seed)))
        return found

    def train(self, game: Game) -> dict[str, Any]:
        """Train a teacher; return its file and its sizes."""
        from raptor.stages import python

        from foundation.teachers import TeacherPolicyWrapper

        folder = self.folder / "teachers" / game.name
        steps = [] if game.teacher_steps is None else ["--total_timesteps", game.teacher_steps]
        python(
            "scripts/train_dqn.py",
            *("--task", game.task, "--output", folder, "--seed", 0),
            *steps,
            log=self.folder / f"teacher_{game.name}.log",
        )
        teacher = TeacherPolicyWrapper(str(folder / "teacher.zip"))
        return {
            "checkpoint": str(folder / "teacher.zip"),
            "num_obs": teacher.num_obs,
            "num_choices": teacher.num_choices,
            "parameters": sum(parameter.numel() for parameter in teacher.parameters()),
        }

    def width(self, game: Game, share: float) -> int:
        """Return the width of the hidden layers of a student of a game."""
        teacher = self.stages.done[f"teacher {game.task}"]
        return width_of(share, teacher["num_obs"], teacher["num_choices"], teacher["parameters"])

    def distil(self, game: Game, share: float, loss: str, seed: int) -> dict[str, Any]:
        """Distil a teacher into a student of a share of its size; return what it was measured at."""
        from raptor.stages import newest_run, python

        width = self.width(game, share)
        run_name = f"{game.name}_{loss}_{width}_s{seed}"
        python(
            DISTIL,
            *("--task", game.task, f"experiment={game.preset}", "--seed", seed, "--device", "cpu"),
            *("--teacher_checkpoint", self.stages.done[f"teacher {game.task}"]["checkpoint"]),
            *(f"distill.loss.name={loss}", f"distill.student.hidden_dims=[{width},{width}]"),
            *("--experiment_name", EXPERIMENT, "--run_name", run_name),
            log=self.folder / "students" / f"{run_name}.log",
        )
        summary = json.loads((newest_run(EXPERIMENT, run_name) / "summary.json").read_text())
        return figures(summary) | {"parameters": summary["parameters"]}

    def distil_together(self, seed: int) -> dict[str, Any]:
        """Distil the teachers of several games into one student; return what it was measured at in each."""
        import yaml
        from raptor.stages import newest_run, python

        tasks = []
        for name in TOGETHER:
            teacher = Path(self.stages.done[f"teacher {name}"]["checkpoint"])
            tasks.append({"id": name, "task": name, "teacher": str(teacher), "num_envs": 32})
        listing = self.folder / "tasks.yaml"
        listing.write_text(yaml.safe_dump({"format": "foundation-tasks-1", "tasks": tasks}), encoding="utf-8")
        width = self.width(GAMES[TOGETHER[0]], MULTI_SHARE)
        run_name = f"together_{width}_s{seed}"
        python(
            DISTIL,
            *("--multi_task", listing, "experiment=rusu_control", "--seed", seed, "--device", "cpu"),
            f"distill.student.hidden_dims=[{width},{width}]",
            *("--experiment_name", EXPERIMENT, "--run_name", run_name),
            log=self.folder / "students" / f"{run_name}.log",
        )
        summary = json.loads((newest_run(EXPERIMENT, run_name) / "summary.json").read_text())
        return {
            "geometric_mean_score": summary["geometric_mean_score"],
            "parameters": summary["parameters"],
            "tasks": {name: figures(summary["tasks"][name]) for name in TOGETHER},
        }

    def report(self) -> None:
        """Write JSON, page and picture of what is done."""
        from raptor.stages import write_json

        done = self.stages.done
        kept = {
            name: {key: value for key, value in stage.items() if key not in ("checkpoint", "wall_seconds")}
            for name, stage in done.items()
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.out.with_suffix(".json"), kept)
        self.out.with_suffix(".md").write_text(page(kept, self.out.name), encoding="utf-8")
        draw(kept, self.out.with_suffix(".png"))


def figures(summary: dict[str, Any]) -> dict[str, float]:
    """Return what is kept of a run's summary."""
    return {
        "score": summary["normalized_score"],
        "return": summary["best_student_return"],
        "teacher_return": summary["teacher_return"],
    }


def scores(done: dict[str, dict[str, Any]], prefix: str) -> list[float]:
    """Return the normalised scores of all seeds of a run."""
    return [stage["score"] for name, stage in done.items() if name.startswith(f"{prefix} s")]


def spread(values: Sequence[float]) -> str:
    """Write a median with its range."""
    if not values:
        return "-"
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def games_of(done: dict[str, dict[str, Any]]) -> list[str]:
    """Return the games that have a teacher, in order."""
    return [name.removeprefix("teacher ") for name in done if name.startswith("teacher ")]


def page(done: dict[str, dict[str, Any]], name: str) -> str:
    """Return the page of what is done."""
    games = games_of(done)
    seeds = sorted({stage.rpartition(" s")[2] for stage in done if not stage.startswith("teacher ")}, key=int)
    lines = [
        "# Rusu et al. (2015) on small games",
        "",
        f"`python scripts/rusu.py` (seeds {', '.join(seeds)} of the students; one teacher of each game, a DQN of",
        "`scripts/train_dqn.py`, seed 0). A score is (student - random) / (teacher - random) on 256 episodes of seeds",
        "that nothing was trained on. Medians, and the range over the seeds in brackets. Raw numbers:",
        f"`{name}.json`.",
        "",
        f"![score against size]({name}.png)",
        "",
        "## Teachers",
        "",
        "| game | parameters | return |",
        "|---|---:|---:|",
    ]
    for game in games:
        returns = [
            stage["teacher_return"] for key, stage in done.items() if f" {game} " in key and "teacher_return" in stage
        ]
        shown = f"{statistics.median(returns):.1f}" if returns else "-"
        lines.append(f"| {game} | {done[f'teacher {game}']['parameters']:,} | {shown} |")
    lines += ["", f"## Three losses, students of {LOSS_SHARE:.0%} of the teacher's size", ""]
    lines += ["| game | " + " | ".join(LOSSES) + " |", "|---|" + "---:|" * len(LOSSES)]
    for game in games:
        cells = [spread(scores(done, f"losses {game} {loss}")) for loss in LOSSES]
        lines.append(f"| {game} | {' | '.join(cells)} |")
    lines += ["", "## Compression, loss kl", ""]
    lines += [
        "| game | " + " | ".join(f"{share * 100:g} %" for share in SHARES) + " |",
        "|---|" + "---:|" * len(SHARES),
    ]
    for game in games:
        cells = []
        for share in SHARES:
            prefix = f"compression {game} {share:g}"
            sizes = [stage["parameters"]["student"] for key, stage in done.items() if key.startswith(f"{prefix} s")]
            size = f"{sizes[0]:,} parameters: " if sizes else ""
            cells.append(f"{size}{spread(scores(done, prefix))}")
        lines.append(f"| {game} | {' | '.join(cells)} |")
    lines += ["", "## One student of several games", ""]
    together = [stage for key, stage in done.items() if key.startswith("multi_task ")]
    lines += [
        f"One student of {' and '.join(TOGETHER)} with the layers of a student of {MULTI_SHARE:.0%} of one teacher's",
        "size, against students of one game each.",
        "",
        "| game | one student of all | one student of its own |",
        "|---|---:|---:|",
    ]
    for game in TOGETHER:
        shared = [stage["tasks"][game]["score"] for stage in together]
        lines.append(f"| {game} | {spread(shared)} | {spread(scores(done, f'compression {game} {MULTI_SHARE:g}'))} |")
    return "\n".join(lines) + "\n"


def draw(done: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the score against the student's size, a line for each game, the range over the seeds shaded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for game in games_of(done):
        points = []
        for share in SHARES:
            found = scores(done, f"compression {game} {share:g}")
            if found:
                points.append((100.0 * share, statistics.median(found), min(found), max(found)))
        if points:
            size, middle, low, high = zip(*points, strict=True)
            (line,) = axes.plot(size, middle, marker="o", label=game)
            axes.fill_between(size, low, high, color=line.get_color(), alpha=0.2)
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="student's parameters [% of the teacher's]", ylabel="normalised score")
    if axes.lines[1:]:
        axes.legend()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study."""
    Study(parse(argv)).run()
    return 0


if __name__ == "__main__":
    from foundation.cli.command import run_command

    sys.exit(run_command(main))
