"""Distil mjlab's Cartpole-Balance into students without velocities, beside RSL-RL's own ``DistillationRunner``.

``python scripts/mjlab_cartpole.py`` in an environment with mjlab writes ``docs/results/mjlab.json`` and ``mjlab.md``.

Every policy is measured on the same whole episodes of the task, in one environment whose students' groups mjlab itself
makes. CPU seconds are those of collecting and learning: start-up, baselines and evaluations are left out on both sides.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.config.agent_cfg import DistillationAlgorithmCfg, DistillationRunnerCfg, DistributionCfg, ModelCfg
from foundation.core.files import atomic_write_bytes
from foundation.engines import engine_class
from foundation.engines.base import LaunchRequest
from foundation.policies.actors import Actor, PolicyActor, ZeroActor
from foundation.policies.obs_groups import ObsSelector
from foundation.ppo.library_runner import RslRlRunner
from foundation.rollout.evaluate import evaluate
from foundation.teachers import TeacherPolicyWrapper

ROOT = Path(__file__).resolve().parents[1]
TASK = "Mjlab-Cartpole-Balance"
TEACHER = ROOT / "foundation" / "assets" / "teachers" / "mjlab_cartpole" / "model.pt"
RESULTS = ROOT / "docs" / "results"
NUM_ENVS = 64
HIDDEN = ("cart_vel", "pole_vel")
"""Terms that no student sees."""
EPISODE = 10.0
"""Episodes in training [s]; they are measured on the task's own, of 50 s."""
OURS = {
    "three frames, MLP": ["obs.student.history=3", "--n_epochs", "4"],
    "GRU": ["student=gru", "--n_epochs", "8", "batch_size=16"],
}
"""Name of a student -> what is typed for it."""
STUDENT_GROUPS = {"three frames, MLP": "frames", "GRU": "now"}
STOCK = {
    "5 passes, gradient length 1": DistillationAlgorithmCfg(num_learning_epochs=5, gradient_length=1),
    "1 pass, gradient length 15 (its default)": DistillationAlgorithmCfg(num_learning_epochs=1, gradient_length=15),
}
"""RSL-RL's settings; the first is the best that was found, among others of rate, noise and normaliser."""


def command(name: str, seed: int) -> list[str]:
    """Return what is typed after ``distillation.py``."""
    tokens = ["--task", TASK, "--teacher_checkpoint", str(TEACHER.relative_to(ROOT)), "--device", "cpu", "--cpu_graphs"]
    tokens += ["--seed", str(seed), "experiment=fast_isaaclab", "--num_envs", str(NUM_ENVS), "num_episodes=64"]
    tokens += [f"env.episode_length_s={EPISODE}", "obs.student.from=actor", f"obs.student.drop=[{','.join(HIDDEN)}]"]
    return [*tokens, *OURS[name]]


def configure(env_cfg: Any, seed: int) -> None:
    """Set number and seed, and have mjlab make the students' groups: the actor's terms without velocities."""
    env_cfg.scene.num_envs = NUM_ENVS
    env_cfg.seed = seed
    for name, history in (("now", None), ("frames", 3)):
        group = copy.deepcopy(env_cfg.observations["actor"])
        group.terms = {term: cfg for term, cfg in group.terms.items() if term not in HIDDEN}
        group.history_length = history
        env_cfg.observations[name] = group


@contextlib.contextmanager
def opened(seed: int, episode_length_s: float | None = None) -> Any:
    """Make an environment of the task, with graphs."""
    engine = engine_class("mjlab")()

    def settle(env_cfg: Any, agent_cfg: Any) -> None:
        configure(env_cfg, seed)
        env_cfg.episode_length_s = episode_length_s or env_cfg.episode_length_s

    request = LaunchRequest(TASK, args=argparse.Namespace(cpu_graphs=True))
    with engine.launch(request, settle) as (env_cfg, agent_cfg):
        env = engine.make_env(env_cfg, agent_cfg)
        try:
            yield env
        finally:
            env.close()


def distil(name: str, seed: int, folder: Path) -> tuple[Path, dict[str, Any]]:
    """Run ``distillation.py``; return its best student and its figures."""
    script = ROOT / "foundation" / "rsl_rl" / "distillation.py"
    tokens = [str(TEACHER) if token.endswith("model.pt") else token for token in command(name, seed)]
    subprocess.run([sys.executable, str(script), *tokens, "--run_name", "study"], cwd=folder, check=True)
    run = next((folder / "logs" / "distillation" / "cartpole").iterdir())
    return run / "best_student.pt", json.loads((run / "summary.json").read_text())


