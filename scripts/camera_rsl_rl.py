"""RSL-RL's own distillation into a CNN, beside ours on the same task: ``docs/results/camera_rsl_rl.md``.

Point control with a seen target, a depth image of 32 x 32 pixels. First the state teacher is distilled into RSL-RL's
``CNNModel`` by its ``DistillationRunner``, and into our ``student=cnn``; then that ``CNNModel``, as its runner saved
it, teaches a smaller student of either.

``python scripts/camera_rsl_rl.py`` runs every job that ``docs/results/camera_rsl_rl.json`` does not have yet, on one
thread; ``--only NAME`` those whose name begins so, ``--page`` writes the page of what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from benchmarks import stock
from rsl_rl.models import CNNModel
from rsl_rl.runners import DistillationRunner
from tensordict import TensorDict

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.policies.actors import Actor, PolicyActor
from foundation.policies.obs_groups import teacher_selector
from foundation.rollout.evaluate import evaluate
from foundation.tasks.camera.camera import CameraCfg
from foundation.tasks.quadrotor.env_cfg import SceneCfg
from foundation.tasks.seen_target.seen_env import QuadcopterPointCtrlSeenEnv, QuadcopterPointCtrlSeenEnvCfg
from foundation.teachers import TeacherPolicyWrapper

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "camera_rsl_rl.json"
PAGE = ROOT / "docs" / "results" / "camera_rsl_rl.md"
STATE_TEACHER = ROOT / "foundation" / "assets" / "teachers" / "point_ctrl" / "model.pt"
TASK = "Isaac-Quadcopter-Point-Ctrl-Seen-v0"
READ = ("proprioception", "camera")
"""Observation groups of the students, and of the teacher that sees."""
MARKS = (15.0, 30.0, 60.0, 90.0)
"""CPU seconds of training after which RSL-RL's student is measured."""
EPISODES = 256
SEED = 987_654
"""Of these episodes, which no run has seen."""
SEEDS = (42, 43)


@dataclass(frozen=True)
class Settings:
    """Settings of RSL-RL's runner that the sweep varies."""

    learning_rate: float
    num_learning_epochs: int
    num_envs: int = 64
    num_steps: int = 24
    gradient_length: int = 1
    init_std: float = 0.1


SWEEP = {
    "1e-3, 2 epochs": Settings(1e-3, 2),
    "3e-3, 2 epochs": Settings(3e-3, 2),
    "1e-3, 5 epochs": Settings(1e-3, 5),
}


@dataclass(frozen=True)
class Sizes:
    """Layers of a student, the same in both."""

    channels: tuple[int, ...]
    hidden_dims: tuple[int, ...]


SIZES = {"state": Sizes((16, 32, 32), (128, 64)), "cnn": Sizes((8, 16, 16), (64, 32))}
"""By the kind of the teacher."""


class FloatImages(QuadcopterPointCtrlSeenEnv):
    """The task as RSL-RL can read it: its convolutions take float32 alone. Groups that nobody reads are left out."""

    env_steps = 0

    def get_observations(self) -> TensorDict:
        """Return the groups that are read."""
        return _as_floats(super().get_observations())

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin new episodes."""
        return _as_floats(super().reset(seed))

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Count and step. Shape of ``actions``: (num_envs, num_actions)."""
        self.env_steps += self.num_envs
        obs, rewards, dones, extras = super().step(actions)
        return _as_floats(obs), rewards, dones, extras


def _as_floats(obs: TensorDict) -> TensorDict:
    groups = {name: obs[name].float() for name in ("policy", *READ)}
    return TensorDict(groups, batch_size=obs.batch_size, device=obs.device)


def make_env(num_envs: int, seed: int = 0) -> FloatImages:
    """Build the task; depth over the camera's range, from 0 to 1."""
    camera = CameraCfg(image="depth", dtype="float16")
    return FloatImages(QuadcopterPointCtrlSeenEnvCfg(scene=SceneCfg(num_envs), camera=camera, seed=seed))


def measured(actor: Actor) -> dict[str, float]:
    """Return success and return of an actor on the episodes that all are measured on."""
    summary = evaluate(make_env(EPISODES), actor, EPISODES, SEED).summary()
    return {"success": float(summary["success_rate"]), "return": float(summary["mean_return"])}


