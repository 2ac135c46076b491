"""Train a policy with RSL-RL, with Isaac Lab's flags and log folders.

Beside RSL-RL's own ``model_<iteration>.pt`` the run keeps ``best_model.pt``, chosen by evaluation, because PPO
oscillates.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are imported: an end without a traceback

import argparse
import importlib.util
import logging
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if not __package__:  # run as a file of a clone: take this clone's packages
    sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from foundation.cli.cli_args import (
    CommandParser,
    Interrupt,
    add_hydra_args,
    add_launch_args,
    add_rsl_rl_args,
    parse_command,
    positive_int,
    run_command,
    say_beaten,
    set_up_logging,
    typed_value,
)
from foundation.cli.command import refuse_many_processes
from foundation.cli.hydra_app import run_application
from foundation.config.distillation_cfg import LoggerName
from foundation.config.interpolation import interpolate
from foundation.config.overrides import Overrides, parse_overrides
from foundation.config.plain import to_plain
from foundation.core.errors import RunInterrupted, UserError, suggest

if TYPE_CHECKING:
    from foundation.engines.base import Configure, Engine, LaunchRequest
    from foundation.ppo.judge import Judge
    from foundation.ppo.library_runner import RslRlRunner
    from foundation.runs.run_dir import RunDir

log = logging.getLogger("foundation.train")

LOG_ROOT = Path("logs") / "rsl_rl"
LOGGERS = get_args(LoggerName)


def build_parser() -> CommandParser:
    """Return the flags that are known before an engine adds its own."""
    parser = CommandParser(prog="train.py", description="Train a policy with RSL-RL.")
    add_launch_args(parser)
    add_rsl_rl_args(parser)
    group = parser.add_argument_group("training")
    group.add_argument("--max_iterations", type=positive_int, metavar="N", help="iterations of collection and learning")
    if "--distributed" not in parser.flag_names():
        group.add_argument("--distributed", action="store_true", help="one process per GPU, started by torchrun")
    group.add_argument(
        "--agent",
        default="rsl_rl_cfg_entry_point",
        metavar="ENTRY_POINT",
        help="which of the task's agent configs (rsl_rl_cfg_entry_point); its class_name is the runner that runs",
    )
    add_hydra_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, once or (``--multirun``) for each job of a sweep, and return its exit code."""
    set_up_logging()
    return run_application("foundation.rsl_rl.train", build_parser(), argv)


def run(argv: Sequence[str]) -> int:
    """Configure one job and train; return the exit code."""
    engine, request, configure, rank = prepare(argv)
    with engine.launch(request, configure) as (env_cfg, agent_cfg):
        return train(engine, env_cfg, agent_cfg, request.args, rank)


def compose_configs(argv: Sequence[str]) -> dict[str, Any]:
    """Return the configs that a command line gives, starting nothing."""
    engine, request, configure, _ = prepare(argv)
    env_cfg, agent_cfg = engine.load_configs(request)
    configure(env_cfg, agent_cfg)
    return {"env": to_plain(env_cfg), "agent": to_plain(agent_cfg)}


def prepare(argv: Sequence[str]) -> tuple[Engine, LaunchRequest, Configure, int]:
    """Read a command line; return the engine, what it is asked for, what sets the configs, and this process's rank."""
    parser = build_parser()
    args, _ = parse_command(parser, argv, strict=False)
    if not args.distributed:
        refuse_many_processes("train.py runs in one process unless it is given --distributed: add it")
    if args.task is None:
        raise UserError("--task is missing, e.g. --task Isaac-Quadcopter-Point-Ctrl-v0")
    from foundation.engines import select_engine
    from foundation.engines.base import LaunchRequest

    engine_cls, reason = select_engine(args.task, args.engine or "auto")
    log.info(reason)
    engine = engine_cls()
    engine.add_args(parser)
    args, tokens = parse_command(parser, argv)
    overrides = parse_overrides(tokens, scopes=("env", "agent"))
    args.presets = overrides.take(engine.selectors)
    device, rank = choose_device(args, overrides)
    request = LaunchRequest(args.task, args.agent, device, args.headless, args.video, args, needs_agent=True)
    return engine, request, _configurer(engine, args, overrides, device, rank), rank


