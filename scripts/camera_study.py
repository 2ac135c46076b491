"""Distil state teachers into students that see, ablate their cameras, and time rendering: ``docs/results/camera.md``.

``python scripts/camera_study.py`` runs every case that ``docs/results/camera.json`` does not have yet, one after the
other, on one thread; ``--only NAME`` runs the cases whose name begins so, ``--folder`` says where the runs go, and
``--page`` writes the page of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.dataset.transition import Column, image_column
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import teacher_selector
from foundation.report.event_file import read_scalars
from foundation.rollout.evaluate import evaluate
from foundation.tasks.camera.camera import CameraCfg
from foundation.tasks.gate.gate_env import QuadcopterGateEnv, QuadcopterGateEnvCfg
from foundation.tasks.quadrotor.env_cfg import SceneCfg
from foundation.tasks.quadrotor.quadrotor_env import QuadrotorEnv
from foundation.tasks.seen_target.seen_env import QuadcopterPointCtrlSeenEnv, QuadcopterPointCtrlSeenEnvCfg
from foundation.teachers import TeacherPolicyWrapper

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results" / "camera.json"
PAGE = ROOT / "docs" / "results" / "camera.md"
TEACHERS = ROOT / "foundation" / "assets" / "teachers"
HELD_OUT = "held_out/predict_rmse/"
"""Begins the tags of the errors of what a student predicts."""
EPISODES = 64
"""Episodes of an ablation, the first of as many environments."""
SEED = 987_654
"""Of these episodes, which no run has seen."""
COMMON = [
    *("experiment=fast_adam", "--num_envs", "64", "--learning_rate", "3e-3"),
    "distill.optimizer.update_ratio=2",
    *("--eval_interval", "50", "--num_eval_episodes", "64", "distill.final_eval_episodes=64"),
]
SEES = ["student=cnn", "distill.student.obs_groups=[proprioception,camera]"]
NO_VELOCITY = ["student=cnn", "distill.student.obs_groups=[inertial,camera]"]
BLIND = ["student=mlp", "distill.student.hidden_dims=[128,64]", "distill.student.obs_groups=[proprioception]"]


def gate_env(num_envs: int, camera: CameraCfg) -> QuadrotorEnv:
    """Build the gate task."""
    return QuadcopterGateEnv(QuadcopterGateEnvCfg(scene=SceneCfg(num_envs), camera=camera))


def seen_env(num_envs: int, camera: CameraCfg) -> QuadrotorEnv:
    """Build point control with a seen target."""
    return QuadcopterPointCtrlSeenEnv(QuadcopterPointCtrlSeenEnvCfg(scene=SceneCfg(num_envs), camera=camera))


@dataclass(frozen=True)
class Task:
    """A task of the study."""

    id: str
    teacher: Path
    make: Callable[[int, CameraCfg], QuadrotorEnv]
    n_epochs: int
    privileged: str
    """Observation group that says where the target or the gate is."""


TASKS = {
    "seen": Task("Isaac-Quadcopter-Point-Ctrl-Seen-v0", TEACHERS / "point_ctrl" / "model.pt", seen_env, 100, "target"),
    "gate": Task("Isaac-Quadcopter-Gate-v0", TEACHERS / "gate" / "model.pt", gate_env, 220, "gate"),
}


@dataclass(frozen=True)
class Case:
    """One run."""

    name: str
    """``task/student``."""
    tokens: list[str]
    """What is typed after the task's own."""

    @property
    def task(self) -> Task:
        """The task."""
        return TASKS[self.name.partition("/")[0]]

    @property
    def command(self) -> list[str]:
        """Arguments of ``distillation.py``."""
        task = self.task
        given = ["--task", task.id, "--teacher_checkpoint", str(task.teacher), "--n_epochs", str(task.n_epochs)]
        batch = [] if "--batch_size" in self.tokens else ["--batch_size", "128"]
        return [*given, *COMMON, *batch, *self.tokens]