# -- RSL-RL ------------------------------------------------------------------------------------------------------------


def cnn_cfg(sizes: Sizes, init_std: float) -> dict[str, Any]:
    """Return the config of a ``CNNModel``."""
    return {
        "class_name": "CNNModel",
        "hidden_dims": list(sizes.hidden_dims),
        "activation": "elu",
        "obs_normalization": True,
        "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": init_std},
        "cnn_cfg": {
            "output_channels": list(sizes.channels),
            "kernel_size": 3,
            "stride": 2,
            "padding": "zeros",
            "activation": "elu",
        },
    }


def runner_cfg(kind: str, settings: Settings) -> dict[str, Any]:
    """Return the dict that RSL-RL's runner takes."""
    teacher, groups = cnn_cfg(SIZES["state"], 0.1), list(READ)
    if kind == "state":
        teacher, groups = stock.teacher_cfg(STATE_TEACHER), ["policy"]
    return {
        "class_name": "DistillationRunner",
        "num_steps_per_env": settings.num_steps,
        "obs_groups": {"student": list(READ), "teacher": groups},
        "save_interval": 10**9,
        "clip_actions": None,
        "student": cnn_cfg(SIZES[kind], settings.init_std),
        "teacher": teacher,
        "algorithm": {
            "class_name": "Distillation",
            "num_learning_epochs": settings.num_learning_epochs,
            "gradient_length": settings.gradient_length,
            "learning_rate": settings.learning_rate,
            "loss_type": "mse",
        },
    }


class _TimeIsUpError(Exception):
    """Ends RSL-RL's endless loop."""


def train_rsl_rl(kind: str, setting: str, seed: int, teacher: Path, folder: Path) -> dict[str, Any]:
    """Distil by RSL-RL's runner; measure at each of :data:`MARKS`, which does not count as training.

    Args:
        kind: Of the teacher: ``state`` or ``cnn``.
        setting: Key of :data:`SWEEP`.
        seed: Of weights and episodes.
        teacher: The teacher's checkpoint, with ``actor_state_dict``.
        folder: Where the runner saves its last student, ``model.pt``.
    """
    settings = SWEEP[setting]
    cfg = runner_cfg(kind, settings)
    torch.manual_seed(seed)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = make_env(settings.num_envs, seed)
        runner = DistillationRunner(env, dict(cfg), log_dir=None, device="cpu")
        runner.load(str(teacher))
    student = runner.alg.get_policy()
    taken: list[dict[str, Any]] = []
    weights: list[dict[str, torch.Tensor]] = []
    start = time.process_time()

    def look(*_: object) -> None:
        nonlocal start
        spent = time.process_time() - start
        if spent < MARKS[len(taken)]:
            return
        taken.append({"cpu_seconds": round(spent, 1), "env_steps": env.env_steps})
        weights.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
        if len(taken) == len(MARKS):
            raise _TimeIsUpError
        start = time.process_time() - spent

    runner.alg.optimizer.register_step_post_hook(look)
    with contextlib.suppress(_TimeIsUpError), contextlib.redirect_stdout(io.StringIO()):
        runner.learn(10**9, init_at_random_ep_len=True)
    copied = runner_cfg(kind, settings)
    options = {name: value for name, value in copied["student"].items() if name != "class_name"}
    obs = make_env(2).get_observations()
    for mark, own in zip(taken, weights, strict=True):
        model = CNNModel(obs, {"student": list(READ)}, "student", env.num_actions, **options)
        model.load_state_dict(own)
        mark.update(measured(stock.StockActor(model.eval())))
    (folder / "params").mkdir(parents=True, exist_ok=True)
    runner.logger.writer = None
    with contextlib.redirect_stdout(io.StringIO()):
        runner.save(str(folder / "model.pt"))
    (folder / "params" / "agent.yaml").write_text(yaml.safe_dump(copied))
    parameters = sum(tensor.numel() for tensor in student.parameters())
    return {"settings": asdict(settings), "seed": seed, "parameters": parameters, "marks": taken}


