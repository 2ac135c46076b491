"""What each part of the many-teacher distillation brings: one axis at a time, around one setting.

    python scripts/raptor_ablation.py --manifest logs/raptor/16/teachers/teachers.yaml
    python scripts/raptor_ablation.py --manifest ... --axes hidden_size observation_noise
    python scripts/raptor_ablation.py --manifest ... --quick         # tiny sizes, to see that it runs
    python scripts/raptor_ablation.py --manifest ... --list          # what would be run

A finished run's figures are kept in ``<folder>/<setting>.json``, and not measured again. Settings that several axes
share are run once. Sets of fewer teachers are written beside the manifest. Writes ``<out>_<axis>.png``,
``<out>_ablation.json`` and ``<out>_ablation.md`` of all axes that are finished, those of earlier calls too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

HELD_OUT_SEED, FLIGHT_SEED = 1_000_003, 77
NUM_ACTIVE_SHARE = 4
"""One teacher in so many is active where they are selected."""

EMPHASISED = "emphasised"
"""Nobody is left out, but the worst are learned from more often."""


@dataclass(frozen=True)
class Setting:
    """One run."""

    teacher_selection: str = "all"
    offset_correction: bool = False
    teacher_forcing: int = 10
    num_teachers: int = 16
    hidden_size: int = 16
    observation_noise: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        """Return a file name that tells all values."""
        return "-".join(f"{key}={value}".lower() for key, value in asdict(self).items())

    def tokens(self, n_epochs: int) -> list[str]:
        """Return the arguments of ``distillation.py`` for this setting."""
        from raptor_pipeline import EMPHASIS, noise_tokens

        selection = "worst" if self.teacher_selection == EMPHASISED else self.teacher_selection
        tokens = ["--n_epochs", str(n_epochs), "--epoch_teacher_forcing", str(min(self.teacher_forcing, n_epochs))]
        tokens += ["--seed", str(self.seed), "--teacher_selection", selection]
        if self.teacher_selection != "all":
            tokens += ["--num_active_teachers", str(max(1, self.num_teachers // NUM_ACTIVE_SHARE))]
        if self.teacher_selection == EMPHASISED:
            tokens.append(f"distill.teacher.emphasis={EMPHASIS}")
        if self.offset_correction:
            tokens.append("--position_offset_correction")
        tokens.append(f"distill.student.hidden_size={self.hidden_size}")
        return tokens + (noise_tokens() if self.observation_noise else [])


AXES: dict[str, list[Any]] = {
    "teacher_selection": ["all", "best", "worst", "random", EMPHASISED],
    "offset_correction": [False, True],
    "teacher_forcing": [0, 10, 50],
    "num_teachers": [1, 4, 16],
    "hidden_size": [8, 16, 32, 64],
    "observation_noise": [False, True],
}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from foundation.cli.parser import ScriptParser

    parser = ScriptParser(__doc__)
    parser.add_argument("--manifest", type=Path, required=True, help="teachers.yaml; the first sixteen are used")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES), help="which (default: all)")
    parser.add_argument("--n_epochs", type=int, default=100, help="epochs of each run (default: %(default)s)")
    parser.add_argument("--num_envs", type=int, default=512, help="environments of each run (default: %(default)s)")
    parser.add_argument("--held_out", type=int, default=100, help="vehicles not trained on (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=4, help="episodes on each vehicle (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each setting (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("logs/raptor_ablation"), help="of the finished runs")
    parser.add_argument("--out", type=Path, help="files to write, without suffix (default: docs/results/raptor)")
    parser.add_argument("--list", action="store_true", help="print the settings and run nothing")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    args = parser.read(argv)
    for name in ("n_epochs", "num_envs", "held_out", "episodes", "seeds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, it is {getattr(args, name)}")
    if args.quick:
        args.n_epochs, args.num_envs, args.held_out, args.episodes = 2, 16, 4, 1
        args.folder = args.folder / "quick"
    args.out = args.out or (args.folder / "raptor" if args.quick else Path("docs/results/raptor"))
    return args


def settings_of(axis: str, seed: int, most: int) -> list[Setting]:
    """Return an axis's settings.

    Args:
        axis: A key of ``AXES``.
        seed: Of the runs.
        most: Teachers that there are; no setting has more.
    """
    base = Setting(num_teachers=min(Setting.num_teachers, most), seed=seed)
    values = dict.fromkeys(min(v, most) for v in AXES[axis]) if axis == "num_teachers" else AXES[axis]
    return [replace(base, **{axis: value}) for value in values]


def finished(args: argparse.Namespace, setting: Setting) -> dict[str, Any] | None:
    """Return the figures of a run that is done, or None.

    Raises:
        UserError: If it was done with other sizes.
    """
    from foundation.core.errors import UserError

    path = args.folder / f"{setting.name}.json"
    if not path.exists():
        return None
    saved = json.loads(path.read_text())
    if saved["sizes"] != sizes_of(args):
        raise UserError(f"'{path}' was measured with other sizes ({saved['sizes']}): use another --folder.")
    return saved


def sizes_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return what must be alike in all runs of a folder."""
    names = ("n_epochs", "num_envs", "held_out", "episodes")
    return {name: getattr(args, name) for name in names} | {"manifest": str(args.manifest)}