def predicting(task: str, feed: bool = False) -> list[str]:
    """Return what makes a student predict where the target or the gate is.

    Args:
        task: Key of :data:`TASKS`.
        feed: Whether its last layers read the prediction.
    """
    fed = ", feed: true" if feed else ""
    return [f"distill.loss.auxiliary={{predict: {{group: {TASKS[task].privileged}, weight: 0.1{fed}}}}}"]


def predicting_motion(task: str) -> list[str]:
    """Return what makes a student predict its position and its velocity, neither of which it is told."""
    position = "position_error, velocity_error" if task == "seen" else "relative_position, velocity"
    group = ["obs.motion.from=policy", f"obs.motion.keep=[{position}]"]
    return [*group, "distill.loss.auxiliary={predict: {group: motion, weight: 0.1}}"]


# As many transitions in a minibatch as without memory: 128.
FRAMES = ["distill.student.frame_stack=3", "--sequence_length", "4", "--batch_size", "32"]
MEMORY = ["distill.student.memory=gru", "--sequence_length", "16", "--batch_size", "8"]
CASES = [
    Case(f"{task}/{name}", tokens)
    for task in TASKS
    for name, tokens in (
        ("camera", SEES),
        ("camera, head", [*SEES, *predicting(task)]),
        ("camera, estimate fed", [*SEES, *predicting(task, feed=True)]),
        ("camera, 3 frames", [*SEES, *FRAMES]),
        ("camera, GRU", [*SEES, *MEMORY]),
        ("no camera", BLIND),
        ("camera, no velocity", NO_VELOCITY),
        ("camera, no velocity, 3 frames", [*NO_VELOCITY, *FRAMES]),
        ("camera, no velocity, GRU", [*NO_VELOCITY, *MEMORY]),
        ("camera, no velocity, GRU, head", [*NO_VELOCITY, *MEMORY, *predicting_motion(task)]),
    )
]


class ShuffledCamera:
    """An actor that is shown the image of another environment; all else is its own."""

    def __init__(self, actor: PolicyActor):
        self.actor = actor

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes."""
        self.actor.reset(dones)

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return actions. Shape: (num_envs, num_actions)."""
        shuffled = obs.copy()
        shuffled["camera"] = obs["camera"].roll(1, 0)
        return self.actor.act(shuffled)


def success_of(task: Task, checkpoint: Path, shuffled: bool) -> float:
    """Measure a student's success rate, with its camera or another's."""
    policy = TeacherPolicyWrapper(checkpoint)
    env = task.make(EPISODES, CameraCfg(image="depth"))
    actor = PolicyActor(policy, teacher_selector(policy, env.get_observations(), policy.obs_groups))
    shown = ShuffledCamera(actor) if shuffled else actor
    return float(evaluate(env, shown, EPISODES, SEED).summary()["success_rate"])


def train(case: Case, folder: Path) -> tuple[Path, float]:
    """Distil, go on with a run that was stopped, or find what an earlier call did.

    Args:
        case: The run.
        folder: Where runs go.

    Returns:
        The run's folder, and its CPU time, start and measurements included [s].

    Raises:
        RuntimeError: If it fails, with the end of what it printed.
    """
    name = "".join(letter if letter.isalnum() else "_" for letter in case.name)
    runs = folder / "logs" / "distillation" / "camera"
    timed = folder / f"{name}.json"
    spent = json.loads(timed.read_text()) if timed.is_file() else 0.0
    made = sorted(runs.glob(f"*_{name}"))
    if made and (made[-1] / "summary.json").is_file():
        return made[-1], spent
    command = [sys.executable, str(ROOT / "foundation" / "rsl_rl" / "distillation.py"), *case.command]
    command += ["--device", "cpu", "--experiment_name", "camera", "--run_name", name]
    if made and (made[-1] / "checkpoint_latest.pt").is_file():
        command += ["--resume", "--load_run", made[-1].name]
    else:
        spent = 0.0
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=log, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            time.sleep(1.0)
            timed.write_text(json.dumps(spent + cpu_seconds_of(process.pid)))  # a killed call leaves what it spent
    if process.returncode:
        raise RuntimeError(f"{case.name}: exit code {process.returncode}\n{Path(log.name).read_text()[-2000:]}")
    return max(runs.glob(f"*_{name}")), json.loads(timed.read_text())


