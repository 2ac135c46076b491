"""Measure what 8-bit weights cost in flight: the exported files fly, rounded after training and trained with rounding.

    python scripts/int8_study.py              # distil what is not there yet, export, fly, write the page
    python scripts/int8_study.py --seeds 1    # of one seed

A student is distilled twice from each seed: as it is, and with ``distill.optimizer.int8_epochs``. Both are exported as
``c_int8`` and ``onnx_int8``, and the files fly the built-in task in a closed loop, from the initial states of the float
student. Runs and figures that are there are kept. Writes docs/results/int8.json and int8.md.
"""

from __future__ import annotations

import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from tensordict import TensorDict

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import LoadedPolicy, Overrides
from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.cli.studies import write_json
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes, load_json
from foundation.deploy import Policy
from foundation.export.bundle import Bundle, make_bundle
from foundation.export.c_int8 import int8_body
from foundation.export.efficiency import time_steps
from foundation.export.formats import compile_c, export, find_compiler
from foundation.policies.actors import PolicyActor, RandomActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.baselines import ratio_interval, scores
from foundation.rollout.evaluate import evaluate
from foundation.rsl_rl import distillation
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

ROOT = Path(__file__).resolve().parents[1]
TEACHER = ROOT / "foundation" / "assets" / "teachers" / "point_ctrl" / "model.pt"
GROUP = "deployable"
INT8_EPOCHS = 60
STUDENTS = {
    "mlp": ["experiment=fast_adam"],
    "gru": ["experiment=fast_gru", "student.learn_initial_state=true"],
}
"""Name -> how it is distilled: an MLP of 64 x 64, and the GRU of 2,084 parameters."""
TRAININGS = {"float": [], "int8": [f"distill.optimizer.int8_epochs={INT8_EPOCHS}"]}
"""How its weights were trained -> what is typed for it."""
FORMATS = {"so": "float32 C", "c_int8": "8-bit C", "onnx_int8": "8-bit ONNX"}
EPISODES = 256
EVALUATION_SEEDS = (1001, 1002, 1003, 1004)
ENOUGH = 0.98
"""Least score, in proportion to the float student's, of a student that was trained with rounding."""


