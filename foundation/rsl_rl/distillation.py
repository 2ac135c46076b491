"""Distil a trained teacher into a small student: ``python foundation/rsl_rl/distillation.py --help``.

The names that a deployed student needs can be imported from here too; nothing is parsed on import.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are imported: an end without a traceback

import argparse
import contextlib
import copy
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if not __package__:  # run, or imported, as a file of a clone: take this clone's packages
    sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

import foundation
from foundation.cli.agent_values import (
    choose_groups,
    groups_line,
    name_experiment,
    read,
    size_student,
    warn_without_effect,
)
from foundation.cli.cli_args import (
    CommandParser,
    Interrupt,
    add_distillation_args,
    add_hydra_args,
    add_launch_args,
    add_rsl_rl_args,
    distillation_flags,
    parse_command,
    resolve_device,
    run_command,
    say_beaten,
    set_up_logging,
)
from foundation.cli.command import reader_has_gone
from foundation.cli.hydra_app import run_application
from foundation.cli.teacher_set import drop_weak_teachers, fit_environments, load_teacher
from foundation.config.overrides import Overrides, parse_overrides
from foundation.config.plain import to_plain
from foundation.config.resolve import Choice, Resolved, resolve
from foundation.core.errors import RunInterrupted, UserError
from foundation.core.registry import import_flags, refuse_untyped_names

if TYPE_CHECKING:
    from foundation.engines.base import Engine
    from foundation.runs.run_dir import RunDir
    from foundation.runs.runner import DistillationRunner

logger = logging.getLogger("foundation.distillation")
LOG_ROOT = Path("logs/distillation")
TEACHER_ROOT = Path("logs/rsl_rl")


def __getattr__(name: str) -> Any:
    """Import ``StudentPolicy`` and the other public names when they are asked for."""
    if name in foundation.__all__:
        return getattr(foundation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass
class Job:
    """What the command line asks for, before a simulator is up."""

    args: argparse.Namespace
    overrides: Overrides
    resolved: Resolved
    engine: Engine
    resumed: RunDir | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, once or (``--multirun``) for each job of a sweep, and return its exit code."""
    set_up_logging()
    return run_application("foundation.rsl_rl.distillation", build_parser(), argv)


def run(argv: Sequence[str]) -> int:
    """Run one job and return its exit code."""
    parser = build_parser()
    args, tokens = parse_command(parser, argv, strict=False)
    resumed = find_run(args) if args.resume else None
    overrides, resolved = settle(args, tokens, resumed)
    if resolved.cfg.offline:
        from foundation.rsl_rl.offline_run import run_offline

        parse_command(parser, argv)  # no engine adds flags: what is unknown is so now
        return run_offline(args, overrides, resolved, resumed, LOG_ROOT)
    job = prepare(args, tokens, parser, argv, resumed, overrides, resolved)
    cfg = job.resolved.cfg
    teacher = load_teacher(cfg)
    print(teacher.architecture_line())
    return launch(job, teacher)


def build_parser() -> CommandParser:
    """Return the parser of every flag that needs no simulator."""
    parser = CommandParser(prog="distillation.py", description="Distil a trained teacher into a small student.")
    add_launch_args(parser)
    add_rsl_rl_args(parser)
    add_distillation_args(parser)
    add_hydra_args(parser)
    return parser


def compose_configs(argv: Sequence[str]) -> dict[str, Any]:
    """Return the configs that a command line gives, starting nothing."""
    from foundation.engines.base import LaunchRequest

    parser = build_parser()
    args, tokens = parse_command(parser, argv, strict=False)
    resumed = find_run(args) if args.resume else None
    overrides, resolved = settle(args, tokens, resumed)
    if resolved.cfg.offline:
        return {"distill": to_plain(resolved.cfg)}
    job = prepare(args, tokens, parser, argv, resumed, overrides, resolved)
    cfg = job.resolved.cfg
    request = LaunchRequest(task=cfg.task or "", device=cfg.device, args=job.args)
    env_cfg, agent_cfg = job.engine.load_configs(request)
    configure(job, env_cfg, agent_cfg)
    name_experiment(cfg, agent_cfg)
    if resumed is None:
        size_student(cfg, job.overrides)
    return {"env": to_plain(env_cfg), "agent": to_plain(agent_cfg), "distill": to_plain(cfg)}