def choose_device(args: argparse.Namespace, overrides: Overrides) -> tuple[str, int]:
    """Return the compute device and this process's rank: as asked for, else a GPU where there is one."""
    import torch

    if args.distributed:
        if "WORLD_SIZE" not in os.environ or not torch.cuda.is_available():
            raise UserError("--distributed needs GPUs and 'torchrun --nproc_per_node=N train.py ... --distributed'")
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}", int(os.environ.get("RANK", "0"))
    asked = args.device or typed_value(overrides, "agent", "device") or typed_value(overrides, "env", "sim.device")
    return str(asked or ("cuda:0" if torch.cuda.is_available() else "cpu")), 0


def _configurer(
    engine: Engine, args: argparse.Namespace, overrides: Overrides, device: str, rank: int
) -> Callable[[Any, Any], None]:
    """Return what applies overrides, then flags (which win), to the configs."""

    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        say_beaten(args, overrides)
        overrides.configure(env_cfg, agent_cfg)
        own = {"env": to_plain(env_cfg), "agent": to_plain(agent_cfg)}
        project = args.log_project_name
        flags = {
            "seed": args.seed, "max_iterations": args.max_iterations, "experiment_name": args.experiment_name,
            "run_name": args.run_name, "logger": args.logger, "load_run": args.load_run, "resume": args.resume or None,
            "load_checkpoint": args.checkpoint, "wandb_project": project, "neptune_project": project,
        }  # fmt: skip
        for name, value in flags.items():
            if value is not None:
                setattr(agent_cfg, name, interpolate(value, own, f"--{name} {value}"))
        if agent_cfg.seed == -1:
            agent_cfg.seed = random.randint(0, 10_000)
        agent_cfg.seed += rank
        agent_cfg.device = device
        env_seed = typed_value(overrides, "env", "seed")
        seed = agent_cfg.seed if env_seed is None or args.seed is not None else None
        env_device = None if args.device is None and typed_value(overrides, "env", "sim.device") else device
        engine.set_common(env_cfg, num_envs=args.num_envs, seed=seed, device=env_device)
        check_agent_cfg(agent_cfg)

    return configure


def check_agent_cfg(agent_cfg: Any) -> None:
    """Refuse settings that cannot work, before anything is built."""
    for name in ("num_steps_per_env", "max_iterations", "save_interval"):
        if not getattr(agent_cfg, name) >= 1:
            raise UserError(f"agent.{name} must be at least 1, it is {getattr(agent_cfg, name)}")
    for name in ("learning_rate",):
        value = getattr(agent_cfg.algorithm, name, 1.0)
        if not 0.0 < value < float("inf"):
            raise UserError(f"agent.algorithm.{name} must be positive and finite, it is {value}")
    if agent_cfg.logger not in LOGGERS:
        raise UserError(f"--logger {agent_cfg.logger}: unknown logger. {suggest(str(agent_cfg.logger), LOGGERS)}")
    if agent_cfg.logger != "tensorboard" and importlib.util.find_spec(agent_cfg.logger) is None:
        raise UserError(f"--logger {agent_cfg.logger}: not installed, pip install {agent_cfg.logger}")


def find_checkpoint(agent_cfg: Any, args: argparse.Namespace, distils: bool) -> Path | None:
    """Return the file to load: the run to resume, or the teacher of a distillation run; None to start afresh."""
    from foundation.runs.run_dir import RunDir

    if not agent_cfg.resume and not distils:
        if args.load_run or args.checkpoint:
            if args.checkpoint and Path(args.checkpoint).is_file():
                refuse_student(Path(args.checkpoint))
            raise UserError("--load_run and --checkpoint say what to go on with: add --resume")
        return None
    if args.checkpoint and (os.sep in args.checkpoint or Path(args.checkpoint).is_file()):
        refuse_student(Path(args.checkpoint))
        return Path(args.checkpoint)
    pattern = agent_cfg.load_checkpoint
    try:
        run = RunDir.find(LOG_ROOT, agent_cfg.experiment_name, agent_cfg.load_run)
        if distils and not agent_cfg.resume and args.checkpoint is None and (run.path / "best_model.pt").is_file():
            return run.path / "best_model.pt"
        return run.checkpoint_path(pattern)
    except UserError as error:
        if agent_cfg.resume:
            raise
        raise UserError(f"a distillation run needs a teacher, --checkpoint PATH ({error})") from error