class Ablation:
    """Runs settings and keeps their figures."""

    def __init__(self, args: argparse.Namespace):
        """Read the teachers."""
        from raptor.flights import flown_teachers

        self.args = args
        self.entries = flown_teachers(args.manifest)

    def run(self) -> None:
        """Run what has not been run, and draw."""
        from raptor.stages import write_json

        axes = {axis: self.settings_of(axis) for axis in AXES}
        plan = list(dict.fromkeys(setting for axis in self.args.axes for each in axes[axis] for setting in each))
        missing = [setting for setting in plan if finished(self.args, setting) is None]
        print(f"==> {len(plan)} runs, {len(plan) - len(missing)} of them done before", flush=True)
        if self.args.list:
            for setting in plan:
                print(("done     " if finished(self.args, setting) else "to be run"), setting.name)
            return
        for number, setting in enumerate(missing, 1):
            print(f"==> {number} of {len(missing)}: {setting.name}", flush=True)
            write_json(self.args.folder / f"{setting.name}.json", self.measure(setting))
        self.report({axis: seeds for axis, seeds in axes.items() if self.is_finished(seeds)})

    def settings_of(self, axis: str) -> list[list[Setting]]:
        """Return an axis's settings, a list of them for each seed."""
        return [settings_of(axis, seed, len(self.entries)) for seed in range(self.args.seeds)]

    def is_finished(self, seeds: list[list[Setting]]) -> bool:
        """Whether an axis can be reported: asked for now, or run to its end before."""
        return all(finished(self.args, setting) is not None for settings in seeds for setting in settings)

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Distil with one setting and fly the student on its own and on held-out vehicles."""
        from raptor.flights import fly, load_flyer
        from raptor.stages import TASK, cpu_seconds, newest_run, python

        from foundation.tasks.quadrotor.sim.vehicles import sample_vehicles, to_dict

        args, name = self.args, setting.name
        manifest, vehicles = self.subset(setting.num_teachers)
        num_envs = -(-args.num_envs // len(vehicles)) * len(vehicles)
        sizes: list[object] = ["--num_envs", num_envs, "distill.final_eval_episodes=64"]
        sizes += ["--num_eval_episodes", len(vehicles), "--eval_interval", max(1, args.n_epochs // 5)]
        begun = cpu_seconds()
        python(
            "foundation/rsl_rl/distillation.py",
            *("--task", TASK, "--engine", "torch", "--device", "cpu"),
            *("--teacher_checkpoint", manifest, "--experiment_name", "raptor_ablation", "--run_name", name),
            *("experiment=raptor", *sizes, *setting.tokens(args.n_epochs)),
            log=args.folder / "output" / f"{name}.log",
        )
        run = newest_run("raptor_ablation", name)
        student = load_flyer(run / "best_student.pt")[0]
        held_out = sample_vehicles(args.held_out, HELD_OUT_SEED)
        files = _write_vehicles(args.folder / "held_out", [to_dict(held_out, i) for i in range(args.held_out)])
        summary = json.loads((run / "summary.json").read_text())
        return {
            "setting": asdict(setting),
            "sizes": sizes_of(args),
            "cpu_seconds": cpu_seconds() - begun,
            "return_ratio": summary.get("return_ratio"),
            "training": fly(student, "torch", vehicles, args.episodes, FLIGHT_SEED).plain(),
            "held_out": fly(student, "torch", files, args.episodes, FLIGHT_SEED).plain(),
        }

    def subset(self, number: int) -> tuple[Path, list[str]]:
        """Write a manifest of the first teachers; return it and their vehicles."""
        from raptor.stages import TASK

        from foundation.teachers.manifest import write_manifest

        entries = self.entries[:number]
        vehicles = [str(entry.vehicle) for entry in entries]
        if number == len(self.entries):
            return self.args.manifest, vehicles
        path = self.args.manifest.parent / f"first_{number}.yaml"  # beside the agent's parameters
        write_manifest(path, entries, TASK)
        return path, vehicles

    def report(self, axes: dict[str, list[list[Setting]]]) -> None:
        """Draw a picture of each axis, and write all figures as a table and as JSON."""
        from raptor.report import draw_axis
        from raptor.stages import write_json

        lines = ["| axis | value | return ratio | terminated | held-out return | terminated | error [cm] | CPU [s] |"]
        lines.append("|---|---|---:|---:|---:|---:|---:|---:|")
        everything: dict[str, Any] = {}
        for axis, seeds in axes.items():
            rows = []
            for settings in zip(*seeds, strict=True):
                runs = [finished(self.args, setting) for setting in settings]
                row = mean_of([run for run in runs if run is not None])
                value = str(getattr(settings[0], axis)).lower().replace("true", "on").replace("false", "off")
                rows.append((value, row))
                lines.append(table_row(axis, value, row))
            everything[axis] = dict(rows)
            draw_axis(axis.replace("_", " "), rows, Path(f"{self.args.out}_{axis}.png"))
        table = "\n".join(lines) + "\n"
        text = f"# What each part brings\n\n{heading(self.args, len(self.entries))}\n\n{table}"
        write_json(Path(f"{self.args.out}_ablation.json"), {"sizes": sizes_of(self.args), "axes": everything})
        Path(f"{self.args.out}_ablation.md").write_text(text, encoding="utf-8")
        print(table)


def _write_vehicles(folder: Path, vehicles: list[dict[str, Any]]) -> list[str]:
    from raptor.stages import write_json

    files = [folder / f"quad_{index:04}.json" for index in range(len(vehicles))]
    for path, data in zip(files, vehicles, strict=True):
        write_json(path, data)
    return [str(path) for path in files]


def mean_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the runs of several seeds; what one of them lacks is left out of its mean."""

    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    row: dict[str, Any] = {key: mean([run[key] for run in runs]) for key in ("return_ratio", "cpu_seconds")}
    for where in ("training", "held_out"):
        row[where] = {
            key: mean([run[where][key] for run in runs])
            for key in ("mean_return", "terminated", "error", "error_median")
        }
    return row | {"seeds": len(runs)}


