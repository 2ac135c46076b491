"""Distil the Go1's privileged teachers into blind students, and measure them: ``docs/results/legs.md``.

    python scripts/go1_study.py
    python scripts/go1_study.py --only flat/gru --seeds 42
    python scripts/go1_study.py --video logs/go1_study/student_beside_teacher.mp4

Runs every case that ``docs/results/legs.json`` does not have yet, one after the other, on one thread, and goes on with
a run that was stopped. Needs the extra legs, and mjlab's files of the robot (docs/howto/legs.md).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from camera_study import cpu_seconds_of

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.engines.headless import prepare_rendering
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import teacher_selector
from foundation.report.event_file import read_scalars
from foundation.rollout.evaluate import evaluate
from foundation.tasks.legs.velocity_env import Go1FlatEnvCfg, Go1RoughEnvCfg, Go1VelocityEnv
from foundation.tasks.mujoco.env import SceneCfg
from foundation.teachers import TeacherPolicyWrapper

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "legs.json"
PAGE = ROOT / "docs" / "results" / "legs.md"
TEACHERS = ROOT / "foundation" / "assets" / "teachers"
GROUNDS = {
    "flat": ("Foundation-Velocity-Flat-Go1-v0", "go1"),
    "rough": ("Foundation-Velocity-Rough-Go1-v0", "go1_rough"),
}
"""Ground -> task, and the folder of its teacher."""
EPISODES = 256
"""Of a measurement, on robots that no run has seen."""
SEED = 987_654
OTHER_ROBOTS = 1
"""``env.variation.seed`` of these robots."""
FAILED_BELOW = 0.95
"""Share of the teacher's return that the acceptance asks of a student with memory."""
COMMON = [
    *("--num_envs", "64", "--n_epochs", "300", "--learning_rate", "5e-3"),
    *("--eval_interval", "100", "--num_eval_episodes", "64", "distill.final_eval_episodes=64"),
    "distill.student.obs_groups=[proprioception]",
    "distill.loss.auxiliary={predict: {group: velocity, weight: 0.1}}",
]
STUDENTS = {
    "mlp": ["experiment=fast_adam", "student=mlp", "distill.student.hidden_dims=[128,128]"],
    "history": [
        "experiment=fast_gru",
        "student=history",
        "distill.student.length=16",
        "distill.student.hidden_dims=[128,128]",
    ],
    "gru": [
        "experiment=fast_gru",
        "student=gru",
        "distill.student.encoder_dims=[64]",
        "distill.student.hidden_size=64",
        "distill.student.hidden_dims=[64]",
    ],
}
"""Student -> what is typed."""
METRICS = ("velocity_error", "yaw_rate_error", "foot_slip", "front_duty", "rear_duty")


@dataclass(frozen=True)
class Case:
    """One run."""

    ground: str
    student: str
    seed: int

    @property
    def name(self) -> str:
        """Its key in the results."""
        return f"{self.ground}/{self.student}/{self.seed}"

    @property
    def command(self) -> list[str]:
        """Arguments of ``distillation.py``."""
        task, _ = GROUNDS[self.ground]
        teacher = ["--task", task, "--teacher_checkpoint", str(teacher_file(self.ground))]
        return [*teacher, *STUDENTS[self.student], *COMMON, "--seed", str(self.seed)]


def teacher_file(ground: str) -> Path:
    """Return the shipped teacher."""
    return TEACHERS / GROUNDS[ground][1] / "model.pt"


def make_env(ground: str, num_envs: int, **settings: Any) -> Go1VelocityEnv:
    """Build the task with robots that no run has seen."""
    make = Go1FlatEnvCfg if ground == "flat" else Go1RoughEnvCfg
    cfg = make(scene=SceneCfg(num_envs), **settings)
    cfg.variation.seed = OTHER_ROBOTS
    return Go1VelocityEnv(cfg)


def actor_of(checkpoint: Path, env: Go1VelocityEnv) -> PolicyActor:
    """Read a policy, teacher's or student's."""
    policy = TeacherPolicyWrapper(checkpoint)
    return PolicyActor(policy, teacher_selector(policy, env.get_observations(), policy.obs_groups))


def measure(ground: str, checkpoint: Path) -> dict[str, float]:
    """Measure a policy on :data:`EPISODES` episodes of robots that no run has seen."""
    env = make_env(ground, EPISODES)
    summary = evaluate(env, actor_of(checkpoint, env), EPISODES, SEED).summary()
    env.close()
    kept = {"return": summary["mean_return"], "falls": 1.0 - summary["success_rate"]}
    return {name: round(value, 4) for name, value in {**kept, **{key: summary[key] for key in METRICS}}.items()}


