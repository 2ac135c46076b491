"""Train a small student with each loss, and write what it keeps of its teacher: ``docs/results/losses.md``.

``python scripts/losses.py`` runs every case that ``docs/results/losses.json`` does not have yet, one after the other;
``--only NAME`` runs the cases whose name begins so, ``--folder`` says where the runs go, ``--page`` only writes the
page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "losses.json"
PAGE = ROOT / "docs" / "results" / "losses.md"
TEACHERS = ROOT / "foundation" / "assets" / "teachers"
CARTPOLE = [
    *(
        "--task",
        "CartPole-v1",
        "experiment=cartpole",
        "--teacher_checkpoint",
        str(TEACHERS / "cartpole" / "teacher.zip"),
    ),
]
QUADCOPTER = [
    *("--task", "Isaac-Quadcopter-Point-Ctrl-v0", "experiment=fast_adam"),
    *("--teacher_checkpoint", str(TEACHERS / "point_ctrl" / "model.pt")),
    *("--num_eval_episodes", "64", "--eval_interval", "50", "distill.final_eval_episodes=512"),
]
GAUSSIAN = ["distill.student.stochastic=true"]
ENOUGH = 0.98
"""Normalised score that each loss alone is to reach."""
FEWEST_TIMES = 5.0
"""How many times smaller the held-out error of a term beside another one is to become."""


@dataclass(frozen=True)
class Case:
    """One run."""

    name: str
    """``task/loss``."""
    tokens: list[str]
    """What is typed after the task's own."""

    @property
    def command(self) -> list[str]:
        """Arguments of ``distillation.py``."""
        return [*(CARTPOLE if self.name.startswith("cartpole/") else QUADCOPTER), *self.tokens]


def _auxiliary(name: str, weight: float) -> Case:
    more = ["distill.student.value_head=true"] if name.startswith("value") else []
    return Case(f"quadcopter/huber + {weight:g} {name}", [f"distill.loss.auxiliary={{{name}: {weight:g}}}", *more])