def heading(args: argparse.Namespace, teachers: int) -> str:
    """Say what the table is of."""
    base = Setting(num_teachers=min(Setting.num_teachers, teachers))
    runs = f"mean of {args.seeds} runs" if args.seeds > 1 else "one run"
    return (
        f"`scripts/raptor_ablation.py`: one thing at a time around {base.num_teachers} teachers, all selected, no "
        f"offset correction, {base.teacher_forcing} epochs of teacher forcing, {base.hidden_size} units and no noise; "
        f"`experiment=raptor` with {args.n_epochs} epochs and {args.num_envs} environments; each row the {runs}.\n"
        f"Return ratio (student / teachers) and the first share terminated are on the teachers' vehicles, the rest on "
        f"{args.held_out} held-out ones, {args.episodes} episodes on each."
    )


def table_row(axis: str, value: str, row: dict[str, Any]) -> str:
    """Write one line of the table."""
    ratio, error = row["return_ratio"], row["held_out"]["error"]
    cells = [axis.replace("_", " "), value, "–" if ratio is None else f"{100 * ratio:.1f} %"]
    cells += [f"{100 * row['training']['terminated']:.1f} %", f"{row['held_out']['mean_return']:.1f}"]
    cells += [f"{100 * row['held_out']['terminated']:.1f} %", "–" if error is None else f"{100 * error:.1f}"]
    return "| " + " | ".join([*cells, f"{row['cpu_seconds']:.0f}"]) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ablation and return its exit code."""
    from foundation.cli.command import run_command

    return run_command(lambda arguments: Ablation(parse(arguments)).run(), argv)


if __name__ == "__main__":
    sys.exit(main())
