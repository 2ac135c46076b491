"""Distil MuJoCo teachers to networks of a twentieth of the size: with and without velocities, and with memory.

    python scripts/mujoco_students.py
    python scripts/mujoco_students.py --tasks HalfCheetah-v5 --seeds 0 1 2

Stable-Baselines3's PPO trains the teachers. Every finished run is kept in ``<folder>/stages.json`` and is not run
again. Writes ``<out>.json`` and ``<out>.md``: returns, parameters, latency of one step on this CPU. Needs the extras
sb3 and gymnasium.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import statistics
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np

EXPERIMENT = "mujoco_students"
SHARE = 1 / 20
"""Most parameters of a student, as a share of its teacher's."""
TEACHER_DIMS = (256, 256)
"""Hidden layers of the teachers."""
CRITIC_DIMS = (64, 64)
"""Hidden layers of their critics, which teach nothing and are not kept."""
ACTOR = ("mlp_extractor.policy_net.", "action_net.", "log_std")
"""Beginnings of the names of an actor's weights."""
NUM_ENVS = 16
"""Environments of PPO."""
SAVE_STEPS = 40_000
"""Env steps of PPO from one checkpoint to the next: where a training that was stopped goes on."""
LEARNING_RATE = 3e-4
"""Of PPO at first; it falls linearly to zero."""


@dataclass(frozen=True)
class Task:
    """A task, and how its teacher is trained."""

    name: str
    positions: int
    """Number of the first observations that are no velocities or forces, which come behind them."""
    teacher_steps: int
    """Env steps of PPO."""
    gamma: float = 0.98
    """Discount of PPO."""
    gae_lambda: float = 0.92
    """Of the advantages of PPO."""