def prepare(
    args: argparse.Namespace,
    tokens: list[str],
    parser: CommandParser,
    argv: Sequence[str] | None,
    resumed: RunDir | None,
    overrides: Overrides,
    resolved: Resolved,
) -> Job:
    """Settle the engine; its own flags are known only then."""
    from foundation.engines import select_engine

    if resolved.cfg.task is None:
        parse_command(parser, argv)  # a misspelt --task is the likely reason
        raise UserError("no task was given: --task ID, such as --task Isaac-Quadcopter-Point-Ctrl-v0")
    engine, why = select_engine(resolved.cfg.task, resolved.cfg.engine)
    engine.add_args(parser)
    args, own_tokens = parse_command(parser, argv)
    if own_tokens != tokens:  # what looked like an override was the value of one of the engine's flags
        overrides, resolved = settle(args, own_tokens, resumed)
    logger.info("%s", why)
    args.presets = overrides.take(engine.selectors)
    return Job(args, overrides, resolved, engine(), resumed)


def settle(args: argparse.Namespace, tokens: list[str], resumed: RunDir | None) -> tuple[Overrides, Resolved]:
    """Resolve the config from files (or the run to resume), overrides and flags."""
    from foundation.learning.losses import LOSSES, check_main_loss
    from foundation.runs.metrics_writer import check_logger
    from foundation.students import student_cfg_class

    if (args.checkpoint or args.load_run) and not args.resume:
        refuse_checkpoint(args)
    saved = load_overrides(resumed)
    if resumed and args.task not in (None, resumed.load_params().get("task")):
        other = resumed.load_params().get("task")
        raise UserError(f"{resumed.path} is a run of --task {other}: name another by --load_run or --experiment_name")
    overrides = parse_overrides([*saved.pop("tokens", []), *tokens])
    base = resumed.load_params() | saved if resumed else None
    resolved = resolve(
        overrides, distillation_flags(args), student_cfg_class=student_cfg_class, loss_names=LOSSES, base=base
    )
    resolved.cfg.device = resolve_device(resolved.cfg.device)
    check_logger(resolved.cfg.logger)
    if resolved.cfg.loss.name in LOSSES:  # before a simulator starts; a loss of another package is asked later
        check_main_loss(LOSSES[resolved.cfg.loss.name])
    return overrides, resolved


def refuse_checkpoint(args: argparse.Namespace) -> NoReturn:
    """Say what to type for what ``--load_run`` and ``--checkpoint`` mean without ``--resume``: mostly the teacher."""
    from foundation.runs.run_dir import RunDir

    flags = " and ".join(f"--{name}" for name in ("load_run", "checkpoint") if getattr(args, name))
    teacher = args.checkpoint if args.checkpoint and Path(args.checkpoint).is_file() else None
    if teacher is None:
        with contextlib.suppress(UserError):
            run = RunDir.find(TEACHER_ROOT, args.experiment_name, args.load_run)
            teacher = run.checkpoint_path(args.checkpoint or r"(best_model|model_\d+)\.pt")
    raise UserError(
        f"the teacher is named by --teacher_checkpoint {teacher or 'PATH'}; {flags} say here which run to go on with "
        "and need --resume (and a student's weights to start from are distill.student.init_checkpoint=PATH)"
    )


def find_run(args: argparse.Namespace) -> RunDir:
    """Find the run that ``--resume``, ``--load_run`` and ``--experiment_name`` mean."""
    from foundation.runs.run_dir import RunDir

    if args.checkpoint and Path(args.checkpoint).is_file():
        return RunDir(Path(args.checkpoint).resolve().parent)
    return RunDir.find(LOG_ROOT, args.experiment_name, args.load_run)