def cpu_seconds_of(pid: int) -> float:
    """Return the CPU time that a process has taken [s]; 0 once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(case: Case, folder: Path) -> dict[str, Any]:
    """Run a case, and return what is kept of its own measurement on fresh episodes."""
    made, cpu_seconds = train(case, folder)
    summary = json.loads((made / "summary.json").read_text())
    return {
        "command": " ".join(case.command).replace(str(ROOT), "."),
        "cpu_seconds": round(cpu_seconds, 1),
        "parameters": summary["parameters"]["student"],
        "normalized_score": summary["normalized_score"],
        "success": summary["student"]["success_rate"],
        "teacher_success": summary["teacher"]["success_rate"],
        "held_out": held_out_errors(made),
    }


def held_out_errors(made: Path) -> dict[str, float]:
    """Return the last error of each predicted column on transitions not yet learned from, by its name and unit."""
    curves = read_scalars(made)
    return {tag.removeprefix(HELD_OUT): round(curves[tag].values[-1], 4) for tag in curves if tag.startswith(HELD_OUT)}


def ablate(case: Case, folder: Path) -> dict[str, Any]:
    """Measure a case's student with its own images and with those of another environment."""
    student = train(case, folder)[0] / "best_student.pt"
    return {name: success_of(case.task, student, name == "shuffled") for name in ("own", "shuffled")}


def measure_cost(num_envs: int = 512, repeats: int = 30) -> dict[str, float]:
    """Time env steps with and without a camera on one thread, in turns [ms]; the fastest of each."""
    torch.set_num_threads(1)
    cameras = {
        "without": CameraCfg(),
        "depth": CameraCfg(image="depth"),
        "rgb": CameraCfg(image="rgb"),
        "depth 64 x 64": replace(CameraCfg(image="depth"), width=64, height=64),
    }
    envs = {f"{task}, {name}": TASKS[task].make(num_envs, camera) for task in TASKS for name, camera in cameras.items()}
    best = dict.fromkeys(envs, float("inf"))
    actions = torch.full((num_envs, 4), 0.612)
    for _ in range(repeats):
        for name, env in envs.items():
            start = time.process_time()
            env.step(actions)
            best[name] = min(best[name], 1e3 * (time.process_time() - start))
    return {name: round(value, 2) for name, value in best.items()}


def measure_memory(transitions: int = 200_000) -> dict[str, dict[str, float]]:
    """Compare a dataset's announced size with that of its tensors and with what the process takes when full [MB]."""
    sizes = {"num_obs": 19, "num_envs": 64, "targets": {"mean": 4}, "capacity": transitions}
    image = {image_column("camera"): Column((1, 32, 32), "uint8")}
    memory = 2 * 32 * 32 + 1  # two earlier frames and their age, at the start of each sequence
    specs = {
        "depth, 1 frame": BufferSpec(**sizes, typed=image),
        "depth, 3 frames": BufferSpec(**sizes, typed=image, chunk_steps=50, sequence_length=50, state_size=memory),
        "depth, 1 frame, as floats": BufferSpec(**{**sizes, "num_obs": 19 + 32 * 32}),
    }
    found: dict[str, dict[str, float]] = {}
    for name, spec in specs.items():
        before = resident_bytes()
        dataset = DistillationDataset(spec)
        tensors = [dataset.rows, dataset.resets, *dataset.typed.values()]
        tensors += [] if dataset.states is None else [dataset.states]
        for tensor in tensors:
            tensor.zero_()
        numbers = (spec.num_bytes, sum(tensor.nbytes for tensor in tensors), resident_bytes() - before)
        found[name] = dict(zip(("announced", "tensors", "process"), (round(n / 1e6, 1) for n in numbers), strict=True))
        del dataset, tensors, tensor
    return found