TASKS = {
    task.name: task
    for task in (
        Task("InvertedDoublePendulum-v5", 5, 600_000),
        Task("HalfCheetah-v5", 8, 400_000),
        Task("Walker2d-v5", 8, 3_000_000, gamma=0.99, gae_lambda=0.95),
        Task("Ant-v5", 13, 2_000_000, gamma=0.99, gae_lambda=0.95),
    )
}
STUDENTS = {
    "mlp": "MLP, all observations",
    "mlp_blind": "MLP, no velocities",
    "gru_blind": "GRU, no velocities",
}
"""Students by name, as the page describes them."""


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    from foundation.cli.cli_args import seed
    from foundation.cli.parser import ScriptParser

    default = ["InvertedDoublePendulum-v5", "HalfCheetah-v5"]
    parser = ScriptParser(__doc__)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=default, help=f"(default: {default})")
    parser.add_argument("--seeds", nargs="+", type=seed, default=[0], help="of the students (0)")
    parser.add_argument("--folder", type=Path, default=Path("logs/mujoco_students"), help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/mujoco"), help="(default: %(default)s)")
    parser.add_argument("--report", action="store_true", help="run nothing: write the page of what is done")
    return parser.read(argv)


def mlp_parameters(num_obs: int, width: int, num_actions: int) -> int:
    """Return the parameters of two hidden layers of one width."""
    return (num_obs + 1) * width + (width + 1) * width + (width + 1) * num_actions


def gru_parameters(num_obs: int, width: int, num_actions: int) -> int:
    """Return the parameters of an encoder's layer, a GRU and an output layer, all of one width."""
    return (num_obs + 1) * width + 6 * (width + 1) * width + (width + 1) * num_actions


def widest(kind: str, num_obs: int, num_actions: int, most: int) -> int:
    """Return the largest width of a student (``mlp`` or ``gru``) that has at most so many parameters."""
    count = gru_parameters if kind == "gru" else mlp_parameters
    return max(width for width in range(1, 1025) if count(num_obs, width, num_actions) <= most)


class Study:
    """The runs of one folder."""

    def __init__(self, args: argparse.Namespace):
        """Open, or begin, the folder."""
        from raptor.stages import Stages

        self.args = args
        self.tasks = [TASKS[name] for name in args.tasks]
        self.folder: Path = args.folder.resolve()
        self.out: Path = args.out.resolve()
        self.stages = Stages(self.folder, {"share": SHARE, "teacher_dims": list(TEACHER_DIMS)})

    def run(self) -> None:
        """Run what is not done yet: each task's teacher, then its students, one seed after the other."""
        if not self.args.report:
            self.check_packages()
            for seed in self.args.seeds:
                for task in self.tasks:
                    self.stages.run(f"teacher {task.name}", lambda task=task: self.train(task))
                    self.run_students(task, seed)
        self.report()

    def run_students(self, task: Task, seed: int) -> None:
        """Distil every student of a task, and report after each."""
        for student in STUDENTS:
            self.stages.run(f"{student} {task.name} s{seed}", lambda student=student: self.distil(task, student, seed))
            self.report()

    def check_packages(self) -> None:
        """Refuse, before anything is run, what is missing."""
        from foundation.core.errors import UserError
        from foundation.engines.gymnasium import GymnasiumEngine

        untrained = {f"teacher {task.name}" for task in self.tasks} - self.stages.done.keys()
        if untrained and importlib.util.find_spec("stable_baselines3") is None:
            raise UserError("Stable-Baselines3 trains the teachers: pip install -e '.[sb3]' in the clone's folder")
        for task in self.tasks:
            reason = GymnasiumEngine.why_not(task.name)
            if reason is not None:
                raise UserError(f"--tasks {task.name}: {reason}")

    def train(self, task: Task) -> dict[str, Any]:
        """Train a teacher; return its file, its sizes and its latency."""
        from foundation.teachers import TeacherPolicyWrapper

        checkpoint = train_ppo(task, self.folder / "teachers" / task.name)
        teacher = TeacherPolicyWrapper(checkpoint)
        return {
            "checkpoint": str(checkpoint),
            "env_steps": task.teacher_steps,
            "num_obs": teacher.num_obs,
            "num_actions": teacher.num_actions,
            "parameters": mlp_parameters(teacher.num_obs, TEACHER_DIMS[0], teacher.num_actions),
            "latency": self.latency(checkpoint),
        }

    def distil(self, task: Task, student: str, seed: int) -> dict[str, Any]:
        """Distil a teacher into one of the students; return what it was measured at."""
        from raptor.stages import newest_run, python

        teacher = self.stages.done[f"teacher {task.name}"]
        kind, _, blind = student.partition("_")
        num_obs = task.positions if blind else teacher["num_obs"]
        width = widest(kind, num_obs, teacher["num_actions"], int(SHARE * teacher["parameters"]))
        sizes = {
            "mlp": [f"distill.student.hidden_dims=[{width},{width}]"],
            "gru": [f"distill.student.encoder_dims=[{width}]", f"distill.student.hidden_size={width}"],
        }[kind]
        run_name = f"{task.name}_{student}_s{seed}"
        python(
            "foundation/rsl_rl/distillation.py",
            *("--task", task.name, "--seed", seed, "--device", "cpu", "--teacher_checkpoint", teacher["checkpoint"]),
            f"experiment=mujoco_{kind}",
            *sizes,
            *([f"distill.student.obs_slice=[0,{task.positions}]"] if blind else []),
            *("--experiment_name", EXPERIMENT, "--run_name", run_name),
            log=self.folder / "students" / f"{run_name}.log",
        )
        run = newest_run(EXPERIMENT, run_name)
        summary = json.loads((run / "summary.json").read_text())
        return {
            "score": summary["normalized_score"],
            "return": summary["best_student_return"],
            "teacher_return": summary["teacher_return"],
            "random_return": summary["baselines"]["random"]["mean_return"],
            "parameters": summary["parameters"]["student"],
            "latency": self.latency(run / "best_student.pt"),
        }

    def latency(self, checkpoint: Path) -> dict[str, float]:
        """Return the median time of one step by format [us]."""
        from raptor.stages import python

        out = self.folder / "latency.json"
        python("scripts/latency.py", "--checkpoint", checkpoint, "--json", out, log=self.folder / "latency.log")
        formats = json.loads(out.read_text())["formats"]
        return {name: figures["p50_us"] for name, figures in formats.items()}

    def report(self) -> None:
        """Write numbers and page of what is done."""
        from raptor.stages import write_json

        kept = {
            name: {key: value for key, value in stage.items() if key not in ("checkpoint", "wall_seconds")}
            for name, stage in self.stages.done.items()
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.out.with_suffix(".json"), kept)
        self.out.with_suffix(".md").write_text(page(kept, self.out.name), encoding="utf-8")


def train_ppo(task: Task, folder: Path) -> Path:
    """Train a policy by Stable-Baselines3's PPO on normalised observations and rewards; go on where it was stopped.

    Args:
        task: The task.
        folder: For the checkpoints, and the teacher with the statistics of its observations beside it.

    Returns:
        The teacher.
    """
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import CheckpointCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize
    from torch.nn import ReLU

    from foundation.runs.run_dir import natural_key

    env = make_vec_env(task.name, n_envs=NUM_ENVS, seed=0)
    saved = sorted((folder / "checkpoints").glob("ppo_*_steps.zip"), key=lambda path: natural_key(path.name))
    if saved:
        statistics_of = saved[-1].name.replace("ppo_", "ppo_vecnormalize_").replace(".zip", ".pkl")
        env = VecNormalize.load(str(saved[-1].parent / statistics_of), env)
        model = PPO.load(saved[-1], env, device="cpu")
    else:
        env = VecNormalize(env, gamma=task.gamma)
        nets = {"pi": list(TEACHER_DIMS), "vf": list(CRITIC_DIMS)}
        model = PPO(
            "MlpPolicy",
            env,
            n_steps=256,
            batch_size=256,
            n_epochs=5,
            gamma=task.gamma,
            gae_lambda=task.gae_lambda,
            learning_rate=lambda remaining: LEARNING_RATE * remaining,
            policy_kwargs={"net_arch": nets, "log_std_init": -1.0, "activation_fn": ReLU},
            seed=0,
            device="cpu",
        )
    keep = CheckpointCallback(SAVE_STEPS // NUM_ENVS, str(folder / "checkpoints"), "ppo", save_vecnormalize=True)
    left = task.teacher_steps - model.num_timesteps
    if left > 0:
        model.learn(left, callback=keep, reset_num_timesteps=not saved)
    model.save(folder / "model.zip")
    write_actor(folder / "model.zip", folder / "teacher.zip")
    moments = env.obs_rms
    np.savez(
        folder / "teacher_vecnormalize.npz",
        mean=moments.mean,
        var=moments.var,
        epsilon=env.epsilon,
        clip_obs=env.clip_obs,
    )
    env.close()
    return folder / "teacher.zip"


def write_actor(model: Path, teacher: Path) -> None:
    """Write a model's actor and the plain settings that describe it: no critic, optimiser and pickles."""
    import torch
    from train_dqn import plain_settings

    from foundation.core.files import atomic_write_bytes

    out = io.BytesIO()
    with zipfile.ZipFile(model) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as lean:
        weights = torch.load(io.BytesIO(source.read("policy.pth")), weights_only=True, map_location="cpu")
        kept = io.BytesIO()
        torch.save({name: value.clone() for name, value in weights.items() if name.startswith(ACTOR)}, kept)
        lean.writestr("policy.pth", kept.getvalue())
        lean.writestr("data", json.dumps(plain_settings(json.loads(source.read("data"))), indent=1))
        lean.writestr("_stable_baselines3_version", source.read("_stable_baselines3_version"))
    atomic_write_bytes(teacher, out.getvalue())


def middle(values: Sequence[float], digits: int) -> str:
    """Write a median, with the range where there are several seeds."""
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{statistics.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def page(done: dict[str, dict[str, Any]], name: str) -> str:
    """Return the page of what is done."""
    lines = [
        "# MuJoCo students",
        "",
        "Made by `python scripts/mujoco_students.py` (extras sb3 and gymnasium). Teachers: PPO of Stable-Baselines3",
        f"(seed 0, hidden layers {TEACHER_DIMS[0]} and {TEACHER_DIMS[1]}, normalised observations). Students have at",
        f"most a {1 / SHARE:.0f}th of the teacher's parameters. Those without velocities see positions and angles",
        "alone. A score is (student - random) / (teacher - random) on episodes of seeds that nothing was trained on.",
        f"Latency is the median of one step at batch 1 on one CPU core. Raw numbers: `{name}.json`.",
        "",
        "| task | policy | parameters | return | score | PyTorch [us] | C [us] |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for task in [key.removeprefix("teacher ") for key in done if key.startswith("teacher ")]:
        teacher = done[f"teacher {task}"]
        runs = {
            student: [stage for key, stage in done.items() if key.startswith(f"{student} {task} s")]
            for student in STUDENTS
        }
        known = [run for found in runs.values() for run in found]
        if not known:
            continue
        returns = [run["teacher_return"] for run in known]
        lines.append(row(task, f"teacher, {teacher['env_steps']:,} env steps", [teacher], middle(returns, 0), "1.000"))
        lines += [
            row("", STUDENTS[student], found, middle([run["return"] for run in found], 0), score(found))
            for student, found in runs.items()
            if found
        ]
        lines.append(f"| | random actions | | {middle([run['random_return'] for run in known[:1]], 0)} | 0.000 | | |")
    return "\n".join(lines) + "\n"


def score(runs: Sequence[dict[str, Any]]) -> str:
    """Write the normalised scores of a student's seeds."""
    return middle([run["score"] for run in runs], 3)


def row(task: str, policy: str, stages: Sequence[dict[str, Any]], returns: str, scores: str) -> str:
    """Write a row of the table, with the size and the latency of the first seed's policy."""
    latency = stages[0]["latency"]
    times = [f"{latency[name]:.1f}" if name in latency else "-" for name in ("checkpoint", "c")]
    return f"| {' | '.join([task, policy, format(stages[0]['parameters'], ','), returns, scores, *times])} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study."""
    Study(parse(argv)).run()
    return 0


if __name__ == "__main__":
    from foundation.cli.command import run_command

    sys.exit(run_command(main))
