"""One job of ``distillation.py``: its command line resolved, then carried out in a session or from a dataset alone."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from foundation.cli.agent_defaults import (
    choose_groups,
    groups_line,
    name_experiment,
    size_student,
    warn_without_effect,
)
from foundation.cli.cli_args import CommandParser, distillation_flags, parse_command, resolve_device, say_beaten
from foundation.cli.load_teachers import Teacher, drop_weak_teachers, fit_environments
from foundation.cli.run_to_end import LOG_ROOT, run_folder, run_to_end
from foundation.cli.session import Session
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.overrides import Overrides, parse_overrides
from foundation.config.plain import to_plain
from foundation.config.resolve import Choice, Resolved, resolve
from foundation.config.validate import read
from foundation.core.errors import UserError
from foundation.core.registry import refuse_untyped_names
from foundation.dataset.disk.writer import refuse_dataset_in_use
from foundation.engines import select_engine
from foundation.engines.base import AgentCfg, Engine, EnvCfg, LaunchRequest, VideoRequest
from foundation.learning.losses import LOSSES, check_main_loss
from foundation.runs.changed_settings import changed_settings
from foundation.runs.metrics_writer import MetricsWriter, check_logger
from foundation.runs.offline import OfflineRunner, open_for
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import checkpoint_to_resume, first_step, steps_taken
from foundation.runs.runner import DistillationRunner
from foundation.students import student_cfg_class

logger = logging.getLogger("foundation.distillation")
TEACHER_ROOT = Path("logs/rsl_rl")


@dataclass
class Request:
    """A command line of ``distillation.py``, its config resolved, before any engine is chosen."""

    parser: CommandParser
    argv: Sequence[str]
    args: argparse.Namespace
    tokens: list[str]
    """What was typed as ``key=value``, or may have been: an engine's own flags are not known yet."""
    resumed: RunDir | None
    overrides: Overrides
    resolved: Resolved

    @classmethod
    def read(cls, parser: CommandParser, argv: Sequence[str]) -> Request:
        """Read a command line.

        Args:
            parser: Knows the flags that need no engine.
            argv: Arguments without the program's name.
        """
        args, tokens = parse_command(parser, argv, strict=False)
        resumed = find_run(args) if args.resume else None
        overrides, resolved = settle(args, tokens, resumed)
        return cls(parser, argv, args, tokens, resumed, overrides, resolved)

    @property
    def cfg(self) -> DistillationCfg:
        """The run's configuration."""
        return self.resolved.cfg


