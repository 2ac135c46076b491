"""From nothing to one policy for many quadrotors: sample, train teachers, distil, fly, report (see ``raptor.sh``).

    python scripts/raptor_pipeline.py 64
    python scripts/raptor_pipeline.py 64 --quick                      # tiny sizes, to see that it runs
    python scripts/raptor_pipeline.py 64 --teachers DIR/teachers.yaml # with teachers that are there already
    python scripts/raptor_pipeline.py 64 -- --n_epochs 200 distill.student.hidden_size=32

Writes ``stages.json``, ``flights.json``, ``table.md``, ``figure.png`` to ``logs/raptor/<number>``. What follows ``--``
goes to ``distillation.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

HELD_OUT_SEED, FLIGHT_SEED = 1_000_003, 77
ENGINES = ("torch", "l2f")
"""Simulators that everything is flown in."""
CRAZYFLIE_EPISODES = 1024
"""Flown on the one vehicle."""
SLOW = 2.0
"""A narrower limit of the velocity [m/s], the default task's: large vehicles begin up to two metres away, and a policy
that flies there fast passes it."""
EMPHASISED_SHARE, EMPHASIS = 8, 8
"""One teacher in so many is emphasised, and its rows are drawn so many times as often."""
DEPLOYED, MIN_WEIGHT, MAX_WEIGHT, WEIGHT_EACH = "crazyflie", 16, 255, 2 / 9
"""The vehicle that the student is to be deployed on; how many times as often its rows are drawn at least, at most, and
for each teacher: beside 72 and beside 1000 others it is about a fifth of what is learned from."""
FIRST_USED = {
    "held_out": "held-out vehicles",
    "distillation": "distillation",
    "observation_noise": "distillation",
    "episodes": "flights",
}
"""Settings that may be changed until their stage is done: nobody should train teachers again for a typing mistake."""
NARROW = "_slow"
"""What the names of the sets end with that are flown with it."""
NOISE = {"position": 0.005, "orientation": 0.005, "velocity": 0.01, "body_rates": 0.02}
"""Of the student's observations, where asked for: metres, entries of the rotation matrix, m/s, rad/s."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from foundation.cli.cli_args import seed
    from foundation.cli.parser import ScriptParser

    parser = ScriptParser(__doc__)
    parser.add_argument(
        "num_teachers", nargs="?", type=int, default=16, help="sampled vehicles, each with a teacher (%(default)s)"
    )
    parser.add_argument("--teachers", type=Path, metavar="MANIFEST", help="use these; nothing is sampled or trained")
    parser.add_argument("--folder", type=Path, help="where everything goes (default: logs/raptor/<number>)")
    parser.add_argument("--held_out", type=int, default=500, help="vehicles that nobody was trained on (%(default)s)")
    parser.add_argument("--episodes", type=int, default=4, help="episodes on each vehicle (default: %(default)s)")
    parser.add_argument(
        "--seed", type=seed, default=0, help="of the vehicles and of the training (default: %(default)s)"
    )
    parser.add_argument("--device", default="cpu", help="of the training (default: %(default)s)")
    parser.add_argument(
        "--real_vehicles",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train on the registry of real vehicles (Crazyflie and others) beside the sampled ones (default: on)",
    )
    parser.add_argument("--observation_noise", action="store_true", help="noise that only the student sees")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, reaches nothing")
    arguments = list(sys.argv[1:] if argv is None else argv)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser.read(arguments[:cut])
    args.distillation = arguments[cut + 1 :]
    if min(args.num_teachers, args.held_out, args.episodes) < 1:
        parser.error("the number of teachers, --held_out and --episodes must be at least 1")
    if args.quick:
        args.held_out, args.episodes = min(args.held_out, 8), 1
    return args


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what decides a folder's results, as plain values."""
    plain = {key: value for key, value in vars(args).items() if key != "folder"}
    return plain | {"teachers": None if args.teachers is None else str(args.teachers)}


