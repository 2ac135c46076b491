"""Reproduce tables of Rusu et al. (2015, "Policy Distillation") on small games: losses, compression, several games.

    python scripts/rusu.py                                   # everything that is not done yet
    python scripts/rusu.py --parts losses --games Acrobot-v1
    python scripts/rusu.py --adopt docs/results/rusu.json    # go on from the figures of another folder's runs
    python scripts/rusu.py --report                          # write the page of what is done

Every finished run is kept in ``<folder>/stages.json`` and is not run again: the same command goes on, with more seeds
or games too. Writes ``<out>.json``, ``<out>.md`` and ``<out>.png`` after each; what is written by hand under the tables
of the page stays. The teachers are trained first, by ``train_dqn.py``, and students are measured from starts where no
training episode begins. ``--adopt`` takes up the runs of the games whose teachers, trained here again, are the same;
where one is not, that is logged, and its game is run anew; games that are not begun here are on the page as they were.
Needs the extras sb3 and bench, and the extra gymnasium for MinAtar and LunarLander.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from foundation.engines.base import VecEnv
    from foundation.policies.actors import Actor

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from small_games.games import (
    COMPRESSION_LOSS,
    FINAL_EPISODES,
    GAMES,
    LOSS_SHARE,
    LOSSES,
    MULTI_SHARE,
    SHARES,
    TOGETHER,
    Game,
    Together,
    width_of,
)
from small_games.page import draw, games_of, page, written_part

EXPERIMENT = "rusu"
DISTIL = "foundation/rsl_rl/distillation.py"
PARTS = ("teachers", "losses", "compression", "multi_task", "joint")
"""Tables; the teachers alone are what the first makes, and every other needs them."""
TAKEN_UP = ("num_obs", "num_choices", "parameters", "sha256", "teacher_return", "random_return")
"""Figures of a teacher and its starts that are the same where the teacher is."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from foundation.cli.cli_args import seed
    from foundation.cli.parser import ScriptParser

    default = [name for name in GAMES if name != "LunarLander-v3"]
    parser = ScriptParser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="(default: all)")
    parser.add_argument("--games", nargs="+", choices=list(GAMES), default=default, help=f"(default: {default})")
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2], help="of the students (0 1 2)")
    parser.add_argument("--folder", type=Path, default=Path("logs/rusu"), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/rusu"), help="(default: %(default)s)")
    parser.add_argument("--adopt", type=Path, help="figures of an earlier study (its JSON), whose runs are taken up")
    parser.add_argument("--report", action="store_true", help="run nothing: write the page of what is done")
    return parser.read(argv)


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
        self.earlier = read_figures(args.adopt) if args.adopt is not None else {}
        self.compared: set[str] = set()
        """Games whose teachers have been compared with those of the earlier study."""

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
            for together in TOGETHER:
                if all(name in self.args.games for name in together.tasks):
                    self.carry_out(self.runs_together(together, seed))

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
                raise UserError(f"'{package}' is not installed: pip install -e '.[{extra}]' in the clone's folder")
        for name in self.args.games:
            reason = GymnasiumEngine.why_not(name)
            if reason is not None:
                raise UserError(f"--games {name}: {reason}")

    def prepare(self, game: Game) -> None:
        """Train a game's teacher, and measure it and random choices from the held-out starts."""
        for name, action in (("teacher", self.train), ("starts", self.measure_references)):
            if f"{name} {game.task}" not in self.stages.done:
                self.stages.run(f"{name} {game.task}", lambda action=action: action(game))
        self.take_up(game)

    def take_up(self, game: Game) -> None:
        """Take the runs of an earlier study for done where they are of the teachers of this folder."""
        if game.task in self.compared or f"teacher {game.task}" not in self.earlier:
            return
        self.compared.add(game.task)
        if not same_teacher(self.earlier, self.stages.done, game.task):
            print(f"==> {game.task}: {self.args.adopt} is of another teacher: its runs are not taken up", flush=True)
            return
        same = [task for task in self.compared if same_teacher(self.earlier, self.stages.done, task)]
        found = {name: stage for name, stage in self.earlier.items() if set(tasks_of(name)) <= set(same)}
        missing = {name: stage for name, stage in found.items() if name not in self.stages.done}
        for name, stage in missing.items():
            self.stages.take_up(name, stage)
        print(f"==> {game.task}: the same teacher as in {self.args.adopt}: {len(missing)} runs taken up", flush=True)

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

    def runs_together(self, together: Together, seed: int) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
        """Return the names and actions of the runs of several games of one seed."""
        actions = {"multi_task": self.distil_together}
        if together.joint_steps is not None:
            actions["joint"] = self.train_jointly
        return [
            (f"{part} {together.name} s{seed}", lambda action=action: action(together, seed))
            for part, action in actions.items()
            if part in self.args.parts
        ]

    def train(self, game: Game) -> dict[str, Any]:
        """Train a teacher; return its file, what its weights are told from others by, its sizes and its env steps."""
        import numpy as np
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
        with np.load(folder / "evaluations.npz") as evaluations:
            best = int(evaluations["results"].mean(axis=1).argmax())
            env_steps = int(evaluations["timesteps"][best])
        return {
            "checkpoint": str(folder / "teacher.zip"),
            "sha256": hash_of_weights(teacher),
            "env_steps": env_steps,
            "num_obs": teacher.num_obs,
            "num_choices": teacher.num_choices,
            "parameters": sum(parameter.numel() for parameter in teacher.parameters()),
        }

    def measure_references(self, game: Game) -> dict[str, Any]:
        """Measure a teacher and random choices from the held-out starts."""
        from held_out_starts import SEED, opened

        from foundation.core.errors import UserError
        from foundation.engines.base import EnvCapabilities
        from foundation.policies.actors import RandomActor
        from foundation.teachers import TeacherPolicyWrapper

        with opened(game.task) as env:
            teacher = TeacherPolicyWrapper(self.stages.done[f"teacher {game.task}"]["checkpoint"])
            choices = EnvCapabilities.of(env).action_choices
            random = RandomActor(env.num_actions, SEED, choices=choices)
            found = {
                "teacher_return": float(self.returns(env, game, teacher).mean()),
                "random_return": float(self.returns(env, game, random).mean()),
            }
        if found["teacher_return"] <= found["random_return"]:
            raise UserError(
                f"--games {game.task}: the teacher needs more env steps, its return from held-out starts is "
                f"{found['teacher_return']:.2f}, that of random choices {found['random_return']:.2f}"
            )
        return found

    def returns(self, env: VecEnv, game: Game, actor: Actor) -> torch.Tensor:
        """Return an actor's returns from the held-out starts of a game. Shape: (num_envs,)."""
        from held_out_starts import player_of, returns_from_starts

        from foundation.teachers import TeacherPolicyWrapper

        teacher = TeacherPolicyWrapper(self.stages.done[f"teacher {game.task}"]["checkpoint"])
        return returns_from_starts(env, player_of(env, teacher), actor)

    def measure(self, game: Game, checkpoint: Path) -> dict[str, float]:
        """Measure a student from the held-out starts of a game."""
        from held_out_starts import opened

        from foundation.teachers import TeacherPolicyWrapper

        with opened(game.task) as env:
            return self.scored(game, self.returns(env, game, TeacherPolicyWrapper(checkpoint)))

    def scored(self, game: Game, returns: torch.Tensor) -> dict[str, float]:
        """Put the mean return from the held-out starts in proportion to the teacher's and to that of random choices.

        Args:
            game: The game.
            returns: Shape: (num_episodes,).

        Returns:
            ``score``, ``return`` and ``interval``, half the width of the score's 95 % interval, from the spread of the
            episodes.
        """
        known = self.stages.done[f"starts {game.task}"]
        scale = known["teacher_return"] - known["random_return"]
        mean = float(returns.mean())
        half = 1.96 * float(returns.std()) / math.sqrt(len(returns))
        return {"score": (mean - known["random_return"]) / scale, "return": mean, "interval": half / scale}

    def train_jointly(self, together: Together, seed: int) -> dict[str, Any]:
        """Train one DQN on several games; return what it was measured at in each."""
        from held_out_starts import opened
        from raptor.stages import python
        from train_joint_dqn import JointActor

        from foundation.teachers import TeacherPolicyWrapper

        folder = self.folder / "teachers" / f"joint_s{seed}"
        python(
            "scripts/train_joint_dqn.py",
            *("--tasks", *together.tasks, "--output", folder, "--seed", seed),
            *("--total_timesteps", together.joint_steps),
            log=self.folder / f"joint_s{seed}.log",
        )
        policy = TeacherPolicyWrapper(folder / "teacher.zip")
        found = {}
        for index, name in enumerate(together.tasks):
            actor = JointActor(policy, index, len(together.tasks), self.stages.done[f"teacher {name}"]["num_choices"])
            with opened(name) as env:
                found[name] = self.scored(GAMES[name], self.returns(env, GAMES[name], actor))
        return {"parameters": policy.num_parameters, "tasks": found}

    def shares(self, game: Game) -> list[float]:
        """Return the shares whose students differ: below a layer of one unit there are none."""
        shares = [share for share in SHARES if share >= game.smallest]
        widths = [self.width(game, share) for share in shares]
        return [share for share, width, wider in zip(shares, widths, [0, *widths], strict=False) if width != wider]

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
            *(f"distill.loss.name={loss}", f"distill.student.hidden_dims=[{width},{width}]", *game.overrides),
            *epochs(game.n_epochs),
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

    def distil_together(self, together: Together, seed: int) -> dict[str, Any]:
        """Distil the teachers of several games into one student; return what it was measured at in each."""
        import yaml
        from raptor.stages import newest_run, python

        tasks = []
        for name in together.tasks:
            teacher = self.stages.done[f"teacher {name}"]["checkpoint"]
            game = GAMES[name]
            entry = {"id": game.name, "task": name, "teacher": teacher, "num_envs": together.num_envs}
            tasks.append(entry | {"overrides": list(game.overrides)})
        listing = self.folder / f"tasks_{together.label}.yaml"
        listing.write_text(yaml.safe_dump({"format": "foundation-tasks-1", "tasks": tasks}), encoding="utf-8")
        width = self.width(GAMES[together.tasks[0]], MULTI_SHARE)
        run_name = f"together_{together.label}_{width}_s{seed}"
        python(
            DISTIL,
            *("--multi_task", listing, f"experiment={together.preset}", "--seed", seed, "--device", "cpu"),
            *(f"distill.student.hidden_dims=[{width},{width}]", *epochs(together.n_epochs)),
            *("--final_eval_episodes", FINAL_EPISODES, "--experiment_name", EXPERIMENT, "--run_name", run_name),
            log=self.folder / "students" / f"{run_name}.log",
        )
        run = newest_run(EXPERIMENT, run_name)
        summary = json.loads((run / "summary.json").read_text())
        return {
            "parameters": summary["parameters"]["student"],
            "tasks": {
                name: self.measure(GAMES[name], run / "tasks" / GAMES[name].name / "best_student.pt")
                | figures(summary["tasks"][GAMES[name].name])
                for name in together.tasks
            },
        }

    def untouched(self) -> dict[str, dict[str, Any]]:
        """Return the figures of the earlier study's games that have no teacher in this folder."""
        own = games_of(self.stages.done)
        return {name: stage for name, stage in self.earlier.items() if not set(tasks_of(name)) & set(own)}

    def report(self) -> None:
        """Write JSON, page and picture of what is done."""
        from raptor.stages import write_json

        kept = {
            name: {key: value for key, value in stage.items() if key not in ("checkpoint", "wall_seconds")}
            for name, stage in (self.untouched() | self.stages.done).items()
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.out.with_suffix(".json"), kept)
        path = self.out.with_suffix(".md")
        path.write_text(page(kept, self.out.name) + written_part(path), encoding="utf-8")
        draw(kept, self.out.with_suffix(".png"))


def epochs(number: int | None) -> list[str]:
    """Return the argument that sets the epochs; nothing where the preset's are taken."""
    return [] if number is None else ["--n_epochs", str(number)]


def read_figures(path: Path) -> dict[str, dict[str, Any]]:
    """Read the figures that a study has left in ``<out>.json``."""
    from foundation.core.errors import UserError

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--adopt {path}: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(stage, dict) for stage in found.values()):
        raise UserError(f"--adopt {path}: expected the JSON that this script writes beside its page")
    return found


