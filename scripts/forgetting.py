"""How much a policy that chases forgets when it learns to evade, by method: the forgetting matrix, a table, a picture.

    python scripts/forgetting.py                          # every method, three seeds
    python scripts/forgetting.py --methods ppo kl --seeds 0
    python scripts/forgetting.py --quick                  # tiny sizes, to see that it runs

The first stage is a teacher that chases (the shipped one unless ``--chase`` names another), the same for all seeds; the
second is ``finetune.py`` on the evasion. Every finished stage is kept in ``<folder>/stages.json`` with its figures and
is not run again: the same command goes on, also with more seeds or methods. Writes ``<out>.json``, ``<out>.md`` and
``<out>.png`` of what is finished, and TensorBoard's files under ``<folder>/tensorboard``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from continual.methods import EVADE, METHODS, PLAIN, TASKS, distil_tokens, joint_tokens

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = {name: ROOT / "foundation" / "assets" / "teachers" / name / "model.pt" for name in TASKS}
EXPERIMENT = "forgetting"
EXPLORATION = 0.3
"""Deviation of the actions at the start of the second stage, as of an untrained policy: one that has converged explores
too little to learn another task."""
PPO = [
    *("--init_std", str(EXPLORATION), "--critic_warmup_iterations", "5"),
    *("agent.algorithm.gamma=0.99", "agent.algorithm.num_learning_epochs=3"),
]
"""Settings of PPO in all second stages. A pursuer is a second away, which the agent's own discount of 0.98 (half a
second) hardly sees: with it PPO rests for a hundred iterations, more or fewer, at half of the score."""
MEASURED = " measured"
"""Ends the name of the stage that measures what another has left."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from foundation.cli.cli_args import positive_int, seed
    from foundation.cli.parser import ScriptParser

    parser = ScriptParser(__doc__)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), default=list(METHODS), help="(default: all)")
    both = "distil both teachers into one student too, which knows both tasks at once (on)"
    parser.add_argument("--joint", action=argparse.BooleanOptionalAction, default=True, help=both)
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0, 1, 2], help="of the second stage (0 1 2)")
    parser.add_argument("--iterations", type=positive_int, default=200, help="of the second stage (%(default)s)")
    parser.add_argument("--episodes", type=positive_int, default=512, help="of each measurement (%(default)s)")
    parser.add_argument("--chase", type=Path, default=SHIPPED["chase"], metavar="PATH", help="teacher that chases")
    parser.add_argument("--evade", type=Path, default=SHIPPED["evade"], metavar="PATH", help="teacher that evades")
    parser.add_argument("--folder", type=Path, default=Path("logs/forgetting"), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/forgetting"), help="(default: %(default)s)")
    others = "folders of the same study that ran elsewhere, or beside this one: their stages are reported too"
    parser.add_argument("--adopt", nargs="+", type=Path, default=[], metavar="FOLDER", help=others)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, reaches nothing")
    args = parser.read(argv)
    if args.quick:
        args.iterations, args.episodes, args.seeds = 2, 16, args.seeds[:1]
    return args


class Study:
    """The stages of one folder."""

    def __init__(self, args: argparse.Namespace):
        """Open, or begin, the folder."""
        from raptor.stages import Stages

        from foundation.core.errors import UserError

        self.args = args
        given: dict[str, Path] = {"chase": args.chase, "evade": args.evade}
        for name, path in given.items():
            if not path.is_file():
                raise UserError(f"--{name} {path}: no such file")
        self.teachers = {name: path.resolve() for name, path in given.items()}
        settings = {"iterations": args.iterations, "episodes": args.episodes, "quick": args.quick}
        settings |= {name: str(path) for name, path in self.teachers.items()}
        self.folder: Path = args.folder.resolve()
        self.stages = Stages(self.folder, settings)
        self.dataset = self.folder / "chase_transitions"

    def measure(self, checkpoint: Path | None) -> dict[str, dict[str, float]]:
        """Measure a checkpoint, or random actions, on both tasks."""
        from continual.measure import measure

        return measure(checkpoint, TASKS, self.teachers, self.args.episodes)

    def references(self) -> dict[str, Any]:
        """Measure random actions and both teachers."""
        return {"random": self.measure(None)} | {name: self.measure(path) for name, path in self.teachers.items()}

    def distil(self) -> dict[str, Any]:
        """Distil the teacher that chases into a student of its own size, and keep the transitions."""
        import shutil

        from raptor.stages import newest_run, python

        from foundation.teachers import TeacherPolicyWrapper

        shutil.rmtree(self.dataset, ignore_errors=True)  # of an attempt that did not end
        dims = TeacherPolicyWrapper(str(self.teachers["chase"])).hidden_dims
        tokens = distil_tokens(self.teachers["chase"], self.dataset, dims, seed=0)
        tokens += ["--n_epochs", "2"] if self.args.quick else []
        names = ("--experiment_name", EXPERIMENT, "--run_name", "student")
        python("foundation/rsl_rl/distillation.py", *tokens, *names, log=self.folder / "student.log")
        student = newest_run(EXPERIMENT, "student") / "best_student.pt"
        return {"checkpoint": str(student.resolve())}

    def joint(self) -> dict[str, Any]:
        """Distil both teachers into one student with a head for each task: what is possible when both are at hand."""
        return self.distil_together(self.teachers, "joint", seed=0)

    def compress(self, name: str, seed: int) -> dict[str, Any]:
        """Distil the chase's teacher, and what plain PPO has learned after it, into one student."""
        teachers = {**self.teachers, "evade": Path(self.stages.done[f"{PLAIN}_s{seed}"]["checkpoint"])}
        return self.distil_together(teachers, f"{name}_s{seed}", seed)

    def distil_together(self, teachers: Mapping[str, Path], run_name: str, seed: int) -> dict[str, Any]:
        """Distil a teacher of each task into one student with a head for each, and measure it on both tasks."""
        import yaml
        from continual.measure import measure
        from raptor.stages import newest_run, python

        tasks = [{"id": name, "task": TASKS[name], "teacher": str(path)} for name, path in teachers.items()]
        listing = self.folder / f"{run_name}.yaml"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text(yaml.safe_dump({"format": "foundation-tasks-1", "tasks": tasks}), encoding="utf-8")
        python(
            "foundation/rsl_rl/distillation.py",
            *("--multi_task", listing, "--experiment_name", EXPERIMENT, "--run_name", run_name, "--seed", seed),
            *joint_tokens(self.args.quick),
            log=self.folder / f"{run_name}.log",
        )
        run = newest_run(EXPERIMENT, run_name)
        figures = {}
        for name, task in TASKS.items():
            student = run / "tasks" / name / "best_student.pt"
            figures |= measure(student, {name: task}, self.teachers, self.args.episodes)
        return {"figures": figures}

    def fine_tune(self, name: str, seed: int) -> dict[str, Any]:
        """Run the second stage by one method, or resume it where it was stopped."""
        from raptor.stages import interrupted_run, newest_run, python

        method = METHODS[name]
        start = Path(self.stages.done["distil"]["checkpoint"]) if method.distilled else self.teachers["chase"]
        run_name = f"{name}_s{seed}"
        tokens = [
            *("--task", EVADE, "--checkpoint", start, "--seed", seed, "--max_iterations", self.args.iterations),
            *("--experiment_name", EXPERIMENT, "--run_name", run_name),
            *("--eval_interval", 10, "--final_eval_episodes", 16),  # it is measured on both tasks afterwards
            *PPO,
            *method.tokens(self.dataset),
        ]
        since = self.stages.begun[run_name]["since"]
        stopped = interrupted_run(EXPERIMENT, run_name, "finetune", since)
        if stopped is not None:
            tokens = ["--resume", "--experiment_name", EXPERIMENT, "--load_run", stopped.name]
        python("foundation/rsl_rl/finetune.py", *tokens, log=self.folder / f"{run_name}.log")
        end = newest_run(EXPERIMENT, run_name, kind="finetune") / "best_student.pt"
        return {"checkpoint": str(end.resolve())}

    def measure_stage(self, stage: str) -> None:
        """Measure what a stage has left, as a stage of its own."""
        checkpoint = Path(self.stages.done[stage]["checkpoint"])
        self.stages.run(f"{stage}{MEASURED}", lambda: {"figures": self.measure(checkpoint)})

    def run(self) -> None:
        """Run what is not done yet, one seed of all methods after the other, and report after each."""
        self.stages.run("references", self.references)
        self.stages.run("distil", self.distil)
        self.measure_stage("distil")
        if self.args.joint:
            self.stages.run("joint", self.joint)
        for seed in self.args.seeds:
            for name in self.args.methods:
                self.second_stage(name, seed)
                self.report()
        self.report()

    def second_stage(self, name: str, seed: int) -> None:
        """Run the second stage by one method, and measure what it has left."""
        stage = f"{name}_s{seed}"
        if not METHODS[name].compressed:
            self.stages.run(stage, lambda: self.fine_tune(name, seed))
            self.measure_stage(stage)
            return
        self.second_stage(PLAIN, seed)
        self.stages.run(stage, lambda: self.compress(name, seed))

    def report(self) -> None:
        """Write JSON, table, picture and TensorBoard's files of everything that is finished."""
        from continual.report import draw, findings, markdown, measures, page
        from raptor.stages import write_json

        from foundation.runs.metrics_writer import TensorBoardWriter

        done = self.stages.done
        known = done["references"]
        own = {name: known[name][name] for name in TASKS}
        found: dict[str, list[Any]] = {}
        ends: dict[str, list[Any]] = {}
        rows: list[dict[str, Any]] = []
        for key in sorted(done, key=self.order):
            name, _, seed = key.rpartition("_s")
            stage = done.get(f"{key}{MEASURED}", {}) | done[key]
            if name not in METHODS or key.endswith(MEASURED) or "figures" not in stage:
                continue
            method = METHODS[name]
            first = done[f"distil{MEASURED}"]["figures"] if method.distilled else known["chase"]
            result = measures(known["random"], own, [first, stage["figures"]])
            found.setdefault(method.label, []).append(result)
            ends.setdefault(method.label, []).append(stage["figures"])
            rows.append(
                {
                    "method": name,
                    "seed": int(seed),
                    "cpu_seconds": stage["cpu_seconds"],
                    "stages": [first, stage["figures"]],
                    "measures": result.tags(),
                    "matrix": result.matrix,
                }
            )
            writer = TensorBoardWriter(self.folder / "tensorboard" / key, purge_step=0)
            for number, scores in enumerate(result.matrix, 1):  # a row of the matrix after each stage
                row = {f"forgetting/score/{task}": score for task, score in zip(result.names, scores, strict=True)}
                writer.add_scalars(row if number < len(result.matrix) else row | result.tags(), number)
            writer.add_scalars(
                {
                    f"forgetting/js_divergence/{task}": values["js_divergence"]
                    for task, values in stage["figures"].items()
                    if "js_divergence" in values
                },
                len(result.matrix),
            )
            writer.close()
        references = dict(known)
        if "joint" in done:
            references["joint"] = done["joint"]["figures"]
        settings = {key: value for key, value in self.stages.settings.items() if key not in TASKS}
        write_json(self.args.out.with_suffix(".json"), {"settings": settings, "references": references, "runs": rows})
        if not found:
            return
        seeds = sorted({row["seed"] for row in rows})
        text = page(markdown(found, ends), findings(found), references, settings, seeds, self.args.out.name)
        self.args.out.with_suffix(".md").write_text(text, encoding="utf-8")
        draw(found, self.args.out.with_suffix(".png"))

    @staticmethod
    def order(stage: str) -> tuple[int, str]:
        """Sort second stages as the methods are listed, and others last."""
        names = list(METHODS)
        name = stage.rpartition("_s")[0]
        return names.index(name) if name in names else len(names), stage

    def adopt(self, folders: Sequence[Path]) -> None:
        """Take the stages that were done in other folders with the same settings and teachers.

        Raises:
            UserError: If one has other settings, or none.
        """
        from raptor.stages import Stages

        from foundation.core.errors import UserError

        for folder in folders:
            if not (folder / "stages.json").is_file():
                raise UserError(f"--adopt {folder}: there is no stages.json in it")
            self.stages.done = Stages(folder, self.stages.settings).done | self.stages.done
            if not self.dataset.is_dir():
                self.dataset = folder.resolve() / self.dataset.name  # beside the stage that collected them


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study."""
    args = parse(argv)
    study = Study(args)
    study.adopt(args.adopt)
    study.run()
    return 0


if __name__ == "__main__":
    from foundation.cli.command import run_command

    sys.exit(run_command(main))