# -- ours --------------------------------------------------------------------------------------------------------------


def train_ours(kind: str, seed: int, teacher: Path, folder: Path, name: str) -> dict[str, Any]:
    """Distil by our command, with the settings of ``docs/results/camera.md``, and measure its best student."""
    sizes = SIZES[kind]
    command = [
        *("--task", TASK, "--teacher_checkpoint", str(teacher), "--n_epochs", "100", "experiment=fast_adam"),
        *("--num_envs", "64", "--learning_rate", "3e-3", "--batch_size", "128", "distill.optimizer.update_ratio=2"),
        *("--eval_interval", "50", "--num_eval_episodes", "64", "distill.final_eval_episodes=64"),
        *("student=cnn", f"distill.student.obs_groups=[{','.join(READ)}]", "env.camera.dtype=float16"),
        f"distill.student.channels=[{','.join(map(str, sizes.channels))}]",
        f"distill.student.hidden_dims=[{','.join(map(str, sizes.hidden_dims))}]",
        *("--seed", str(seed)),
        *([f"distill.teacher.obs_groups=[{','.join(READ)}]"] if kind == "cnn" else []),
    ]
    script = [sys.executable, str(ROOT / "foundation" / "rsl_rl" / "distillation.py"), *command]
    runs = folder / "logs" / "distillation" / "camera_rsl_rl"
    if not any((made / "summary.json").is_file() for made in runs.glob(f"*_{name}")):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        options = ["--device", "cpu", "--experiment_name", "camera_rsl_rl", "--run_name", name]
        subprocess.run([*script, *options], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    made = max(made for made in runs.glob(f"*_{name}") if (made / "summary.json").is_file())
    summary = json.loads((made / "summary.json").read_text())
    policy = TeacherPolicyWrapper(made / "best_student.pt")
    actor = PolicyActor(policy, teacher_selector(policy, make_env(2).get_observations(), policy.obs_groups))
    spent = summary["cpu_seconds"]
    return {
        "command": " ".join(command).replace(str(ROOT), "."),
        "seed": seed,
        "parameters": summary["parameters"]["student"],
        "cpu_seconds": round(sum(spent[part] for part in ("collection", "learning", "saving")), 1),
        "cpu_seconds_with_measurements": round(sum(spent.values()), 1),
        "env_steps": summary["env_steps"],
        **measured(actor),
    }


# -- all of it ---------------------------------------------------------------------------------------------------------


def known_results() -> dict[str, dict[str, Any]]:
    """Read the results of earlier calls."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def best_setting() -> str:
    """Return the setting with the best success at the last mark, of equals that with the higher return."""
    done = {name: known_results()[f"state/rsl_rl/{name}/{SEEDS[0]}"]["marks"][-1] for name in SWEEP}
    return max(done, key=lambda name: (done[name]["success"], done[name]["return"]))


def seeing_teacher(folder: Path) -> Path:
    """Return the ``CNNModel`` that the best setting has made, as its runner saved it."""
    return place_of(folder, "state", best_setting(), SEEDS[0]) / "model.pt"


def as_actor(path: Path) -> Path:
    """Return a copy of a distilled student as the actor that RSL-RL's runner loads as a teacher."""
    copy = path.with_name("as_actor.pt")
    student = torch.load(path, map_location="cpu", weights_only=True)["student_state_dict"]
    torch.save({"actor_state_dict": student, "iter": 0, "infos": None}, copy)
    return copy


def place_of(folder: Path, kind: str, setting: str, seed: int) -> Path:
    """Return the folder of a run of RSL-RL's."""
    return folder / f"{kind}_{setting.replace(', ', '_').replace(' ', '_')}_{seed}"


def jobs_of(folder: Path) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what there is to run, by name, in order: the sweep comes before what takes its best setting."""

    def theirs(kind: str, setting: str | None, seed: int) -> dict[str, Any]:
        chosen = setting or best_setting()
        teacher = STATE_TEACHER if kind == "state" else as_actor(seeing_teacher(folder))
        return train_rsl_rl(kind, chosen, seed, teacher, place_of(folder, kind, chosen, seed))

    def ours(kind: str, seed: int) -> dict[str, Any]:
        teacher = STATE_TEACHER if kind == "state" else seeing_teacher(folder)
        return train_ours(kind, seed, teacher, folder, f"{kind}_{seed}")

    def teachers() -> dict[str, Any]:
        env = make_env(2)
        found = {}
        for kind, path in (("state", STATE_TEACHER), ("cnn", seeing_teacher(folder))):
            policy = TeacherPolicyWrapper(path)
            selector = teacher_selector(policy, env.get_observations(), policy.obs_groups)
            found[kind] = measured(PolicyActor(policy, selector))
        return found

    first, second = SEEDS
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}
    for setting in SWEEP:
        jobs[f"state/rsl_rl/{setting}/{first}"] = lambda setting=setting: theirs("state", setting, first)
    jobs |= {f"state/ours/{seed}": lambda seed=seed: ours("state", seed) for seed in SEEDS}
    jobs[f"state/rsl_rl/best/{second}"] = lambda: theirs("state", None, second)
    jobs["teachers"] = teachers
    for seed in SEEDS:
        jobs[f"cnn/ours/{seed}"] = lambda seed=seed: ours("cnn", seed)
        jobs[f"cnn/rsl_rl/best/{seed}"] = lambda seed=seed: theirs("cnn", None, seed)
    return jobs


def write_page(results: dict[str, dict[str, Any]]) -> None:
    """Write the table."""
    lines = [
        "# Students that see: RSL-RL's runner beside ours",
        "",
        "`python scripts/camera_rsl_rl.py`, one CPU thread; raw numbers and commands: `camera_rsl_rl.json`.",
        f"Task: `{TASK}`, a depth image of 32 x 32 pixels. *State* is",
        "the shipped teacher, which is told where the target is. *CNN* is the `CNNModel` that RSL-RL's",
        "`DistillationRunner` made of it, read by ours from the runner's own checkpoint; its students are half as",
        "wide. Convolutions, dense layers, normaliser and the 64 environments are the same in both; ours has a layer",
        "of 64 numbers behind the convolutions.",
        "",
        "CPU seconds are those of training: start and measurements are left out. RSL-RL's settings (learning rate,",
        f"passes over each rollout of 24 steps) are swept with the state teacher at seed {SEEDS[0]}; *best* is",
        f"the best of these at the last mark. Success and return are of {EPISODES}",
        "fresh episodes, the same for all.",
        "",
    ]
    if "teachers" in results:
        for kind, name in (("state", "State teacher"), ("cnn", "`CNNModel` teacher")):
            own = results["teachers"][kind]
            lines.append(f"- {name}: success {100 * own['success']:.1f} %, return {own['return']:.0f}.")
        lines.append("")
    lines += [
        "| teacher | trained by | seed | parameters | CPU s | env steps | success | return |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in jobs_of(Path()):
        if name not in results or name == "teachers":
            continue
        kind, who, *rest = name.split("/")
        own = results[name]
        label = "ours" if who == "ours" else f"RSL-RL, {rest[0]}"
        for mark in own.get("marks", [own]):
            lines.append(
                f"| {kind} | {label} | {own['seed']} | {own['parameters']:,} | {mark['cpu_seconds']:.0f} | "
                f"{mark['env_steps']:,} | {100 * mark['success']:.1f} % | {mark['return']:.0f} |"
            )
    missing = [name for name in jobs_of(Path()) if name not in results]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--only", default="", help="jobs whose name begins so")
    parser.add_argument("--folder", type=Path, default=Path("logs/camera_rsl_rl"), help="where the runs go")
    parser.add_argument("--page", action="store_true", help="only write the page")
    return parser.read(argv)


def run_study(args: argparse.Namespace) -> int:
    """Run what is asked for."""
    torch.set_num_threads(1)
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, job in {} if args.page else jobs_of(folder).items():
        if name in known_results() or not name.startswith(args.only):
            continue
        done = job()
        results = known_results() | {name: done}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        write_page(results)
        print(f"{name}: {done}", flush=True)
    write_page(known_results())
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and return its exit code."""
    return run_command(lambda arguments: run_study(parse(arguments)), argv)


if __name__ == "__main__":
    sys.exit(main())