class Pipeline:
    """The stages of one folder."""

    def __init__(self, args: argparse.Namespace):
        """Open, or begin, the folder."""
        from raptor.stages import Stages, checked_tokens

        from foundation.core.devices import resolve_device

        self.args = args
        self.folder: Path = args.folder or Path("logs/raptor") / str(args.num_teachers)
        self.tokens = checked_tokens(args.distillation)
        resolve_device(args.device)
        self.stages = Stages(self.folder, settings_of(args), FIRST_USED)
        self.manifest: Path = args.teachers or self.folder / "teachers" / "teachers.yaml"
        self.vehicles, self.held_out = self.folder / "vehicles", self.folder / "held_out"

    def run(self) -> None:
        """Run every stage that has not been run; what the last ones need is checked before the first."""
        from raptor.flights import check_needed

        if self.args.teachers is not None:
            self._names()  # refuses now what would fail after the distillation
        if "flights" not in self.stages.done:
            check_needed()
        if self.args.teachers is None:
            self.stages.run("vehicles", self.sample)
            self.stages.run("teachers", self.train)
        self.stages.run("held-out vehicles", self.sample_held_out)
        run = Path(self.stages.run("distillation", self.distil)["run"])
        self.stages.run("flights", lambda: self.fly(run))
        self.report(run)

    def sample(self) -> None:
        """Sample the vehicles of the training."""
        from foundation.tasks.quadrotor.sim.vehicle_folder import write_registry

        self._sample(self.vehicles, self.args.num_teachers, self.args.seed)
        if self.args.real_vehicles:
            write_registry(self.vehicles)

    def sample_held_out(self) -> None:
        """Sample the vehicles that nobody is trained on, and write the Crazyflie beside them."""
        from raptor.stages import write_json

        from foundation.tasks.quadrotor.sim.vehicles import crazyflie, to_dict

        self._sample(self.held_out, self.args.held_out, self.args.seed + HELD_OUT_SEED)
        write_json(self.folder / "crazyflie.json", to_dict(crazyflie(), 0))

    def _sample(self, folder: Path, number: int, seed: int) -> None:
        from raptor.stages import write_json

        from foundation.tasks.quadrotor.sim.vehicles import sample_vehicles, to_dict

        vehicles = sample_vehicles(number, seed)
        width = len(str(number - 1))
        for index in range(number):
            write_json(folder / f"quad_{index:0{max(4, width)}}.json", to_dict(vehicles, index))

    def train(self) -> None:
        """Train a teacher for every vehicle."""
        from raptor.stages import python

        quick = TEACHERS_QUICK if self.args.quick else ()
        begun = ("--resume",) if (self.manifest.parent / "training_state.pt").exists() else ()
        python(
            "scripts/train_teachers.py",
            *("--vehicles", self.vehicles, "--output", self.manifest.parent),
            *("--seed", self.args.seed, "--device", self.args.device, *quick, *begun),
            log=self.folder / "teachers.log",
        )

    def _names(self) -> list[str]:
        """Name the teachers that have not failed."""
        from raptor.flights import flown_teachers

        return [entry.name for entry in flown_teachers(self.manifest)]

    def distil(self) -> dict[str, Any]:
        """Distil all teachers into one student; a run that was stopped goes on."""
        from raptor.stages import TASK, begun_run, newest_run, python

        args, script, log = self.args, "foundation/rsl_rl/distillation.py", self.folder / "distillation.log"
        name = self.folder.resolve().name
        stopped = begun_run("raptor", name, self.manifest, self.stages.begun["distillation"]["since"])
        if stopped is not None:
            python(script, "--resume", "--load_run", stopped, log=log)
            return {"run": str(stopped)}
        noise = noise_tokens() if args.observation_noise else []
        quick = ["--n_epochs", 4, "--num_eval_episodes", 16, "distill.final_eval_episodes=16"] if args.quick else []
        python(
            script,
            *("--task", TASK, "--engine", "torch", "--device", args.device),
            *("--teacher_checkpoint", self.manifest, "--experiment_name", "raptor", "--run_name", name),
            *("--seed", args.seed, "experiment=raptor", *emphasis_tokens(self._names()), *noise, *quick, *self.tokens),
            log=log,
        )
        return {"run": str(newest_run("raptor", name))}

    def fly(self, run: Path) -> None:
        """Fly the student, the teachers and the published policy on all sets of vehicles in both simulators."""
        from raptor.flights import fly, load_flyer, published_policy
        from raptor.stages import write_json

        teachers, vehicles = load_flyer(self.manifest)
        policies = {"student": load_flyer(run / "best_student.pt")[0]}
        published = published_policy()
        if published is None:
            print(
                "    the package 'foundation-policy' is not installed (pip install -e '.[raptor]' in the clone): "
                "the published policy is left out",
                flush=True,
            )
        else:
            policies["published"] = load_flyer(published)[0]
        held_out = [str(path) for path in sorted(self.held_out.glob("*.json"))]
        real = [str(self.folder / "crazyflie.json")]
        sets = {"training": vehicles, "held_out": held_out, "crazyflie": real}
        sets |= {name + NARROW: files for name, files in sets.items()}
        flights: dict[str, Any] = {}
        for where, files in sets.items():
            flyers = {"teachers": teachers, **policies} if files is vehicles else policies
            each = CRAZYFLIE_EPISODES if files is real else self.args.episodes
            for engine in ENGINES:
                limit = SLOW if where.endswith(NARROW) else None
                flown = {name: fly(policy, engine, files, each, FLIGHT_SEED, limit) for name, policy in flyers.items()}
                flights.setdefault(where, {})[engine] = {name: flight.plain() for name, flight in flown.items()}
        write_json(self.folder / "flights.json", flights)

    def report(self, run: Path) -> None:
        """Write the table and the figure, and print the table."""
        from raptor.report import draw, learning_curve, markdown

        flights = json.loads((self.folder / "flights.json").read_text())
        summary = json.loads((run / "summary.json").read_text())
        table = markdown(len(self._names()), self.stages.done, flights, summary)
        (self.folder / "table.md").write_text(table, encoding="utf-8")
        draw(flights, learning_curve(run), self.folder / "figure.png")
        print(table)
        print(f"==> {self.folder}: table.md, figure.png, flights.json, stages.json")


TEACHERS_QUICK: tuple[object, ...] = ("--quick", "--min_return", -1000)


def emphasis_tokens(names: Sequence[str]) -> list[str]:
    """Return the arguments by which the student learns most from some of the vehicles.

    From those that it flies worst: one in sixty that it crashes at once costs more return than all the others together
    have left to gain. And from the one that it is to be deployed on, where that is among them.
    """
    if len(names) < 2:
        return []
    chosen = ["--num_active_teachers", str(max(1, len(names) // EMPHASISED_SHARE)), "--teacher_selection", "worst"]
    weight = min(MAX_WEIGHT, max(MIN_WEIGHT, round(WEIGHT_EACH * len(names))))
    deployed = [f"distill.teacher.weights.{DEPLOYED}={weight}"] if DEPLOYED in names else []
    return [*chosen, f"distill.teacher.emphasis={EMPHASIS}", *deployed]


def noise_tokens() -> list[str]:
    """Return the overrides that give the student's observations noise."""
    return [f"env.observation_noise.deployable.{name}={value}" for name, value in NOISE.items()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the pipeline and return its exit code."""
    from foundation.cli.command import run_command

    return run_command(lambda arguments: Pipeline(parse(arguments)).run(), argv)


if __name__ == "__main__":
    sys.exit(main())