CASES = [
    Case("cartpole/kl", ["loss=kl"]),
    Case("cartpole/kl reverse", ["loss=kl", "distill.loss.direction=reverse"]),
    Case("cartpole/kl jensen_shannon", ["loss=kl", "distill.loss.direction=jensen_shannon"]),
    Case("cartpole/kl annealed", ["loss=soft_targets"]),
    Case("cartpole/soft_cross_entropy", ["loss=soft_cross_entropy"]),
    Case("cartpole/nll", ["loss=nll"]),
    Case("cartpole/nll sampled", ["loss=nll", "distill.loss.labels=sampled"]),
    Case("cartpole/q_mse", ["loss=q_mse"]),
    Case("cartpole/advantage_mse", ["loss=advantage_mse"]),
    Case("cartpole/advantage_mse + 0.1 q_mse", ["loss=advantage_mse", "distill.loss.auxiliary={q_mse: 0.1}"]),
    Case("cartpole/kl by action gap", ["loss=kl", "distill.loss.sample_weights=action_gap"]),
    Case("cartpole/kl by advantage", ["loss=kl", "distill.loss.sample_weights=advantage"]),
    Case("quadcopter/huber", []),
    Case("quadcopter/mse", ["loss=mse"]),
    Case("quadcopter/kl", ["loss=kl", *GAUSSIAN]),
    Case("quadcopter/nll sampled", ["loss=nll_sampled", *GAUSSIAN]),
    Case("quadcopter/nll", ["loss=nll", "distill.loss.min_std=0.1", *GAUSSIAN]),
    Case("quadcopter/kl reverse", ["loss=kl", "distill.loss.direction=reverse", *GAUSSIAN]),
    Case(
        "quadcopter/kl jensen_shannon",
        ["loss=kl", "distill.loss.direction=jensen_shannon", *GAUSSIAN],
    ),
    Case("quadcopter/huber, tanh", ["distill.student.distribution=tanh"]),
    Case("quadcopter/nll, tanh", ["loss=nll", "distill.loss.min_std=0.1", "student.distribution=tanh", *GAUSSIAN]),
    Case("quadcopter/nll, beta", ["loss=nll", "distill.loss.min_std=0.1", "student.distribution=beta", *GAUSSIAN]),
    Case("quadcopter/huber, mirrored", ["distill.augment=foundation.tasks.quadrotor.mirror:left_right"]),
    *(_auxiliary(name, weight) for weight in (0.1, 1.0) for name in ("value", "feature", "attention")),
    _auxiliary("value_l1", 0.1),
]


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case and return what is kept of it.

    Raises:
        RuntimeError: If it fails, with the end of what it printed.
    """
    name = "".join(letter if letter.isalnum() else "_" for letter in case.name)
    script = str(ROOT / "foundation" / "rsl_rl" / "distillation.py")
    command = [
        sys.executable,
        script,
        *case.command,
        "--device",
        "cpu",
        "--experiment_name",
        "losses",
        "--run_name",
        name,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{case.name}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-2000:]}")
    made = max((folder / "logs" / "distillation" / "losses").glob(f"*_{name}"))
    summary = json.loads((made / "summary.json").read_text())
    scalars = EventAccumulator(str(made))
    scalars.Reload()
    terms = {}
    for tag in scalars.Tags()["scalars"]:
        if tag.startswith("held_out/"):
            values = scalars.Scalars(tag)
            terms[tag.removeprefix("held_out/")] = [values[0].value, values[-1].value]
    return {
        "command": " ".join(case.command).replace(str(ROOT), "."),
        "normalized_score": summary["normalized_score"],
        "return": summary["best_student_return"],
        "teacher_return": summary["teacher_return"],
        "terms": terms,
    }


def write_page(results: dict[str, dict[str, Any]]) -> None:
    """Write the table."""
    lines = [
        "# What each loss keeps",
        "",
        "`python scripts/losses.py`; one run each, seed 42. CartPole-v1 with `experiment=cartpole` (a Q-network of",
        "Stable-Baselines3 teaches), the quadcopter with `experiment=fast_adam` (the shipped RSL-RL policy teaches).",
        "The score is (student - random) / (teacher - random) on fresh seeds. The last column is the error of each",
        "term on the transitions of an epoch before they are learned from (`held_out/` in TensorBoard): of the first",
        "epoch, by the untrained student, and of the last one. Values, features and Q-values are in units of the",
        "teacher's spread. Raw numbers: `losses.json`.",
        "",
        *verdict(results),
        "",
        "| case | normalised score | return | teacher | held-out error, first to last epoch |",
        "|---|---:|---:|---:|---|",
    ]
    for case in CASES:
        if case.name not in results:
            continue
        own = results[case.name]
        shown = (f"{name} {a:.3g} to {b:.2g} ({a / b:.0f}x)" for name, (a, b) in own["terms"].items() if b > 0)
        more = ", ".join(shown)
        score, returned, teacher = own["normalized_score"], own["return"], own["teacher_return"]
        lines.append(f"| {case.name} | {score:.3f} | {returned:.1f} | {teacher:.1f} | {more} |")
    missing = [case.name for case in CASES if case.name not in results]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def verdict(results: dict[str, dict[str, Any]]) -> list[str]:
    """Say of the cases that were run how well the losses do alone, and what a term beside another one costs."""
    lines = []
    alone = {name: own["normalized_score"] for name, own in results.items() if " + " not in name}
    if alone:
        worst = min(alone, key=lambda name: alone[name])
        lines.append(f"- Alone, each of these {len(alone)} keeps at least {alone[worst]:.3f} (`{worst}`).")
    added = {name: own for name, own in results.items() if is_added(name)}
    bare = results.get("quadcopter/huber")
    if added and bare is not None:
        costs = {name: bare["normalized_score"] - own["normalized_score"] for name, own in added.items()}
        dearest = max(costs, key=lambda name: costs[name])
        times = {name: reduction(name, own) for name, own in added.items()}
        least = min(times, key=lambda name: times[name])
        lines += [
            f"- Of {len(added)} terms beside Huber's, at weights 0.1 and 1, the dearest costs",
            f"  {100.0 * costs[dearest]:.1f} points of the score (`{dearest}`); the held-out error of each becomes",
            f"  at least {times[least]:.0f} times smaller (`{least}`).",
        ]
    both = results.get("cartpole/advantage_mse + 0.1 q_mse")
    if both is not None:
        score = both["normalized_score"]
        errors = [f"{name} {first / last:.0f} times" for name, (first, last) in both["terms"].items()]
        lines.append(
            f"- Q-values and advantages together keep {score:.3f}. Held-out errors, smaller: {', '.join(errors)}."
        )
    return lines


def known_results() -> dict[str, dict[str, Any]]:
    """Read the results of earlier calls."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--only", default="", help="cases whose name begins so")
    parser.add_argument("--folder", type=Path, default=Path("logs/losses"), help="where the runs go")
    parser.add_argument("--page", action="store_true", help="run nothing: write the page of what is there")
    return parser.read(argv)


def run_study(args: argparse.Namespace) -> int:
    """Run what is asked for; 1 if a score is too low."""
    if args.page:
        write_page(known_results())
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    results = known_results()
    for case in CASES:
        if case.name in results or not case.name.startswith(args.only):
            continue
        done = run(case, args.folder.resolve())
        results = known_results() | {case.name: done}  # a second call may have added to them
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_page(results)
        print(f"{case.name}: {results[case.name]['normalized_score']:.3f}", flush=True)
    low = [name for name, own in results.items() if own["normalized_score"] < ENOUGH]
    high = [name for name, own in results.items() if is_added(name) and reduction(name, own) < FEWEST_TIMES]
    if low:
        print(f"normalised score below {ENOUGH}: {', '.join(low)}")
    if high:
        print(f"held-out error of the added term reduced less than {FEWEST_TIMES:g} times: {', '.join(high)}")
    return int(bool(low or high))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    return run_command(lambda arguments: run_study(parse(arguments)), argv)


def is_added(name: str) -> bool:
    """Whether a case is about a term beside the main one."""
    return name.startswith("quadcopter/huber + ")


def reduction(name: str, own: dict[str, Any]) -> float:
    """Return how many times the held-out error of a case's added term has become smaller."""
    first, last = own["terms"][name.split()[-1]]
    return first / last


if __name__ == "__main__":
    sys.exit(main())