def build_parser() -> ScriptParser:
    """Return the command's parser."""
    parser = ScriptParser(prog="int8_study.py", description=__doc__)
    parser.add_argument("--students", nargs="+", choices=STUDENTS, default=list(STUDENTS), help="(mlp gru)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], metavar="N", help="of the trainings (1 2 3)")
    parser.add_argument("--runs", default="logs/distillation/int8", metavar="FOLDER", help="where the runs are")
    parser.add_argument("--output", default=str(ROOT / "docs" / "results"), metavar="FOLDER", help="(docs/results)")
    parser.add_argument("--again", action="store_true", help="fly again what was flown")
    return parser


class ExportedActor:
    """Acts by an exported file, which keeps each environment's memory."""

    def __init__(self, path: Path) -> None:
        self.policy = Policy(path)

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones``, or everywhere."""
        self.policy.reset(None if dones is None else dones.numpy())

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return the file's actions. Shape: (num_envs, num_actions)."""
        return torch.from_numpy(self.policy.step(obs[GROUP].numpy()))


def run_of(folder: Path, student: str, training: str, seed: int) -> Path:
    """Return a finished run; it is distilled where there is none."""
    name = f"{student}_{training}_{seed}"

    def finished() -> list[Path]:
        return sorted(path for path in folder.glob(f"*_{name}") if (path / "summary.json").is_file())

    if not finished():
        argv = ["--task", "Isaac-Quadcopter-Point-Ctrl-v0", "--teacher_checkpoint", str(TEACHER), "--device", "cpu"]
        argv += ["--seed", str(seed), "--experiment_name", folder.name, "--run_name", name]
        argv += ["distill.final_eval_episodes=256"]  # the files are measured here
        argv += [*STUDENTS[student], f"student.obs_groups=[{GROUP}]", *TRAININGS[training]]
        if run_command(distillation.main, argv):
            raise UserError(f"the distillation of '{name}' did not end well: see above")
    return finished()[-1]


@dataclass(frozen=True)
class Flights:
    """Returns of a policy's episodes, in the order of the initial states, by evaluation seed."""

    returns: dict[int, torch.Tensor]

    @property
    def all(self) -> torch.Tensor:
        """All returns. Shape: (num_seeds * num_episodes,)."""
        return torch.cat(list(self.returns.values()))


def fly(actor: Any) -> Flights:
    """Fly the task from the initial states of every evaluation seed."""
    cfg = QuadcopterPointCtrlEnvCfg()
    cfg.scene.num_envs = EPISODES
    env = QuadcopterPointCtrlEnv(cfg)
    return Flights({seed: evaluate(env, actor, EPISODES, seed).returns for seed in EVALUATION_SEEDS})


def fly_student(policy: LoadedPolicy) -> Flights:
    """Fly a student as PyTorch computes it."""
    return fly(PolicyActor(policy.network, ObsSelector([GROUP])))


def baselines() -> dict[str, float]:
    """Return the mean returns of the teacher and of random actions."""
    teacher = load_policy(TEACHER, Overrides())
    flown = fly(PolicyActor(teacher.network, ObsSelector(["policy"])))
    random = fly(RandomActor(4, 0, "cpu"))
    return {"teacher": float(flown.all.mean()), "random": float(random.all.mean())}


def files_of(bundle: Bundle, folder: Path) -> dict[str, Path]:
    """Export a policy, and return what flies of each format."""
    made = {}
    for written in export(bundle, folder, list(FORMATS)):
        made[written.format] = written.files[0]
        if written.format == "c_int8":
            compiler = find_compiler()
            assert compiler is not None, "checked by 'so'"
            made["c_int8"] = written.files[1].with_suffix(".so")
            compile_c(compiler, written.files[1], made["c_int8"], shared=True)
    return made


def measure(run: Path, base: Flights, teacher: float, random: float) -> dict[str, Any]:
    """Fly the files of a run's student, and return the figures by format.

    Args:
        run: The run.
        base: The float student's flights.
        teacher: Mean return of the teacher.
        random: Mean return of random actions.
    """
    policy = load_policy(run / "best_student.pt", Overrides())
    bundle = make_bundle(policy)
    figures: dict[str, Any] = {}
    files = files_of(bundle, run / "exported")
    flights = {name: fly(ExportedActor(path)) for name, path in files.items()}
    for name, flown in flights.items():
        above, expected = flown.all - random, base.all - random
        figures[name] = {
            "return": float(flown.all.mean()),
            **scores(float(flown.all.mean()), teacher, random),
            "of_float": float(above.mean() / expected.mean()),
            "half_width_95": ratio_interval(above, expected),
            "of_float_by_seed": {
                str(seed): float((returns - random).mean() / (base.returns[seed] - random).mean())
                for seed, returns in flown.returns.items()
            },
        }
        step = Policy(files[name])
        obs = numpy.full(step.num_obs, 0.1, numpy.float32)
        times = time_steps(lambda step=step, obs=obs: step.step(obs), 5000)
        figures[name] |= {f"p{percent}_us": float(numpy.percentile(times, percent)) for percent in (50, 99)}
        figures[name]["file_bytes"] = files[name].stat().st_size
    program = bundle.program
    figures["so"]["weight_bytes"] = 4 * (program.num_weights + program.state_size)
    figures["c_int8"]["weight_bytes"] = (
        int8_body(program, bundle.golden, "policy").weight_bytes + 4 * program.state_size
    )
    figures["parameters"] = sum(weight.numel() for weight in policy.network.parameters())
    return figures


def study(runs: Path, students: Sequence[str], seeds: Sequence[int], kept: Path, again: bool) -> dict[str, Any]:
    """Return the figures of every student, training and seed; each is saved as it comes.

    Args:
        runs: Folder of the runs.
        students: Names of :data:`STUDENTS`.
        seeds: Of the trainings.
        kept: The file that holds what was measured.
        again: Measure what is there already again.
    """
    found = _read(kept)
    for seed in seeds:
        for student in students:
            names = {training: f"{student}/{training}/{seed}" for training in TRAININGS}
            folders = {training: run_of(runs, student, training, seed) for training in TRAININGS}
            wanted = [training for training, name in names.items() if again or name not in found]
            if not wanted:
                continue
            if "baselines" not in found:
                found["baselines"] = baselines()
            reference = fly_student(load_policy(folders["float"] / "best_student.pt", Overrides()))
            for training in wanted:
                name = names[training]
                measured = measure(folders[training], reference, **found["baselines"])
                print(f"{name}: {measured['c_int8']['of_float']:.4f} of the float student's score", flush=True)
                # A second call may have added to them.
                found = _read(kept) | {"baselines": found["baselines"], name: measured}
                write_json(kept, found)
    return found


def _read(kept: Path) -> dict[str, Any]:
    return load_json(kept) if kept.is_file() else {}


def _trained_with(seeds: Sequence[int]) -> str:
    """Return a sentence on the seeds that students were trained with."""
    if len(seeds) == 1:
        return f"One training of each, seed {seeds[0]}."
    return f"Means over trainings of seeds {', '.join(map(str, seeds))}."


def page(found: Mapping[str, Any]) -> list[str]:
    """Return the page in Markdown."""
    seeds = sorted({int(name.split("/")[2]) for name in found if "/" in name})
    about = f"""
        `python scripts/int8_study.py` distils an MLP (64 x 64, 22 observations) and the GRU of 2,084 parameters from
        the shipped teacher of the built-in task, as they are and with the last {INT8_EPOCHS} of 300 epochs rounding
        (`distill.optimizer.int8_epochs={INT8_EPOCHS}`), exports them, and lets the *files* fly, compiled C or a model
        in onnxruntime, in a closed loop with the simulator: {len(EVALUATION_SEEDS)} evaluation seeds of {EPISODES}
        episodes each. The score is (return - random) / (teacher - random). {_trained_with(seeds)} The interval is that
        of the worst training, by episodes in pairs from the same initial state."""
    basis = found["baselines"]
    below = f"""
        Mean return of the teacher: {basis["teacher"]:.1f}, of random actions: {basis["random"]:.1f}. `constants` are
        the bytes of all constant arrays in C: weights, biases, scales, tables, the normaliser, the initial memory.
        `file` is the shared library or the model. p50 and p99 are of one step of one robot, called from Python.
        Raw numbers: `int8.json`."""
    lines = [
        "# What 8-bit weights cost in flight",
        "",
        *_wrapped(about),
        "",
        "| student | weights | file that flies | score | of the float student's | 95 %, worst training | lowest seed |"
        " constants | file | p50 | p99 |",
        "|---|---|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for student in STUDENTS:
        for training in TRAININGS:
            rows = [found[f"{student}/{training}/{seed}"] for seed in seeds if f"{student}/{training}/{seed}" in found]
            lines += [_row(student, training, name, [row[name] for row in rows]) for name in FORMATS if rows]
    return [*lines, "", *_wrapped(below)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), 120, break_on_hyphens=False)


def _row(student: str, training: str, name: str, each: Sequence[Mapping[str, Any]]) -> str:
    how = {"float": "float", "int8": "trained with rounding"}[training]
    if training == "float" and name != "so":
        how = "rounded after training"
    worst = min(each, key=lambda own: own["of_float"])
    low, high = (worst["of_float"] + sign * worst["half_width_95"] for sign in (-1, 1))
    lowest = min(value for own in each for value in own["of_float_by_seed"].values())
    score, share = (statistics.mean(own[key] for own in each) for key in ("normalized_score", "of_float"))
    times = [statistics.median(own[key] for own in each) for key in ("p50_us", "p99_us")]
    constants = f"{each[0]['weight_bytes']:,} B" if "weight_bytes" in each[0] else ""
    cells = [student, how, FORMATS[name], f"{score:.4f}", f"{share:.4f}", f"{low:.4f} to {high:.4f}", f"{lowest:.4f}"]
    cells += [constants, f"{each[0]['file_bytes']:,} B", *(f"{value:.1f} us" for value in times)]
    return f"| {' | '.join(cells)} |"


def too_low(found: Mapping[str, Any]) -> list[str]:
    """Return the files of students trained with rounding that keep too little."""
    return [
        f"{name}, {kind}: {figures[kind]['of_float']:.4f}"
        for name, figures in found.items()
        if "/int8/" in name
        for kind in ("c_int8", "onnx_int8")
        if figures[kind]["of_float"] < ENOUGH
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write the page; 1 where a file that was trained with rounding keeps too little."""
    args = build_parser().read(argv)
    torch.set_num_threads(1)
    output = Path(args.output)
    kept = output / "int8.json"
    found = study(Path(args.runs), args.students, args.seeds, kept, args.again)
    atomic_write_bytes(output / "int8.md", ("\n".join(page(found)) + "\n").encode())
    low = too_low(found)
    if low:
        print(f"below {ENOUGH} of the float student's score: {'; '.join(low)}")
    return int(bool(low))


if __name__ == "__main__":
    sys.exit(run_command(main))