def tasks_of(name: str) -> list[str]:
    """Return the games of a stage: of ``joint CartPole-v1+Acrobot-v1 s0`` both."""
    return name.split(" ")[1].split("+")


def same_teacher(earlier: dict[str, dict[str, Any]], done: dict[str, dict[str, Any]], task: str) -> bool:
    """Tell whether two studies have the same teacher of a game, by its weights' hash and its return.

    Args:
        earlier: Figures of one study. Where they have no hash, the mean returns of the teacher and of random choices
            from the held-out starts, to which the teacher itself leads, must be the same to the last bit.
        done: Figures of the other.
        task: The game.
    """
    known, own = (study.get(f"teacher {task}", {}) | study.get(f"starts {task}", {}) for study in (earlier, done))
    complete = all(name in figures for figures in (known, own) for name in ("teacher_return", "random_return"))
    return complete and all(own.get(name) == known[name] for name in TAKEN_UP if name in known)


def hash_of_weights(policy: torch.nn.Module) -> str:
    """Return the SHA-256 of a policy's weights by name, whatever file they lie in."""
    found = hashlib.sha256()
    for name, value in sorted(policy.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().numpy().tobytes())
    return found.hexdigest()


def figures(summary: dict[str, Any]) -> dict[str, float]:
    """Return what is kept of a run's summary, which is of ordinary starts."""
    return {
        "ordinary_score": summary["normalized_score"],
        "ordinary_return": summary["best_student_return"],
        "ordinary_teacher_return": summary["teacher_return"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study."""
    Study(parse(argv)).run()
    return 0


if __name__ == "__main__":
    from foundation.cli.command import run_command

    sys.exit(run_command(main))