def resident_bytes() -> int:
    """Return the memory that this process holds [bytes]."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def write_page(results: dict[str, dict[str, Any]]) -> None:
    """Write the tables."""
    lines = [
        "# Students that see",
        "",
        "`python scripts/camera_study.py`; one run each, seed 42, one CPU thread. A teacher that is told where the",
        "target or the gate is, and students that are not: they have a depth image of 32 x 32 pixels, orientation,",
        "body rates, last action and, where not said otherwise, velocity. Success is of 64 fresh episodes, the",
        f"teacher's of the same ones. In the last column, of {EPISODES} too, the student is shown another's image.",
        "`camera.json` has the raw numbers and the command of each run.",
        "",
        "| task | student | parameters | CPU min | success | of the teacher's | camera shuffled |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for case in CASES:
        if case.name not in results:
            continue
        own = results[case.name]
        ablated = results.get(f"ablation/{case.name}")
        shuffled = "-" if ablated is None else f"{100 * ablated['shuffled']:.1f} %"
        share = own["success"] / own["teacher_success"]
        task, _, student = case.name.partition("/")
        lines.append(
            f"| {task} | {student} | {own['parameters']:,} | {own['cpu_seconds'] / 60:.1f} | "
            f"{100 * own['success']:.1f} % | {100 * share:.1f} % | {shuffled} |"
        )
    predicted = [case.name for case in CASES if results.get(case.name, {}).get("held_out")]
    if predicted:
        lines += [
            "",
            "## What the privileged head predicts",
            "",
            "`distill.loss.auxiliary={predict: {group: target, weight: 0.1}}` (of the gate `group: gate`): root mean",
            "squared error of each column on the last epoch's transitions, before they are learned from.",
            "",
            "| task | student | errors |",
            "|---|---|---|",
        ]
        for name in predicted:
            task, _, student = name.partition("/")
            errors = ", ".join(f"{column} {error:.3f}" for column, error in results[name]["held_out"].items())
            lines.append(f"| {task} | {student} | {errors} |")
    missing = [case.name for case in CASES if case.name not in results]
    if missing:
        lines += ["", f"Not run yet: {', '.join(missing)}."]
    if "cost" in results:
        lines += [
            "",
            "## What rendering costs",
            "",
            "One step of 512 environments on one thread, the fastest of 30 [ms]: physics, reward and numbers alone,",
            "and with images (32 x 32 where not said otherwise).",
            "",
            "| task, image | ms | of the step without |",
            "|---|---:|---:|",
        ]
        for name, value in results["cost"].items():
            bare = results["cost"][f"{name.partition(',')[0]}, without"]
            lines.append(f"| {name} | {value:.1f} | {value / bare:.1f} x |")
    if "memory" in results:
        lines += [
            "",
            "## What images take",
            "",
            "A dataset of 200 000 transitions with a depth image of 32 x 32 bytes: the size that is logged before it",
            "is allocated, that of its tensors, and by how much the process grows when all of it is written [MB].",
            "",
            "| dataset | announced | tensors | process |",
            "|---|---:|---:|---:|",
        ]
        for name, own in results["memory"].items():
            lines.append(f"| {name} | {own['announced']:.1f} | {own['tensors']:.1f} | {own['process']:.1f} |")
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def known_results() -> dict[str, dict[str, Any]]:
    """Read the results of earlier calls."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--only", default="", help="jobs whose name begins so: a case, cost, ablation/CASE")
    parser.add_argument("--folder", type=Path, default=Path("logs/camera_study"), help="where the runs go")
    parser.add_argument("--page", action="store_true", help="only write the page")
    return parser.read(argv)


def run_study(args: argparse.Namespace) -> int:
    """Run what is asked for."""
    torch.set_num_threads(1)
    args.folder.mkdir(parents=True, exist_ok=True)
    jobs: dict[str, Callable[[], dict[str, Any]]] = {"cost": measure_cost, "memory": measure_memory}
    folder = args.folder.resolve()
    jobs |= {case.name: lambda case=case: run(case, folder) for case in CASES}
    seeing = [case for case in CASES if "student=cnn" in case.tokens]
    jobs |= {f"ablation/{case.name}": lambda case=case: ablate(case, folder) for case in seeing}
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