def refuse_student(path: Path) -> None:
    """Name a student of ``distillation.py``, which RSL-RL's runners cannot read, and what can be done with it."""
    from foundation.core.files import load_checkpoint

    try:
        checkpoint = load_checkpoint(path)
    except UserError:
        return  # whatever it is, the runner says so
    if isinstance(checkpoint, dict) and {"student", "model_state_dict"} <= set(checkpoint):
        raise UserError(
            f"{path} is a student of distillation.py, which RSL-RL's runners cannot go on with. Distil further from "
            f"its weights: distillation.py ... distill.student.init_checkpoint={path}; or write it in RSL-RL's layout "
            "with foundation.export.rsl_rl.write_rsl_rl and --resume from that file"
        )


def train(engine: Engine, env_cfg: Any, agent_cfg: Any, args: argparse.Namespace, rank: int = 0) -> int:
    """Train the launched task; return the exit code."""
    from foundation.engines.base import VideoRequest
    from foundation.ppo.library_runner import RslRlRunner
    from foundation.ppo.versions import translate
    from foundation.runs.run_dir import RunDir

    distils = translate(agent_cfg)["class_name"] == "DistillationRunner"
    checkpoint = find_checkpoint(agent_cfg, args, distils)
    _seed_everything(agent_cfg.seed)
    run = RunDir.create(LOG_ROOT, agent_cfg.experiment_name, agent_cfg.run_name) if rank == 0 else None
    video = VideoRequest(run.video_dir("train"), args.video_length, args.video_interval) if args.video and run else None
    env: Any = None
    try:
        if run:
            engine.set_log_dir(env_cfg, run.path)
        env = engine.make_env(env_cfg, agent_cfg, video=video)
        runner = RslRlRunner(env, agent_cfg, None if run is None else run.path, agent_cfg.device)
        if checkpoint is not None:
            _load(runner, checkpoint, agent_cfg.resume)
        if run is None:
            runner.learn(agent_cfg.max_iterations)
            return 0
        return _train_in(run, engine, env_cfg, agent_cfg, runner)
    finally:
        getattr(env, "close", lambda: None)()
        if run is not None:
            run.discard_if_empty()


def _train_in(run: RunDir, engine: Engine, env_cfg: Any, agent_cfg: Any, runner: RslRlRunner) -> int:
    """Write down what is run, and run it, in the run's folder."""
    from foundation.ppo.judge import Judge
    from foundation.ppo.versions import installed_version

    run.save_params(env_cfg, agent_cfg)
    runner.runner.add_git_repo_to_log(__file__)
    env = runner.runner.env
    where = f"{env.num_envs} environments on {env.device}"
    log.info("rsl-rl-lib %s, %s; writing to %s", installed_version(), where, run.path)
    judge = Judge(engine, env_cfg, agent_cfg, runner, run)
    try:
        return learn(runner, run, agent_cfg.max_iterations, judge)
    finally:
        judge.close()


def _load(runner: RslRlRunner, checkpoint: Path, resume: bool) -> None:
    resumed = runner.load(checkpoint)
    if resumed and not resume:
        raise UserError(f"{checkpoint} is a student's: name a teacher with --checkpoint, or go on with it by --resume")
    what = f"going on with iteration {runner.iteration} from" if resumed else "teacher:"
    log.info("%s %s", what, checkpoint)


def _seed_everything(seed: int) -> None:
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def learn(runner: RslRlRunner, run: RunDir, iterations: int, judge: Judge) -> int:
    """Run the iterations, judging the policy now and then; save whatever ends them."""
    start = time.perf_counter(), time.process_time()
    with Interrupt() as interrupt:

        def after(iteration: int) -> None:
            runner.check_finite()
            run.check_there()
            judge(iteration)
            if interrupt.interrupted():
                raise RunInterrupted

        runner.on_iteration = after
        try:
            runner.learn(iterations)
        except RunInterrupted:
            path = run.path / f"model_{runner.iteration}.pt"
            run.check_there()
            runner.save(path)
            log.info("%s: saved %s; go on with --resume", interrupt.interrupted(), path)
            return interrupt.exit_code
        runner.on_iteration = None
        judge(runner.iteration, last=True)
        judge.report(time.perf_counter() - start[0], time.process_time() - start[1])
        return interrupt.exit_code


if __name__ == "__main__":
    sys.exit(run_command(main, many_processes=True))
