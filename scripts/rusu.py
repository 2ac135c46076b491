"""Reproduce tables of Rusu et al. (2015, "Policy Distillation") on small games: losses, compression, several games.

    python scripts/rusu.py                                   # everything that is not done yet
    python scripts/rusu.py --parts losses --games Acrobot-v1
    python scripts/rusu.py --report                          # write the page of what is done

Every finished run is kept in ``<folder>/stages.json`` and is not run again: the same command goes on, with more seeds
or games too. Writes ``<out>.json``, ``<out>.md`` and ``<out>.png`` after each; what is written by hand under the tables
of the page stays. The teachers are trained first, by ``train_dqn.py``, and students are measured from starts where no
training episode begins. Needs the extras sb3 and bench, and the extra gymnasium for MinAtar and LunarLander.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foundation.engines.base import VecEnv
    from foundation.policies.actors import Actor

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

EXPERIMENT = "rusu"
DISTIL = "foundation/rsl_rl/distillation.py"
PARTS = ("losses", "compression", "multi_task", "joint")
LOSSES = ("q_mse", "nll", "kl")
"""The three of the paper, in its order."""
SHARES = (0.25, 0.07, 0.04, 0.01, 0.003, 0.001, 0.0004, 0.0002)
"""Parameters of the student as a share of the teacher's: the paper's three, and smaller until it breaks."""
COMPRESSION_LOSS = "kl"
"""Loss of the students of all sizes: the paper's best."""
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
TOGETHER_NAME = "+".join(TOGETHER)
JOINT_STEPS = 50_000
"""Env steps of the DQN of several games: twice what their two teachers took."""
WRITTEN = "## What showed, and what did not"
"""Heading of the part of the page that the script does not write."""
FINAL_EPISODES = 64
"""Episodes from ordinary starts at the end of a run; the tables are of those from held-out starts."""


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
        from held_out_starts import EPSILON, MOST_STEPS, NUM_EPISODES, SEED
        from raptor.stages import Stages

        self.args = args
        self.games = [GAMES[name] for name in args.games]
        self.folder: Path = args.folder.resolve()
        self.out: Path = args.out.resolve()
        starts = {"episodes": NUM_EPISODES, "most_steps": MOST_STEPS, "epsilon": EPSILON, "seed": SEED}
        self.stages = Stages(self.folder, {"shares": list(SHARES), "starts": starts})

    def run(self) -> None:
        """Run what is not done yet, one seed after the other: each game, then the student of several."""
        if self.args.report:
            self.report()
            return
        self.check_packages()
        for seed in self.args.seeds:
            for game in self.games:
                self.prepare(game)
                self.carry_out(self.runs(game, seed))
            if all(name in self.args.games for name in TOGETHER):
                self.carry_out(self.runs_together(seed))

    def check_packages(self) -> None:
        """Refuse, before anything is run, games and parts whose packages are missing."""
        from foundation.core.errors import UserError
        from foundation.engines.gymnasium import GymnasiumEngine

        trains = "joint" in self.args.parts or any(
            f"teacher {name}" not in self.stages.done for name in self.args.games
        )
        needed = {"stable_baselines3": "sb3"} if trains else {}
        for package, extra in (needed | {"matplotlib": "bench"}).items():
            if importlib.util.find_spec(package) is None:
                raise UserError(f"'{package}' is not installed: pip install -e .[{extra}] in the clone's folder")
        for name in self.args.games:
            reason = GymnasiumEngine.why_not(name)
            if reason is not None:
                raise UserError(f"--games {name}: {reason}")

    def prepare(self, game: Game) -> None:
        """Train a game's teacher, and measure it and random choices from the held-out starts."""
        for name, action in (("teacher", self.train), ("starts", self.measure_references)):
            if f"{name} {game.task}" not in self.stages.done:
                self.stages.run(f"{name} {game.task}", lambda action=action: action(game))

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
        for share in self.shares(game) if "compression" in self.args.parts else ():
            name = f"compression {game.task} {share:g} s{seed}"
            found.append((name, lambda share=share: self.compress(game, share, seed)))
        return found

    def runs_together(self, seed: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
        """Return the names and actions of the runs of several games of one seed."""
        actions = {"multi_task": self.distil_together, "joint": self.train_jointly}
        return [
            (f"{part} {TOGETHER_NAME} s{seed}", lambda action=action: action(seed))
            for part, action in actions.items()
            if part in self.args.parts
        ]

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

    def measure_references(self, game: Game) -> dict[str, Any]:
        """Measure a teacher and random choices from the held-out starts."""
        from held_out_starts import SEED, opened

        from foundation.engines.base import EnvCapabilities
        from foundation.policies.actors import RandomActor
        from foundation.teachers import TeacherPolicyWrapper

        with opened(game.task) as env:
            teacher = TeacherPolicyWrapper(self.stages.done[f"teacher {game.task}"]["checkpoint"])
            choices = EnvCapabilities.of(env).action_choices
            random = RandomActor(env.num_actions, SEED, choices=choices)
            return {
                "teacher_return": self.mean_from_starts(env, game, teacher),
                "random_return": self.mean_from_starts(env, game, random),
            }

    def mean_from_starts(self, env: VecEnv, game: Game, actor: Actor) -> float:
        """Return an actor's mean return from the held-out starts of a game."""
        from held_out_starts import player_of, returns_from_starts

        from foundation.teachers import TeacherPolicyWrapper

        teacher = TeacherPolicyWrapper(self.stages.done[f"teacher {game.task}"]["checkpoint"])
        return float(returns_from_starts(env, player_of(env, teacher), actor).mean())

    def measure(self, game: Game, checkpoint: Path) -> dict[str, float]:
        """Measure a student from the held-out starts of a game."""
        from held_out_starts import opened

        from foundation.teachers import TeacherPolicyWrapper

        with opened(game.task) as env:
            return self.scored(game, self.mean_from_starts(env, game, TeacherPolicyWrapper(checkpoint)))

    def scored(self, game: Game, mean_return: float) -> dict[str, float]:
        """Put a mean return from the held-out starts in proportion to the teacher's and to that of random choices."""
        known = self.stages.done[f"starts {game.task}"]
        teacher, random = known["teacher_return"], known["random_return"]
        return {"score": (mean_return - random) / (teacher - random), "return": mean_return}

    def train_jointly(self, seed: int) -> dict[str, Any]:
        """Train one DQN on several games; return what it was measured at in each."""
        from held_out_starts import opened
        from raptor.stages import python
        from train_joint_dqn import JointActor

        from foundation.teachers import TeacherPolicyWrapper

        folder = self.folder / "teachers" / f"joint_s{seed}"
        python(
            "scripts/train_joint_dqn.py",
            *("--tasks", *TOGETHER, "--output", folder, "--seed", seed, "--total_timesteps", JOINT_STEPS),
            log=self.folder / f"joint_s{seed}.log",
        )
        policy = TeacherPolicyWrapper(folder / "teacher.zip")
        found = {}
        for index, name in enumerate(TOGETHER):
            actor = JointActor(policy, index, len(TOGETHER), self.stages.done[f"teacher {name}"]["num_choices"])
            with opened(name) as env:
                found[name] = self.scored(GAMES[name], self.mean_from_starts(env, GAMES[name], actor))
        return {"parameters": policy.num_parameters, "tasks": found}

    def shares(self, game: Game) -> list[float]:
        """Return the shares whose students differ: below a layer of one unit there are none."""
        widths = [self.width(game, share) for share in SHARES]
        return [share for share, width, wider in zip(SHARES, widths, [0, *widths], strict=False) if width != wider]

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
            *("--final_eval_episodes", FINAL_EPISODES, "--experiment_name", EXPERIMENT, "--run_name", run_name),
            log=self.folder / "students" / f"{run_name}.log",
        )
        run = newest_run(EXPERIMENT, run_name)
        summary = json.loads((run / "summary.json").read_text())
        measured = self.measure(game, run / "best_student.pt")
        return measured | figures(summary) | {"parameters": summary["parameters"]["student"]}

    def compress(self, game: Game, share: float, seed: int) -> dict[str, Any]:
        """Distil a teacher into a student of a share of its size, or take the run of the losses that is the same."""
        same = self.stages.done.get(f"losses {game.task} {COMPRESSION_LOSS} s{seed}")
        if share == LOSS_SHARE and same is not None:
            return {name: value for name, value in same.items() if name not in ("wall_seconds", "cpu_seconds")}
        return self.distil(game, share, COMPRESSION_LOSS, seed)

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
            *("--final_eval_episodes", FINAL_EPISODES, "--experiment_name", EXPERIMENT, "--run_name", run_name),
            log=self.folder / "students" / f"{run_name}.log",
        )
        run = newest_run(EXPERIMENT, run_name)
        summary = json.loads((run / "summary.json").read_text())
        return {
            "parameters": summary["parameters"]["student"],
            "tasks": {
                name: self.measure(GAMES[name], run / "tasks" / name / "best_student.pt")
                | figures(summary["tasks"][name])
                for name in TOGETHER
            },
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
        path = self.out.with_suffix(".md")
        path.write_text(page(kept, self.out.name) + written_part(path), encoding="utf-8")
        draw(kept, self.out.with_suffix(".png"))


def written_part(path: Path) -> str:
    """Return what people have written under the tables of the page, which is kept; nothing if there is no page yet."""
    if not path.is_file():
        return ""
    _, heading, text = path.read_text(encoding="utf-8").partition(f"\n{WRITTEN}\n")
    return heading + text


def figures(summary: dict[str, Any]) -> dict[str, float]:
    """Return what is kept of a run's summary, which is of ordinary starts."""
    return {
        "ordinary_score": summary["normalized_score"],
        "ordinary_return": summary["best_student_return"],
        "ordinary_teacher_return": summary["teacher_return"],
    }


def values(done: dict[str, dict[str, Any]], prefix: str, key: str = "score") -> list[float]:
    """Return a figure of all seeds of a run: by default the normalised score from held-out starts."""
    return [stage[key] for name, stage in done.items() if name.startswith(f"{prefix} s")]


def spread(found: Sequence[float]) -> str:
    """Write a median with its range."""
    if not found:
        return "-"
    if len(found) == 1:
        return f"{found[0]:.3f} (one seed)"
    return f"{statistics.median(found):.3f} ({min(found):.3f} to {max(found):.3f})"


def games_of(done: dict[str, dict[str, Any]]) -> list[str]:
    """Return the games that have a teacher, in order."""
    return [name.removeprefix("teacher ") for name in done if name.startswith("teacher ")]


def page(done: dict[str, dict[str, Any]], name: str) -> str:
    """Return the page of what is done."""
    parts = [head(name), teachers_table(done), losses_table(done), compression_table(done), together_table(done)]
    return "\n".join(line for part in parts for line in part) + "\n"


def head(name: str) -> list[str]:
    """Return the beginning of the page: what was run and how it is measured."""
    from held_out_starts import EPSILON, MOST_STEPS, NUM_EPISODES

    return [
        "# Rusu et al. (2015) on small games",
        "",
        "Made by `python scripts/rusu.py` (extras sb3, gymnasium and bench). One teacher of each game, a DQN of",
        "`scripts/train_dqn.py` (seed 0); the seeds are those of the students.",
        "",
        "**Held-out starts.** The paper measures from states that people had reached. Here each of",
        f"{NUM_EPISODES} episodes begins where a player has been led in 1 to {MOST_STEPS} env steps: the teacher with",
        f"{EPSILON:.0%} of its choices random. No training episode begins there. Rewards count from there on, and all",
        "policies of a game have the same starts. A score is (student - random) / (teacher - random) on them. Ordinary",
        f"starts are those of the game's reset: {FINAL_EPISODES} episodes of seeds that nothing was trained on. Each",
        f"figure is the median over the seeds, with its range in brackets. Raw numbers: `{name}.json`.",
        "",
        f"![Score against the student's size]({name}.png)",
        "",
    ]


def teachers_table(done: dict[str, dict[str, Any]]) -> list[str]:
    """Return the section of the teachers."""
    lines = [
        "## Teachers",
        "",
        "| game | observations, choices | parameters | return, ordinary starts | held-out starts | random, held-out |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for game in games_of(done):
        teacher = done[f"teacher {game}"]
        starts = done.get(f"starts {game}", {})
        returns = [stage["ordinary_teacher_return"] for stage in of_game(done, game)]
        cells = [
            game,
            f"{teacher['num_obs']}, {teacher['num_choices']}",
            f"{teacher['parameters']:,}",
            f"{statistics.median(returns):.1f}" if returns else "-",
            f"{starts['teacher_return']:.1f}" if starts else "-",
            f"{starts['random_return']:.1f}" if starts else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def of_game(done: dict[str, dict[str, Any]], game: str) -> list[dict[str, Any]]:
    """Return the runs of a game's students."""
    return [stage for name, stage in done.items() if name.startswith((f"losses {game} ", f"compression {game} "))]


def losses_table(done: dict[str, dict[str, Any]]) -> list[str]:
    """Return the section of the three losses."""
    lines = [
        f"## Three losses, students of {LOSS_SHARE:.0%} of the teacher's size",
        "",
        f"| game | starts | {' | '.join(LOSSES)} |",
        "|---|---|" + "---:|" * len(LOSSES),
    ]
    for game in games_of(done):
        for starts, key in (("held-out", "score"), ("ordinary", "ordinary_score")):
            cells = [spread(values(done, f"losses {game} {loss}", key)) for loss in LOSSES]
            lines.append(f"| {game} | {starts} | {' | '.join(cells)} |")
    return [*lines, ""]


def compression_table(done: dict[str, dict[str, Any]]) -> list[str]:
    """Return the section of smaller and smaller students."""
    games = games_of(done)
    lines = [
        f"## Compression, loss {COMPRESSION_LOSS}, held-out starts",
        "",
        f"| share of the teacher's parameters | {' | '.join(games)} |",
        "|---|" + "---:|" * len(games),
    ]
    for share in SHARES:
        cells = []
        for game in games:
            prefix = f"compression {game} {share:g}"
            sizes = values(done, prefix, "parameters")
            size = f"{sizes[0]:,} parameters: " if sizes else ""
            cells.append(f"{size}{spread(values(done, prefix))}")
        lines.append(f"| {share * 100:g} % | {' | '.join(cells)} |")
    return [*lines, ""]


def together_table(done: dict[str, dict[str, Any]]) -> list[str]:
    """Return the section of one policy of several games."""
    from foundation.rollout.baselines import geometric_mean

    lines = [
        "## One policy of several games, held-out starts",
        "",
        f"One student of {' and '.join(TOGETHER)}, whose layers are those of a student of {MULTI_SHARE:.0%} of one",
        "teacher's size (`--multi_task`: a trunk, and a first layer and a head of each game); students of one game;",
        "and one DQN trained on both games in turn (`scripts/train_joint_dqn.py`, the layers of one teacher,",
        f"{JOINT_STEPS:,} env steps).",
        "",
        "| game | one student of both | one student of its own | one DQN of both |",
        "|---|---:|---:|---:|",
    ]
    parts = [[stage for key, stage in done.items() if key.startswith(f"{part} ")] for part in ("multi_task", "joint")]
    for game in TOGETHER:
        students, joint = ([stage["tasks"][game]["score"] for stage in part] for part in parts)
        own = values(done, f"compression {game} {MULTI_SHARE:g}")
        lines.append(f"| {game} | {spread(students)} | {spread(own)} | {spread(joint)} |")
    sizes = [f"{part[0]['parameters']:,}" if part else "-" for part in parts]
    own = [values(done, f"compression {game} {MULTI_SHARE:g}", "parameters")[:1] for game in TOGETHER]
    each = " + ".join(f"{size[0]:,}" for size in own if size) or "-"
    lines.append(f"| parameters | {sizes[0]} | {each} | {sizes[1]} |")
    means = [[geometric_mean([run["tasks"][game]["score"] for game in TOGETHER]) for run in part] for part in parts]
    lines.append(f"| geometric mean | {spread(means[0])} | - | {spread(means[1])} |")
    return lines


def draw(done: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the score against the student's size, a line for each game, the range over the seeds shaded."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), layout="constrained")
    for game in games_of(done):
        points = []
        for share in SHARES:
            prefix = f"compression {game} {share:g}"
            found = values(done, prefix)
            if found:
                actual = 100.0 * values(done, prefix, "parameters")[0] / done[f"teacher {game}"]["parameters"]
                points.append((actual, statistics.median(found), min(found), max(found)))
        if points:
            size, middle, low, high = zip(*points, strict=True)
            (line,) = axes.plot(size, middle, marker="o", label=game)
            axes.fill_between(size, low, high, color=line.get_color(), alpha=0.2)
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="student's parameters [% of the teacher's]", ylabel="score from held-out starts")
    ticks = [100.0 * share for share in SHARES]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    if axes.lines[1:]:
        axes.legend(loc="lower right")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study."""
    Study(parse(argv)).run()
    return 0


if __name__ == "__main__":
    from foundation.cli.command import run_command

    sys.exit(run_command(main))
