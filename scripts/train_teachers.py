"""Train many teachers at once, each on its own vehicle, and write RSL-RL checkpoints with a manifest.

    python scripts/train_teachers.py --vehicles vehicles --num_teachers 64 --output teachers

By backpropagation through the built-in simulator: all teachers are one stack, trained in one process. They begin as one
policy, go on each by its own gradient until ``--updates``, and those that miss ``--min_return`` or ``--max_terminated``
are trained on by themselves for some rounds; what still misses the return is marked ``failed`` in the manifest.
At the end a critic is fitted to each teacher's own flights, so that RSL-RL's runner loads a checkpoint and trains on.
SIGINT and SIGTERM save; ``--resume`` continues exactly there.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from datetime import timedelta
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from teacher_training.checkpoints import write_teachers
from teacher_training.critics import CriticCfg, fit_teachers_critics
from teacher_training.fleet import Fleet
from teacher_training.job import JobCfg, TeacherJob

from foundation.cli.command import Interrupt, run_command
from foundation.cli.parser import ScriptParser
from foundation.config.validate import MAX_SEED
from foundation.core.devices import resolve_device
from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save, load_checkpoint, lock_folder
from foundation.tasks.quadrotor.sim.vehicles import load_vehicles, vehicle_files

STATE = "training_state.pt"
CRITIC_SEED = 300_000
SAVE_EVERY = 60.0
"""Seconds between two savings."""
TELL_EVERY = 20.0
"""Seconds between two lines where there is no terminal."""
NEVER = 2**62
"""Steps from which to compile, where that is not to be."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    cfg = JobCfg()
    parser = ScriptParser(__doc__)
    parser.add_argument("--vehicles", type=Path, required=True, help="folder of vehicles in l2f's JSON form")
    parser.add_argument("--num_teachers", type=int, help="the first so many vehicles (default: all of the folder)")
    parser.add_argument("--output", type=Path, required=True, help="folder for checkpoints and teachers.yaml")
    parser.add_argument("--method", choices=["bptt", "ppo"], default=cfg.method, help="default: %(default)s")
    parser.add_argument("--min_return", type=float, default=cfg.min_return, help="below it a teacher has failed")
    parser.add_argument("--max_terminated", type=float, default=cfg.max_terminated, help="above it it is trained on")
    parser.add_argument("--seed", type=int, default=cfg.seed)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--hidden_dims", type=int, nargs="+", default=cfg.hidden_dims)
    parser.add_argument("--num_envs", type=int, default=cfg.num_envs, help="environments of each teacher")
    parser.add_argument("--horizon", type=int, default=cfg.horizon)
    parser.add_argument("--shared_updates", type=int, default=cfg.shared_updates, help="by the mean gradient of all")
    parser.add_argument("--updates", type=int, default=cfg.updates, help="of each teacher by its own gradient")
    parser.add_argument("--more_updates", type=int, default=cfg.more_updates, help="of a round for those that miss")
    parser.add_argument("--max_rounds", type=int, default=cfg.max_rounds, help="such rounds at most")
    parser.add_argument("--motor_noise", type=float, default=cfg.motor_noise, help="std on the motor speeds (2u - 1)")
    parser.add_argument("--num_episodes", type=int, default=cfg.num_episodes, help="of each teacher's measurement")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: where it is worth it")
    parser.add_argument("--resume", action="store_true", help="go on with the training that was saved in --output")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, reaches nothing")
    args = parser.read(argv)
    for name in ("num_envs", "horizon", "updates", "more_updates", "num_episodes"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} must be at least 1, it is {getattr(args, name)}")
    for name in ("shared_updates", "max_rounds", "motor_noise", "max_terminated"):
        if not getattr(args, name) >= 0:  # so that NaN is refused too
            raise UserError(f"--{name} must not be negative, it is {getattr(args, name)}")
    if min(args.hidden_dims) < 1:
        raise UserError(f"--hidden_dims must be at least 1 each, they are {args.hidden_dims}")
    if math.isnan(args.min_return):
        raise UserError("--min_return must be a number, it is nan")
    if not 0 <= args.seed <= MAX_SEED:
        raise UserError(f"--seed must be between 0 and {MAX_SEED}, it is {args.seed}")
    if args.quick:
        args.num_envs, args.horizon, args.shared_updates, args.updates = 4, 10, 2, 4
        args.more_updates, args.max_rounds, args.num_episodes = 2, 1, 2
    args.device = resolve_device(args.device)
    return args


def critic_cfg(args: argparse.Namespace) -> CriticCfg:
    """Settings of the critics' regression."""
    return CriticCfg(num_envs=4, num_steps=20, keep=10, updates=4) if args.quick else CriticCfg()


def find_vehicles(args: argparse.Namespace) -> list[Path]:
    """List the vehicles to train on, each of them checked."""
    files = vehicle_files(args.vehicles)
    number = len(files) if args.num_teachers is None else args.num_teachers
    if not 1 <= number <= len(files):
        raise UserError(f"--num_teachers {number}: {args.vehicles} has {len(files)} vehicles")
    load_vehicles([str(file) for file in files[:number]])
    taken = [file for file in files[:number] if file.stem == Path(STATE).stem]
    if taken:
        raise UserError(f"{taken[0]}: a teacher of this name would overwrite the training's state; rename the vehicle")
    return files[:number]