@dataclass
class Job:
    """What the command line asks of an engine, before its simulator is up."""

    args: argparse.Namespace
    overrides: Overrides
    resolved: Resolved
    engine: Engine
    resumed: RunDir | None

    @classmethod
    def choose_engine(cls, request: Request) -> Job:
        """Choose the engine; its own flags are known only then."""
        if request.cfg.task is None:
            parse_command(request.parser, request.argv)  # a misspelt --task is the likely reason
            raise UserError("no task was given: --task ID, such as --task Isaac-Quadcopter-Point-Ctrl-v0")
        engine, why = select_engine(request.cfg.task, request.cfg.engine)
        engine.add_args(request.parser)
        args, own_tokens = parse_command(request.parser, request.argv)
        overrides = request.overrides
        resolved = request.resolved
        if own_tokens != request.tokens:  # what looked like an override was the value of one of the engine's flags
            overrides, resolved = settle(args, own_tokens, request.resumed)
        logger.info("%s", why)
        args.presets = overrides.take(engine.selectors)
        return cls(args, overrides, resolved, engine(), request.resumed)

    @property
    def cfg(self) -> DistillationCfg:
        """The run's configuration."""
        return self.resolved.cfg

    def load_configs(self) -> dict[str, Any]:
        """Return the three configs as plain values, starting nothing."""
        cfg = self.cfg
        env_cfg, agent_cfg = self.engine.load_configs(LaunchRequest(cfg.task or "", device=cfg.device, args=self.args))
        self.configure(env_cfg, agent_cfg)
        name_experiment(cfg, agent_cfg)
        if self.resumed is None:
            size_student(cfg, self.overrides)
        return {"env": to_plain(env_cfg), "agent": to_plain(agent_cfg), "distill": to_plain(cfg)}

    @contextlib.contextmanager
    def launch(self, teacher: Teacher) -> Iterator[Session]:
        """Start the simulator, and fill in what its configs say about the run.

        Args:
            teacher: One teacher, or many, to whose number the environments are fitted.
        """
        cfg, args = self.cfg, self.args

        def configure(env_cfg: EnvCfg, agent_cfg: AgentCfg) -> None:
            self.configure(env_cfg, agent_cfg)
            fit_environments(self.engine, env_cfg, teacher)

        request = LaunchRequest(cfg.task or "", device=cfg.device, headless=args.headless, video=args.video, args=args)
        with Session.launch(self.engine, request, configure) as session:
            name_experiment(cfg, session.agent_cfg)
            say_beaten(args, self.overrides)
            warn_without_effect(self.overrides, cfg, session.env_cfg)
            if self.resumed is None and size_student(cfg, self.overrides):
                self.resolved.choices["student"] = Choice(cfg.student.name, "sizes of the task's agent config")
            logger.info("%s", self.resolved.choices_line())
            yield session

    def configure(self, env_cfg: EnvCfg, agent_cfg: AgentCfg) -> None:
        """Apply files, overrides and flags, each of which beats those before it, to the simulator's configs."""
        cfg = self.cfg
        self.engine.set_common(env_cfg, num_envs=cfg.num_envs, seed=cfg.seed, device=cfg.device)
        self.resolved.configure(env_cfg, agent_cfg, self.overrides)
        device = self.args.device and cfg.device
        self.engine.set_common(env_cfg, num_envs=self.args.num_envs, seed=self.args.seed, device=device)

    def run(self, session: Session, teacher: Teacher) -> int:
        """Make the run's folder, its environment and its runner, and let it run.

        Args:
            session: The launched engine.
            teacher: What is imitated.

        Returns:
            The exit code.
        """
        cfg = self.cfg
        refuse_dataset_in_use(cfg.dataset.save)
        # The session's environments are closed before an empty folder is removed: a video may be written in it.
        with run_folder(self.resumed, cfg.experiment_name or "", cfg.run_name) as run, contextlib.closing(session):
            session.set_log_dir(run.path)
            if self.resumed is None:
                self.save_params(run, session)  # from here on it can be resumed
            checkpoint = None if self.resumed is None else checkpoint_to_resume(run, self.args.checkpoint)
            if checkpoint is None:
                teacher = drop_weak_teachers(session, cfg, teacher)
            first = first_step(checkpoint) if self.resumed else None
            build = self._builder(run, session, teacher, checkpoint)
            return run_to_end(run, cfg, first, build)

    def _builder(
        self, run: RunDir, session: Session, teacher: Teacher, checkpoint: dict[str, Any] | None
    ) -> Callable[[MetricsWriter, Callable[[], str]], DistillationRunner]:
        """Make the environment; return what builds the runner in it, resumed where there is a checkpoint."""
        cfg, args = self.cfg, self.args
        video = None
        if args.video:
            video = VideoRequest(run.video_dir(), args.video_length, args.video_interval, steps_taken(checkpoint))
        env = session.make_env(video=video)
        cfg.num_envs = env.num_envs
        obs = env.get_observations()
        choose_groups(cfg, session.agent_cfg, teacher, obs)
        print(groups_line(cfg, obs))
        clip = read(session.agent_cfg, "clip_actions")

        def build(writer: MetricsWriter, interrupted: Callable[[], str]) -> DistillationRunner:
            runner = DistillationRunner(
                env,
                teacher,
                cfg,
                run,
                make_eval_env=session.make_eval_env,
                writer=writer,
                interrupted=interrupted,
                label_bound=None if clip is None else float(clip),
            )
            cfg.dataset.size = runner.dataset.capacity  # a run resumed for more epochs keeps its dataset
            if self.resumed is not None:
                resume(run, runner, checkpoint, session)
            self.save_params(run, session)
            return runner

        return build

    def save_params(self, run: RunDir, session: Session) -> None:
        """Write the configs, and what ``distillation.yaml`` does not hold: files' values, typed overrides once each."""
        own = vars(self.cfg)
        items = [*self.overrides.scoped.get("env", []), *self.overrides.scoped.get("agent", [])]
        items += [item for item in self.overrides.bare if item.path.partition(".")[0] not in own]
        tokens = list(dict.fromkeys([*self.args.presets, *(item.token for item in items)]))
        resolved = self.resolved
        typed = {"env": resolved.env, "agent": resolved.agent, "tokens": tokens, "choices": resolved.choices}
        run.save_params(session.env_cfg, session.agent_cfg, self.cfg, typed)


