"""Federated distillation: sites with vehicles, teachers and transitions of their own, and one student of all.

    python scripts/federated.py --sites 4 --vehicles 8           # goes on where an earlier call stopped
    python scripts/federated.py --sites 2 --vehicles 2 --quick   # tiny sizes, to see that it runs

Samples vehicles and trains a teacher for each (or takes ``--teachers``), deals them out to the sites, and has every
site collect a dataset with its own teachers on its own vehicles. From these, with as many updates each, it trains: one
student of each site alone, one on all data pooled, and federations that average weights or answers once a round. All
are flown on every vehicle. Writes ``<out>.json`` and ``<out>.md``; everything else is in ``--folder``.
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

import torch
from benchmarks.ours import NoRunDir
from raptor.flights import flown_teachers, fly, load_flyer
from raptor.stages import TASK, Stages, newest_run, python, write_json

from foundation.cli.cli_args import positive_int
from foundation.cli.cli_args import seed as seed_number
from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.config.overrides import Overrides
from foundation.config.resolve import resolve_distillation_cfg
from foundation.core.errors import UserError
from foundation.core.files import load_json
from foundation.learning.federated import Federation, Shared, Site
from foundation.runs.offline import OfflineRunner
from foundation.students import student_cfg_class
from foundation.tasks.quadrotor.sim.vehicle_folder import write_vehicles
from foundation.tasks.quadrotor.sim.vehicles import sample_vehicles
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.manifest import write_manifest

FLIGHT_SEED = 77
WAYS: dict[str, str] = {
    "pooled": "all data in one place",
    "weights": "federated, weights averaged",
    "answers": "federated, answers averaged",
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--sites", type=positive_int, default=4, help="sites (default: %(default)s)")
    parser.add_argument("--vehicles", type=positive_int, default=8, help="vehicles, dealt out (default: %(default)s)")
    parser.add_argument("--teachers", type=Path, help="teachers.yaml with their vehicles, instead of training them")
    parser.add_argument("--rounds", type=positive_int, default=60, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--updates", type=positive_int, default=100, help="updates of each site in a round (%(default)s)"
    )
    parser.add_argument(
        "--epochs", type=positive_int, default=60, help="epochs of each site's collection (%(default)s)"
    )
    parser.add_argument(
        "--episodes", type=positive_int, default=32, help="flown on each vehicle (default: %(default)s)"
    )
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--folder", type=Path, default=Path("logs/federated"), help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("docs/results/federated"), help="files, without suffix")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, reaches nothing")
    args = parser.read(argv)
    if not 2 <= args.sites <= args.vehicles:
        parser.error("--sites must be at least 2, and at most --vehicles")
    if args.quick:
        args.rounds, args.updates, args.epochs, args.episodes = 2, 2, 2, 2
        args.folder, args.out = Path("logs/quick/federated"), Path("logs/quick/federated/result")
    return args


def deal(items: Sequence[Any], sites: int) -> list[list[Any]]:
    """Deal items out to the sites in turn."""
    return [list(items[site::sites]) for site in range(sites)]


class Study:
    """The stages of one folder."""

    def __init__(self, args: argparse.Namespace):
        """Open, or begin, the folder."""
        self.args = args
        self.folder: Path = args.folder
        names = ("sites", "vehicles", "teachers", "rounds", "updates", "epochs", "episodes", "seed", "quick")
        settings = {name: getattr(args, name) for name in names}
        settings["teachers"] = None if args.teachers is None else str(args.teachers)
        self.stages = Stages(self.folder, settings, {"rounds": "pooled", "updates": "pooled", "episodes": "flights"})
        self.manifest: Path = args.teachers or self.folder / "teachers" / "teachers.yaml"

    def run(self) -> None:
        """Run every stage that has not been run, and write the table."""
        if self.args.teachers is None:
            self.stages.run("vehicles", self.sample)
            self.stages.run("teachers", self.train_teachers)
        for site in range(self.args.sites):
            self.stages.run(f"site {site + 1} collects", lambda site=site: self.collect(site))
        for site in range(self.args.sites):
            self.stages.run(f"site {site + 1} alone", lambda site=site: self.train(f"site_{site}", [[site]]))
        every = list(range(self.args.sites))
        self.stages.run("pooled", lambda: self.train("pooled", [every]))
        for shared in ("weights", "answers"):
            self.stages.run(shared, lambda shared=shared: self.train(shared, [[site] for site in every], shared))
        self.stages.run("flights", self.fly)
        self.report()

    def sample(self) -> None:
        """Sample the vehicles."""
        write_vehicles(self.folder / "vehicles", sample_vehicles(self.args.vehicles, self.args.seed))

    def train_teachers(self) -> None:
        """Train a teacher for every vehicle."""
        quick = ("--quick", "--min_return", -1000) if self.args.quick else ()
        arguments = ("--vehicles", self.folder / "vehicles", "--output", self.manifest.parent, "--seed", self.args.seed)
        python("scripts/train_teachers.py", *arguments, *quick, log=self.folder / "teachers.log")

    def data(self, site: int) -> Path:
        """Return the folder of a site's transitions."""
        return self.folder / f"site_{site}" / "data"

    def collect(self, site: int) -> dict[str, Any]:
        """Collect a site's transitions in a run of its own, whose student acts from the eleventh epoch on."""
        entries = deal(flown_teachers(self.manifest), self.args.sites)[site]
        manifest = self.folder / f"site_{site}" / "teachers.yaml"
        manifest.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(manifest, entries, TASK)
        name = f"{self.folder.resolve().name}_site_{site}"
        few = ("--num_eval_episodes", 2, "distill.final_eval_episodes=2", "distill.teacher.check=false")
        small = few if self.args.quick else ()
        python(
            "foundation/rsl_rl/distillation.py",
            *("--task", TASK, "--engine", "torch", "--device", "cpu", "--teacher_checkpoint", manifest),
            *("--experiment_name", "federated", "--run_name", name, "--seed", self.args.seed + site),
            *("experiment=raptor", "--num_envs", 16 if self.args.quick else 128, "--n_epochs", self.args.epochs),
            *("--save_dataset", self.data(site), *small),
            log=self.folder / f"site_{site}" / "collection.log",
        )
        return {"run": str(newest_run("federated", name))}

    def runner(self, folders: Sequence[Path]) -> OfflineRunner:
        """Return a run from saved transitions; of several folders, the others' are added to the first's."""
        flags = {
            "offline": True,
            "device": "cpu",
            "seed": self.args.seed,
            "n_epochs": self.args.rounds,
            "dataset.load": str(folders[0]),
            "dataset.held_out": 0.05,
            "optimizer.updates_per_epoch": self.args.updates,
        }
        groups = {"experiment": "raptor", "student": "gru"}
        cfg = resolve_distillation_cfg(Overrides(groups=groups), flags, student_cfg_class=student_cfg_class)
        return OfflineRunner(cfg, NoRunDir())  # type: ignore[arg-type]  (it saves nothing)

    def train(self, name: str, parties: Sequence[Sequence[int]], shared: Shared = "weights") -> None:
        """Train a student and save it.

        Args:
            name: Of its file.
            parties: The sites whose data each party learns from; with one party nothing is shared.
            shared: What several parties average once a round.
        """
        runners = [[self.runner([self.data(site)]) for site in sites] for sites in parties]
        sites = [Site(own.learner, own.train, float(own.rows_to_learn_from)) for party in runners for own in party]
        first = runners[0][0]
        if len(parties) == 1:
            self.train_in_turns(sites)
        else:
            federation = Federation(sites, shared, self.public() if shared == "answers" else None)
            for number in range(self.args.rounds):
                losses = federation.round(number, [len(site.dataset) for site in sites])
                print(f"    round {number + 1}/{self.args.rounds}, losses {', '.join(f'{x:.5f}' for x in losses)}")
        path = self.folder / "students" / f"{name}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(first.student_checkpoint(self.args.rounds - 1), path)

    def train_in_turns(self, sites: Sequence[Site]) -> None:
        """Train one student on the data of all sites: an update from each in turn, as from one dataset."""
        federation = Federation(sites)  # for the moments of all observations
        learner = federation.sites[0].learner
        learner.cfg.optimizer.updates_per_epoch = 1
        for number in range(self.args.rounds):
            for _ in range(self.args.updates):
                for site in sites:
                    learner.learn(site.dataset, len(site.dataset), number)

    def public(self) -> torch.Tensor:
        """Return observations that every site may see: of the task's own vehicle, flown by its shipped teacher."""
        from benchmarks.common import STUDENT_GROUP, TEACHER_GROUP, make_env, shipped_teacher

        env = make_env(64, "cpu", self.args.seed + 1000)
        teacher = TeacherPolicyWrapper(str(shipped_teacher()))
        obs = env.get_observations()
        seen = []
        with torch.no_grad():
            for _ in range(50):
                seen.append(obs[STUDENT_GROUP].clone())
                obs = env.step(teacher.act(obs[TEACHER_GROUP]))[0]
        return torch.stack(seen)

    def fly(self) -> None:
        """Fly every student, and the teachers, on all vehicles."""
        teachers, vehicles = load_flyer(self.manifest)
        flights = {"teachers": fly(teachers, "torch", vehicles, self.args.episodes, FLIGHT_SEED).plain()}
        for path in sorted((self.folder / "students").glob("*.pt")):
            student = load_flyer(path)[0]
            flights[path.stem] = fly(student, "torch", vehicles, self.args.episodes, FLIGHT_SEED).plain()
        write_json(self.folder / "flights.json", flights)

    def report(self) -> None:
        """Write the figures and the table, and print the table."""
        flights = load_json(self.folder / "flights.json")
        if not isinstance(flights, dict):
            raise UserError(f"'{self.folder}' is corrupt: flights.json holds no flights; use another --folder")
        lines = table(flights, self.args.sites)
        self.args.out.parent.mkdir(parents=True, exist_ok=True)
        settings = {"settings": self.stages.settings, "flights": flights}
        self.args.out.with_suffix(".json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
        sizes = f"{self.args.sites} sites, {self.args.vehicles} vehicles, {self.args.rounds} rounds of "
        sizes += f"{self.args.updates} updates at each site"
        what = f"`python scripts/federated.py`: {sizes}. [How](../howto/federated.md)."
        head = ["# Federated distillation", "", what]
        text = "\n".join([*head, "", *lines, ""])
        self.args.out.with_suffix(".md").write_text(text, encoding="utf-8")
        print("\n".join(lines))


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def table(flights: dict[str, Any], sites: int) -> list[str]:
    """Return the table: each student's return on all vehicles, on those of the own site, and on the others'."""
    teacher = flights["teachers"]["returns"]
    shares: dict[str, list[float]] = {}
    for name, flight in flights.items():
        shares[name] = [100.0 * got / of for got, of in zip(flight["returns"], teacher, strict=True)]
    lines = [
        "| learned from | of the teachers' return | worst vehicle | own vehicles | other sites' | terminated |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, label in WAYS.items():
        if name in flights:
            ended = 100.0 * flights[name]["terminated"]
            lines.append(f"| {label} | {mean(shares[name]):.1f} % | {min(shares[name]):.1f} % | | | {ended:.1f} % |")
    for site in range(sites):
        name = f"site_{site}"
        own = shares[name][site::sites]
        others = [share for index, share in enumerate(shares[name]) if index % sites != site]
        ended = 100.0 * flights[name]["terminated"]
        lines.append(
            f"| site {site + 1} alone | {mean(shares[name]):.1f} % | {min(shares[name]):.1f} % | {mean(own):.1f} % | "
            f"{mean(others):.1f} % | {ended:.1f} % |"
        )
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    torch.set_num_threads(1)
    return run_command(lambda arguments: Study(parse(arguments)).run(), argv)


if __name__ == "__main__":
    sys.exit(main())