def begin_output(args: argparse.Namespace) -> None:
    """Make the folder, and keep other processes and a training that is there already from harm."""
    if not args.resume and (args.output / STATE).exists():
        raise UserError(f"'{args.output}' has a training in it: go on with --resume, or name another --output")
    if args.resume and not (args.output / STATE).exists():
        raise UserError(f"--resume: '{args.output / STATE}' does not exist: there is nothing to go on with")
    args.output.mkdir(parents=True, exist_ok=True)
    lock_folder(args.output, f"another process trains teachers in '{args.output}': stop it, or name another --output")


def make_job(args: argparse.Namespace, files: list[Path]) -> TeacherJob:
    """Begin a training, or go on with a saved one (whose settings then stand)."""
    fleet = Fleet(files, args.device)
    if args.resume:
        saved = load_checkpoint(args.output / STATE)
        if "cfg" not in saved or "vehicles" not in saved:
            raise UserError(f"--resume: '{args.output / STATE}' is not the state of a training of teachers")
        if saved["cfg"]["num_teachers"] != len(files):
            number = saved["cfg"]["num_teachers"]
            raise UserError(f"--resume: the training that was saved has {number} teachers: use --num_teachers {number}")
        return TeacherJob.restore(fleet, saved)
    names = {name: value for name, value in vars(args).items() if name in JobCfg.__dataclass_fields__}
    cfg = JobCfg(**{**names, "num_teachers": len(files)})
    if cfg.method == "ppo" and not args.quick:
        cfg.for_ppo()
    compiler = shutil.which("g++") or shutil.which("clang++")
    if args.compile is not None or compiler is None:
        cfg.compile_from = 0 if args.compile else NEVER
    return TeacherJob(fleet, cfg)


def run(job: TeacherJob, output: Path, stop: Interrupt, console: Console) -> bool:
    """Train until the end or a signal; say whether it was the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    saved_at, told_at, stage, bar = time.monotonic(), time.monotonic(), -1, None
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[reward]}"), console=console) as progress:
        while not job.finished and not stop.interrupted():
            if bar is None or job.stage != stage:
                stage = job.stage
                bar = progress.add_task(job.stage_name, total=job.trainer.cfg.updates, reward="")
            rewards = job.update()
            done = job.trainer.updates_done if job.stage == stage and not job.finished else None
            mean = f"reward per step {rewards.mean().item():.2f}"
            progress.update(bar, completed=progress.tasks[bar].total if done is None else done, reward=mean)
            if time.monotonic() - told_at > TELL_EVERY and not console.is_terminal:  # where no bar can be drawn
                console.print(progress_line(progress.tasks[bar]))
                told_at = time.monotonic()
            if time.monotonic() - saved_at > SAVE_EVERY:
                atomic_torch_save(job.state_dict(), output / STATE)
                saved_at = time.monotonic()
    atomic_torch_save(job.state_dict(), output / STATE)
    return job.finished


def progress_line(task: Task) -> str:
    """Say in one line how far a stage is."""
    left = "" if task.time_remaining is None else f", {timedelta(seconds=int(task.time_remaining))} left"
    return f"{task.description} {int(task.completed)}/{int(task.total or 0)}, {task.fields['reward']}{left}"


def report(job: TeacherJob, manifest: Path, console: Console) -> None:
    """Print what came of it."""
    assert job.score is not None
    returns, terminated = job.score.mean_return, job.score.terminated
    failed, names = job.failed(), [file.stem for file in job.fleet.files]
    console.print(
        f"{len(returns)} teachers: return {returns.mean():.1f} (worst {returns.min():.1f}, median "
        f"{returns.median():.1f}, best {returns.max():.1f}), terminated {100 * terminated.mean():.2f} %, error in the "
        f"last second {100 * job.score.position_error.mean():.1f} cm"
    )
    console.print(f"{job.cpu_seconds:.0f} CPU s, {job.cpu_seconds / len(returns):.2f} a teacher; {manifest}")
    if failed:
        listed = ", ".join(f"{names[i]} ({returns[i]:.0f})" for i in failed)
        console.print(f"{len(failed)} failed (return below {job.cfg.min_return:g}): {listed}")


def main(argv: list[str] | None = None) -> int:
    """Train, measure, write."""
    args = parse(argv)
    torch.set_num_threads(1)
    console = Console(highlight=False, soft_wrap=True)
    files = find_vehicles(args)
    begin_output(args)
    job = make_job(args, files)
    with Interrupt() as stop:
        finished = run(job, args.output, stop, console)
    if not finished:
        console.print(f"stopped; {args.output / STATE} is saved: go on with --resume")
        return stop.exit_code
    assert job.score is not None
    critics, explained = fit_teachers_critics(job.fleet, job.policies, critic_cfg(args), job.cfg.seed + CRITIC_SEED)
    report(job, write_teachers(args.output, files, job.policies, critics, job.score, job.failed()), console)
    share = 100 * explained.median().item()
    console.print(f"critics explain {share:.1f} % of their returns' variance (median, held-out rows)")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