def compose_configs(parser: CommandParser, argv: Sequence[str]) -> dict[str, Any]:
    """Return the configs that a command line gives, starting nothing."""
    request = Request.read(parser, argv)
    if request.cfg.offline:
        return {"distill": to_plain(request.cfg)}
    return Job.choose_engine(request).load_configs()


def settle(args: argparse.Namespace, tokens: list[str], resumed: RunDir | None) -> tuple[Overrides, Resolved]:
    """Resolve the config from files (or the run to resume), overrides and flags."""
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


def resume(run: RunDir, runner: DistillationRunner, checkpoint: dict[str, Any] | None, session: Session) -> None:
    """Put a run back to where it was, and say whether it goes on exactly and with which other settings."""
    inexact = "" if checkpoint is None else runner.restore(checkpoint)
    how = f"not exact: {inexact}" if inexact else "exact"
    changed = ""
    if checkpoint is not None:
        changed = changed_settings(run, checkpoint, runner.cfg, session.env_cfg, session.agent_cfg)
    if runner.epoch >= runner.cfg.n_epochs:
        how = f"of {runner.cfg.n_epochs}: only the best student is measured again; --n_epochs asks for more"
    print(f"Resuming {run.path} after epoch {runner.epoch} ({how}{changed})")


def run_offline(request: Request) -> int:
    """Learn from a saved dataset, without a simulator and without a teacher; return the exit code."""
    parse_command(request.parser, request.argv)  # no engine adds flags: what is unknown is so now
    cfg, resumed = request.cfg, request.resumed
    refuse_simulator(request.args, request.overrides, cfg)
    say_beaten(request.args, request.overrides)
    logger.info("%s", request.resolved.choices_line())
    open_for(cfg)
    cfg.experiment_name = cfg.experiment_name or (cfg.task or "").rpartition(":")[2]
    with run_folder(resumed, cfg.experiment_name, cfg.run_name) as run:
        run.save_params(distillation_cfg=cfg, overrides={"choices": request.resolved.choices})
        checkpoint = None if resumed is None else checkpoint_to_resume(run, request.args.checkpoint)

        def build(writer: MetricsWriter, interrupted: Callable[[], str]) -> OfflineRunner:
            runner = OfflineRunner(cfg, run, writer=writer, interrupted=interrupted)
            if resumed is not None:
                runner.resume(checkpoint)
                changed = "" if checkpoint is None else changed_settings(run, checkpoint, cfg)
                print(f"Resuming {run.path} after epoch {runner.epoch} (exact{changed})")
            return runner

        first = 0 if checkpoint is None else int(checkpoint["epoch"]) + 1
        return run_to_end(run, cfg, first if resumed else None, build)


def refuse_simulator(args: argparse.Namespace, overrides: Overrides, cfg: DistillationCfg) -> None:
    """Refuse what only a simulator could do.

    Raises:
        UserError: Naming the flag or the key.
    """
    if args.video:
        raise UserError("--offline has no simulator, and so nothing for --video to record: leave it out")
    own = vars(cfg)
    foreign = [item.token for room in ("env", "agent") for item in overrides.scoped.get(room, [])]
    foreign += [item.token for item in overrides.bare if item.path.partition(".")[0] not in own]
    if foreign:
        raise UserError(f"--offline has no environment and no agent that '{foreign[0]}' could set: leave it out")