def load_overrides(run: RunDir | None) -> dict[str, Any]:
    """Return what a run was started with for the ``env`` and ``agent`` configs."""
    if run is None or not (run.params_dir / "overrides.yaml").exists():
        return {}
    saved = run.load_params("overrides")
    refuse_untyped_names(saved, f"{run.params_dir / 'overrides.yaml'}")
    return saved


def launch(job: Job, teacher: Any) -> int:
    """Start the simulator and run the job in it."""
    from foundation.engines.base import LaunchRequest

    cfg, engine = job.resolved.cfg, job.engine
    assert cfg.task is not None

    def configure_with_teacher(env_cfg: Any, agent_cfg: Any) -> None:
        configure(job, env_cfg, agent_cfg)
        fit_environments(engine, env_cfg, teacher)

    request = LaunchRequest(
        task=cfg.task, device=cfg.device, headless=job.args.headless, video=job.args.video, args=job.args
    )
    with engine.launch(request, configure_with_teacher) as (env_cfg, agent_cfg):
        name_experiment(cfg, agent_cfg)
        say_beaten(job.args, job.overrides)
        warn_without_effect(job.overrides, cfg, env_cfg)
        if job.resumed is None and size_student(cfg, job.overrides):
            job.resolved.choices["student"] = Choice(cfg.student.name, "sizes of the task's agent config")
        logger.info("%s", job.resolved.choices_line())
        return run_in(job, teacher, env_cfg, agent_cfg)


def configure(job: Job, env_cfg: Any, agent_cfg: Any) -> None:
    """Apply files, overrides and flags, each of which beats those before it, to the simulator's configs."""
    cfg, typed = job.resolved.cfg, job.args
    job.engine.set_common(env_cfg, num_envs=cfg.num_envs, seed=cfg.seed, device=cfg.device)
    job.resolved.configure(env_cfg, agent_cfg, job.overrides)
    device = typed.device and cfg.device
    job.engine.set_common(env_cfg, num_envs=typed.num_envs, seed=typed.seed, device=device)


def run_in(job: Job, teacher: Any, env_cfg: Any, agent_cfg: Any) -> int:
    """Make the run's folder, its environments and its runner, and let it run."""
    from foundation.dataset.disk.writer import refuse_dataset_in_use
    from foundation.engines.base import VideoRequest
    from foundation.runs.run_dir import RunDir
    from foundation.runs.run_state import checkpoint_to_resume, steps_taken

    cfg, args = job.resolved.cfg, job.args
    refuse_dataset_in_use(cfg.dataset.save)
    run = job.resumed or RunDir.create(LOG_ROOT, cfg.experiment_name or "", cfg.run_name)
    run.lock()
    try:
        job.engine.set_log_dir(env_cfg, run.path)
        if job.resumed is None:
            run.save_params(env_cfg, agent_cfg, cfg, typed_for_env_and_agent(job))  # from here on it can be resumed
        checkpoint = None if job.resumed is None else checkpoint_to_resume(run, args.checkpoint)
        if checkpoint is None:
            teacher = drop_weak_teachers(job.engine, cfg, env_cfg, agent_cfg, teacher)
        video = None
        if args.video:
            video = VideoRequest(run.video_dir(), args.video_length, args.video_interval, steps_taken(checkpoint))
        env = job.engine.make_env(env_cfg, agent_cfg, video=video)
        try:
            cfg.num_envs = env.num_envs
            obs = env.get_observations()
            choose_groups(cfg, agent_cfg, teacher, obs)
            print(groups_line(cfg, obs))
            make_eval_env = second_env(job.engine, env_cfg, agent_cfg)
            return run_with(job, run, env, teacher, make_eval_env, env_cfg, agent_cfg, checkpoint)
        finally:
            close = getattr(env, "close", None)
            if close is not None:
                close()
    finally:
        if job.resumed is None:
            run.discard_if_empty()