def velocity_spread(ground: str) -> dict[str, list[float]]:
    """Return how far the teacher's velocity is from its mean and from what was commanded, per column [m/s], RMS.

    They are the errors of estimators that know nothing, and the command alone.
    """
    env = make_env(ground, 64)
    actor = actor_of(teacher_file(ground), env)
    obs = env.reset(SEED)
    velocities = []
    errors = []
    for _ in range(int(env.max_episode_length) - 1):
        obs, _, _, _ = env.step(actor.act(obs))
        velocities.append(obs["velocity"])
        command = torch.nn.functional.pad(obs["policy"][:, 9:11], (0, 1))
        errors.append(obs["velocity"] - command)
    env.close()
    spread = torch.cat(velocities).std(0)
    of_command = torch.cat(errors).square().mean(0).sqrt()
    return {"mean": [round(v, 4) for v in spread.tolist()], "command": [round(v, 4) for v in of_command.tolist()]}


def distil(case: Case, folder: Path) -> tuple[Path, float]:
    """Distil, go on with a run that was stopped, or find what an earlier call did.

    Args:
        case: The run.
        folder: Where runs go.

    Returns:
        The run's folder, and its CPU time, start and measurements included [s].

    Raises:
        RuntimeError: If it fails, with the end of what it printed.
    """
    name = case.name.replace("/", "_")
    runs = folder / "logs" / "distillation" / "go1"
    timed = folder / f"{name}.json"
    spent = json.loads(timed.read_text()) if timed.is_file() else 0.0
    made = sorted(runs.glob(f"*_{name}"))
    if made and (made[-1] / "summary.json").is_file():
        return made[-1], spent
    command = [sys.executable, str(ROOT / "foundation" / "rsl_rl" / "distillation.py"), *case.command]
    command += ["--device", "cpu", "--experiment_name", "go1", "--run_name", name]
    if made and (made[-1] / "checkpoint_latest.pt").is_file():
        command += ["--resume", "--load_run", made[-1].name]
    else:
        spent = 0.0
    log = folder / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(1.0)
            timed.write_text(json.dumps(spent + cpu_seconds_of(process.pid)))  # a killed call leaves what it spent
    if process.returncode or not list(runs.glob(f"*_{name}/summary.json")):
        raise RuntimeError(f"{case.name}: exit code {process.returncode}\n{log.read_text()[-2000:]}")
    return max(runs.glob(f"*_{name}")), json.loads(timed.read_text())


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case and measure its student."""
    made, seconds = distil(case, folder)
    summary = json.loads((made / "summary.json").read_text())
    curves = read_scalars(made)
    tag = "held_out/predict_rmse/"
    # Of the last tenth of the epochs: a single one has few transitions.
    estimates = {
        name.removeprefix(tag): round(statistics.fmean(curve.values[-len(curve.values) // 10 :]), 4)
        for name, curve in sorted(curves.items())
        if name.startswith(tag)
    }
    return {
        "command": " ".join(case.command).replace(str(ROOT), "."),
        "cpu_seconds": round(seconds, 1),
        "parameters": summary["parameters"]["student"],
        "velocity_rmse": estimates,
        **measure(case.ground, made / "best_student.pt"),
    }


def measure_teacher(ground: str) -> dict[str, Any]:
    """Measure a teacher, and estimators that know nothing."""
    parameters = TeacherPolicyWrapper(teacher_file(ground)).num_parameters
    return {
        "parameters": parameters,
        **measure(ground, teacher_file(ground)),
        "velocity_spread": velocity_spread(ground),
    }


# -- the page ---------------------------------------------------------------------------------------------------------


def write_page(results: dict[str, dict[str, Any]]) -> None:
    """Write the tables."""
    lines = [
        "# Legs: blind students of a privileged teacher",
        "",
        f"`python scripts/go1_study.py`; one CPU thread. Each policy on {EPISODES} episodes of 10 s with robots",
        "(friction, load, motors) that no run has seen, the same for all; several seeds: median and range.",
        "The students read `proprioception` alone and learn to predict the trunk's velocity with a head that is for",
        "training alone. Share: of the teacher's return. Duty: share of the time that a foot is on the ground, front",
        "and rear; a trot has about 50 %. `legs.json` has the raw numbers and the command of each run;",
        "[legs](../howto/legs.md) says how the teachers were made.",
        "",
    ]
    for ground in GROUNDS:
        if f"{ground}/teacher" in results:
            lines += _section(ground, results)
    PAGE.write_text("\n".join(lines), encoding="utf-8")


def _section(ground: str, results: dict[str, dict[str, Any]]) -> list[str]:
    teacher = results[f"{ground}/teacher"]
    lines = [
        f"## `{GROUNDS[ground][0]}`",
        "",
        "| policy | parameters | seeds | CPU min | return | share | falls | velocity error | slip | duty |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        _row("teacher", [teacher], teacher["return"]),
    ]
    estimates = []
    for student in STUDENTS:
        found = [value for key, value in results.items() if key.startswith(f"{ground}/{student}/")]
        if found:
            lines.append(_row(student, found, teacher["return"]))
            columns = [
                statistics.median(one["velocity_rmse"][name] for one in found) for name in found[0]["velocity_rmse"]
            ]
            estimates.append(f"| {student} | {' | '.join(f'{value:.3f}' for value in columns)} |")
    spread = teacher["velocity_spread"]
    lines += [
        "",
        "Error of the estimated velocity, RMS [m/s]:",
        "",
        "| estimate | ahead | left | up |",
        "|---|---:|---:|---:|",
    ]
    lines += [f"| its mean | {' | '.join(f'{value:.3f}' for value in spread['mean'])} |"]
    lines += [f"| the command | {' | '.join(f'{value:.3f}' for value in spread['command'])} |"]
    missing = [name for name in STUDENTS if not any(key.startswith(f"{ground}/{name}/") for key in results)]
    said = [f"Not run yet: {', '.join(missing)}.", ""] if missing else []
    return [*lines, *estimates, "", *said]


def _row(name: str, runs: Sequence[dict[str, Any]], best: float) -> str:
    def shown(value: Callable[[dict[str, Any]], float], digits: int) -> str:
        values = [value(one) for one in runs]
        text = f"{statistics.median(values):.{digits}f}"
        return text if len(values) == 1 else f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"

    minutes = "-" if name == "teacher" else shown(lambda one: one["cpu_seconds"] / 60.0, 1)
    cells = [
        name,
        f"{runs[0]['parameters']:,}",
        "-" if name == "teacher" else str(len(runs)),
        minutes,
        shown(lambda one: one["return"], 2),
        f"{shown(lambda one: 100.0 * one['return'] / best, 1)} %",
        f"{shown(lambda one: 100.0 * one['falls'], 1)} %",
        f"{shown(lambda one: one['velocity_error'], 3)} m/s",
        f"{shown(lambda one: one['foot_slip'], 2)} m/s",
        f"{100.0 * statistics.median(one['front_duty'] for one in runs):.0f} / "
        f"{100.0 * statistics.median(one['rear_duty'] for one in runs):.0f} %",
    ]
    return f"| {' | '.join(cells)} |"


# -- the video --------------------------------------------------------------------------------------------------------


def film(student: Path, output: Path, seconds: float) -> None:
    """Film the teacher (orange) and a student (blue) beside one another: the same robot, commands and pushes."""
    import imageio_ffmpeg

    prepare_rendering()
    envs = [make_env("flat", 1) for _ in range(2)]
    for env in envs:
        env.cfg.command.standing = 0.0
        env.cfg.command.lin_vel_x = (0.5, 1.0)
        env.cfg.command.ang_vel_z = (-0.2, 0.2)
    envs[0].cfg.viewer.azimuth = 60.0
    # An episode that begins along the world's x, so that the two walk beside one another.
    seed = SEED
    envs[0].reset(seed)
    while abs(float(envs[0].qpos[0, 6])) > 0.05:  # the sine of half of its yaw
        seed += 1
        envs[0].reset(seed)
    from foundation.tasks.mujoco.picture import Picture

    actors = [actor_of(path, env) for path, env in zip((teacher_file("flat"), student), envs, strict=True)]
    seen = [env.reset(seed) for env in envs]
    width, height = envs[0].cfg.viewer.resolution
    picture = Picture(envs[0].model_to_draw(), envs[0].cfg.viewer)
    output.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(str(output), (width, height), fps=25, macro_block_size=1, quality=7)
    writer.send(None)
    for step in range(round(seconds / envs[0].step_dt)):
        seen = [env.step(actor.act(obs))[0] for env, actor, obs in zip(envs, actors, seen, strict=True)]
        if step % 2 == 0:
            poses = torch.cat([env.qpos for env in envs]).numpy()
            writer.send(picture.draw(poses, [(0.9, 0.5, 0.15), (0.2, 0.45, 0.85)]))
    writer.close()
    picture.close()
    print(output)


def known_results() -> dict[str, dict[str, Any]]:
    """Read the results of earlier calls."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--only", default="", help="jobs whose name begins so, such as flat/gru or rough")
    parser.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44], help="seeds of the students")
    parser.add_argument("--folder", type=Path, default=Path("logs/go1_study"), help="where the runs go")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument(
        "--video", type=Path, help="only film the GRU of the first seed beside its teacher, to this file"
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="length of the video")
    return parser.read(argv)


def run_study(args: argparse.Namespace) -> int:
    """Run what is asked for."""
    torch.set_num_threads(1)
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if args.video is not None:
        student = distil(Case("flat", "gru", args.seeds[0]), folder)[0] / "best_student.pt"
        film(student, args.video, args.seconds)
        return 0
    jobs: dict[str, Callable[[], dict[str, Any]]] = {}
    for ground in GROUNDS:
        jobs[f"{ground}/teacher"] = lambda ground=ground: measure_teacher(ground)
    cases = [Case(ground, student, seed) for ground in GROUNDS for seed in args.seeds for student in STUDENTS]
    jobs |= {case.name: lambda case=case: run(case, folder) for case in cases}
    for name, job in {} if args.page else jobs.items():
        if name in known_results() or not name.startswith(args.only):
            continue
        done = job()
        results = known_results() | {name: done}  # a second call may have added to them
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