def train_stock(
    algorithm: DistillationAlgorithmCfg, seed: int, iterations: int, every: int
) -> tuple[RslRlRunner, list[tuple[int, float, dict[str, torch.Tensor]]]]:
    """Run RSL-RL's distillation; return its runner, and (iteration, CPU seconds, weights) of its snapshots."""
    layers: dict[str, Any] = {"hidden_dims": [64, 64], "activation": "elu"}
    cfg = DistillationRunnerCfg(
        seed=seed,
        num_steps_per_env=32,
        max_iterations=iterations,
        obs_groups={"teacher": ["actor"], "student": ["frames"]},
        student=ModelCfg(**layers, obs_normalization=True, distribution_cfg=DistributionCfg(init_std=0.1)),
        teacher=ModelCfg(**layers, distribution_cfg=DistributionCfg()),
        algorithm=algorithm,
        save_interval=10**9,
    )
    torch.manual_seed(seed)
    with opened(seed, EPISODE) as env, contextlib.redirect_stdout(io.StringIO()):
        runner = RslRlRunner(env, cfg, None, "cpu")
        runner.load(TEACHER)
        snapshots = [(0, 0.0, copy.deepcopy(runner.policy.state_dict()))]
        for iteration in range(every, iterations + 1, every):
            start = time.process_time()
            runner.learn(every)
            spent = snapshots[-1][1] + time.process_time() - start
            snapshots.append((iteration, spent, copy.deepcopy(runner.policy.state_dict())))
    return runner, snapshots


def measure(env: Any, actor: Actor, seed: int) -> float:
    """Return the mean return of one whole episode in every environment."""
    return evaluate(env, actor, NUM_ENVS, seed).summary()["mean_return"]


def student_actor(path: Path, group: str) -> PolicyActor:
    """Return a student as an actor on a group that mjlab has made."""
    return PolicyActor(TeacherPolicyWrapper(path).policy, ObsSelector([group]))


def study(seed: int, iterations: int, every: int) -> dict[str, Any]:
    """Train everything, then measure everything in one environment."""
    torch.set_num_threads(1)
    students: dict[str, tuple[Path, dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in OURS:
            folder = Path(scratch) / STUDENT_GROUPS[name]
            folder.mkdir()
            students[name] = distil(name, seed, folder)
        stock = {name: train_stock(algorithm, seed, iterations, every) for name, algorithm in STOCK.items()}
        rows: list[dict[str, Any]] = []
        with opened(seed) as env:
            teacher = measure(env, student_actor(TEACHER, "actor"), seed + 1)
            zero = measure(env, ZeroActor(env.num_actions), seed + 1)
            for name, (path, summary) in students.items():
                spent = summary["cpu_seconds"]
                value = measure(env, student_actor(path, STUDENT_GROUPS[name]), seed + 1)
                cpu = spent["collection"] + spent["learning"]
                steps = summary["env_steps"]
                rows.append({"name": f"foundation, {name}", "env_steps": steps, "cpu": cpu, "return": value})
            for name, (runner, snapshots) in stock.items():
                policy = runner.inference_policy()
                for iteration, cpu, weights in snapshots:
                    policy.module.load_state_dict(weights)
                    policy.reset()
                    value = measure(env, policy, seed + 1)
                    steps = iteration * 32 * NUM_ENVS
                    label = "untrained student" if iteration == 0 else f"RSL-RL, {name}"
                    rows.append({"name": label, "env_steps": steps, "cpu": cpu, "return": value})
    return {"seed": seed, "teacher": teacher, "zero": zero, "rows": rows}


def page(figures: dict[str, Any]) -> str:
    """Return the page of the figures."""
    teacher = figures["teacher"]
    typed = {name: " ".join(command(name, figures["seed"])) for name in OURS}
    commands = "\n".join(f"# {name}\npython foundation/rsl_rl/distillation.py {text}" for name, text in typed.items())
    lines = [
        "# Cartpole on mjlab, without velocities",
        "",
        f"`python scripts/mjlab_cartpole.py`: one CPU core, seed {figures['seed']}, one run of each. The teacher is",
        "the shipped one and sees cart, pole and their velocities; no student sees these. All train in 64",
        "environments with episodes of 10 s, with `--cpu_graphs`, and are measured on the same 64 whole episodes of",
        "50 s. CPU seconds are those of collecting and learning; start-up, baselines and evaluations are left out on",
        "both sides. RSL-RL's rows are snapshots of one run; its own students have two hidden layers of 64 too.",
        "",
        "| policy | transitions | CPU seconds | return | of the teacher's |",
        "|---|---:|---:|---:|---:|",
        f"| teacher | | | {teacher:.2f} | 100.0 % |",
        f"| zero actions | | | {figures['zero']:.2f} | {100 * figures['zero'] / teacher:.1f} % |",
    ]
    untrained = False
    for row in figures["rows"]:
        if row["name"] == "untrained student":
            if untrained:
                continue
            untrained = True
        share = f"{100 * row['return'] / teacher:.1f} %"
        lines.append(f"| {row['name']} | {row['env_steps']:,} | {row['cpu']:.1f} | {row['return']:.2f} | {share} |")
    lines += ["", "```bash", commands, "```", ""]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study, or write its page from the figures that are there."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="seed of everything (1)")
    parser.add_argument("--iterations", type=int, default=96, metavar="N", help="RSL-RL's iterations (96)")
    parser.add_argument("--every", type=int, default=24, metavar="N", help="iterations between its snapshots (24)")
    parser.add_argument("--page", action="store_true", help="write the page from mjlab.json alone")
    args = parser.read(argv)
    path = RESULTS / "mjlab.json"
    if not args.page:
        figures = study(args.seed, args.iterations, args.every)
        atomic_write_bytes(path, (json.dumps(figures, indent=2) + "\n").encode())
    (RESULTS / "mjlab.md").write_text(page(json.loads(path.read_text())), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