def second_env(engine: Engine, env_cfg: Any, agent_cfg: Any) -> Callable[[int], Any] | None:
    """Return a maker of evaluation environments, or None where a process can hold only one environment."""
    if engine.envs_per_process == 1:
        return None

    def make(num_envs: int) -> Any:
        own_cfg = copy.deepcopy(env_cfg)
        engine.set_common(own_cfg, num_envs=num_envs, seed=None, device=None)
        return engine.make_env(own_cfg, agent_cfg)

    return make


def run_with(
    job: Job,
    run: RunDir,
    env: Any,
    teacher: Any,
    make_eval_env: Any,
    env_cfg: Any,
    agent_cfg: Any,
    checkpoint: dict[str, Any] | None,
) -> int:
    """Build the runner, write the parameters, and run until the end or a signal."""
    from foundation.runs.metrics_writer import make_writer
    from foundation.runs.run_state import first_step
    from foundation.runs.runner import DistillationRunner

    cfg = job.resolved.cfg
    first = first_step(checkpoint) if job.resumed else None
    writer = make_writer(cfg.logger, run.path, cfg.log_project_name, cfg, purge_step=first)
    with Interrupt() as interrupt:
        try:
            clip = read(agent_cfg, "clip_actions")
            runner = DistillationRunner(
                env,
                teacher,
                cfg,
                run,
                make_eval_env=make_eval_env,
                writer=writer,
                interrupted=interrupt.interrupted,
                label_bound=None if clip is None else float(clip),
            )
            cfg.dataset.size = runner.dataset.capacity  # a run resumed for more epochs keeps its dataset
            start(job, run, runner, checkpoint, env_cfg, agent_cfg)
            run.save_params(env_cfg, agent_cfg, cfg, typed_for_env_and_agent(job))
            print(f"Logging to {run.path}")
            runner.run()
        except RunInterrupted as reason:
            print(f"Stopped ({reason}). Go on with: --resume --load_run {run.name}{import_flags()}")
        except BrokenPipeError:
            go_on = f"--resume --load_run {run.name}{import_flags()}"
            return reader_has_gone(f"Stopped: nobody reads the output. Go on with: {go_on}")
        finally:
            writer.close()
    return interrupt.exit_code


def start(
    job: Job,
    run: RunDir,
    runner: DistillationRunner,
    checkpoint: dict[str, Any] | None,
    env_cfg: Any,
    agent_cfg: Any,
) -> None:
    """Put a resumed run back to where it was, and say whether it goes on exactly and with which other settings."""
    from foundation.runs.changed_settings import changed_settings

    if job.resumed is None:
        return
    inexact = "" if checkpoint is None else runner.restore(checkpoint)
    how = f"not exact: {inexact}" if inexact else "exact"
    changed = "" if checkpoint is None else changed_settings(run, checkpoint, runner.cfg, env_cfg, agent_cfg)
    if runner.epoch >= runner.cfg.n_epochs:
        how = f"of {runner.cfg.n_epochs}: only the best student is measured again; --n_epochs asks for more"
    print(f"Resuming {run.path} after epoch {runner.epoch} ({how}{changed})")


def typed_for_env_and_agent(job: Job) -> dict[str, Any]:
    """Return what ``distillation.yaml`` does not hold: values of chosen files, and typed overrides, once each."""
    own = vars(job.resolved.cfg)
    items = [*job.overrides.scoped.get("env", []), *job.overrides.scoped.get("agent", [])]
    items += [item for item in job.overrides.bare if item.path.partition(".")[0] not in own]
    tokens = list(dict.fromkeys([*job.args.presets, *(item.token for item in items)]))
    choices = job.resolved.choices
    return {"env": job.resolved.env, "agent": job.resolved.agent, "tokens": tokens, "choices": choices}


if __name__ == "__main__":
    sys.exit(run_command(main))
