"""One job of ``distillation.py`` in a simulator: choose and launch its engine, then carry the run out."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from foundation.cli.agent_defaults import (
    choose_groups,
    groups_line,
    name_experiment,
    size_student,
    warn_without_effect,
)
from foundation.cli.cli_args import parse_command, say_beaten
from foundation.cli.derived_obs import derive_in
from foundation.cli.discrete_actions import choose_discrete
from foundation.cli.distillation_request import Request, settle
from foundation.cli.load_teachers import bind_code, code_changed, drop_weak_teachers, fit_environments
from foundation.cli.run_to_end import run_folder, run_to_end
from foundation.cli.session import Session
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.env_state import read_env_state
from foundation.config.overrides import Overrides
from foundation.config.plain import to_plain
from foundation.config.resolve import Choice, Resolved
from foundation.config.validate import label, read
from foundation.core.distributed import current
from foundation.core.errors import UserError
from foundation.dataset.disk.writer import refuse_dataset_in_use
from foundation.engines import select_engine
from foundation.engines.base import AgentCfg, Engine, EnvCapabilities, EnvCfg, LaunchRequest, VideoRequest
from foundation.rollout.joints import fit_joints
from foundation.runs.changed_settings import changed_processes, changed_settings, refuse_settled
from foundation.runs.metrics_writer import MetricsWriter
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import RunCheckpoint, RunState, first_step, load_named
from foundation.runs.run_teachers import Teacher
from foundation.runs.runner import DistillationRunner
from foundation.teachers.code import CodeTeacher

logger = logging.getLogger("foundation.distillation")

SETTLED = ("teacher.min_return", "teacher.below_min", "student.init_checkpoint", "student.init_encoder")
"""Settings that are read before the first epoch alone."""
AnyRunner = TypeVar("AnyRunner", bound=DistillationRunner)
"""The kind of runner that a job builds."""


@dataclass
class Job:
    """Command line of ``distillation.py`` with its engine, before the simulator is up."""

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
        """Start the simulator, and fill in the run's settings that its configs have.

        Args:
            teacher: One teacher, or many, to whose number the environments are fitted.
        """
        cfg = self.cfg
        args = self.args

        def configure(env_cfg: EnvCfg, agent_cfg: AgentCfg) -> None:
            self.configure(env_cfg, agent_cfg)
            fit_environments(self.engine, env_cfg, teacher)

        request = LaunchRequest(cfg.task or "", device=cfg.device, headless=args.headless, video=args.video, args=args)
        with Session.launch(self.engine, request, configure) as session:
            derive_in(session, cfg.obs, cfg.task or "", cfg.seed + current().rank)
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
        seed = cfg.seed + current().rank  # each process has other environments
        self.engine.set_common(env_cfg, num_envs=cfg.num_envs, seed=seed, device=cfg.device)
        self.resolved.configure(env_cfg, agent_cfg, self.overrides)
        typed_seed = None if self.args.seed is None else seed
        device = self.args.device and cfg.device
        self.engine.set_common(env_cfg, num_envs=self.args.num_envs, seed=typed_seed, device=device)

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
            checkpoint = None if self.resumed is None else load_named(run, self.args.checkpoint, RunState)
            if checkpoint is None:
                teacher = drop_weak_teachers(session, cfg, teacher)
            first = first_step(checkpoint) if self.resumed else None
            build = self.builder(run, session, teacher, checkpoint, DistillationRunner)
            return run_to_end(run, cfg, first, build)

    def builder(
        self,
        run: RunDir,
        session: Session,
        teacher: Teacher,
        checkpoint: RunCheckpoint[RunState] | None,
        make: Callable[..., AnyRunner],
    ) -> Callable[[MetricsWriter, Callable[[], str]], AnyRunner]:
        """Make the environment; return what builds the runner in it, resumed where there is a checkpoint.

        Args:
            run: The run's folder.
            session: Makes environments.
            teacher: What is imitated.
            checkpoint: What the run resumes from. None: it is a new run.
            make: Makes the runner; :class:`DistillationRunner` or one derived from it.
        """
        cfg = self.cfg
        args = self.args
        video = None
        if args.video and current().is_first:
            taken = 0 if checkpoint is None or checkpoint.state is None else checkpoint.state.steps_taken
            video = VideoRequest(run.video_dir(), args.video_length, args.video_interval, taken)
        session.env_state = teacher.info.env_state
        if checkpoint is not None:
            session.env_state = read_env_state(checkpoint.values, f"{run.path}")
        env = session.make_env(video=video)
        cfg.num_envs = env.num_envs
        obs = env.get_observations()
        bind_code(cfg, session.agent_cfg, teacher, env)
        choose_groups(cfg, session.agent_cfg, teacher, obs)
        print(groups_line(cfg, obs))
        for line in fit_joints(
            teacher, env, cfg.task or "", cfg.teacher.obs_groups or ["policy"], cfg.teacher.obs_slice
        ):
            print(line)
        for name, group in EnvCapabilities.of(env).derived_groups.items():
            print(f"Observation group '{name}': {group.size} columns of {group.line()}")
        discrete = choose_discrete(cfg, self.resolved.choices, teacher, env)
        if discrete:
            print(discrete)
        clip = read(session.agent_cfg, "clip_actions")

        def build(writer: MetricsWriter, interrupted: Callable[[], str]) -> AnyRunner:
            runner = make(
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
                code_changed(run, teacher)
            self.save_params(run, session, teacher)
            return runner

        return build

    def save_params(self, run: RunDir, session: Session, teacher: Teacher | None = None) -> None:
        """Write the configs, and what ``distillation.yaml`` does not hold: files' values, typed overrides once each.

        A teacher that is code, which has no checkpoint to read again, is described in ``teacher.yaml``.
        """
        own = vars(self.cfg)
        items = [*self.overrides.scoped.get("env", []), *self.overrides.scoped.get("agent", [])]
        items += [item for item in self.overrides.bare if item.path.partition(".")[0] not in own]
        tokens = list(dict.fromkeys([*self.args.presets, *(item.token for item in items)]))
        resolved = self.resolved
        typed = {"env": resolved.env, "agent": resolved.agent, "tokens": tokens, "choices": resolved.choices}
        code = teacher.describe() if isinstance(teacher, CodeTeacher) else None
        run.save_params(session.env_cfg, session.agent_cfg, self.cfg, typed, code)


def resume(
    run: RunDir, runner: DistillationRunner, checkpoint: RunCheckpoint[RunState] | None, session: Session
) -> None:
    """Restore a run, and print whether it resumes exactly and which settings have changed."""
    if checkpoint is not None:
        _refuse_settled(runner, checkpoint)
    inexact = "" if checkpoint is None else runner.restore(checkpoint)
    if checkpoint is not None and runner.shards.epochs:  # else the dataset begins anew, with what --dataset names
        refuse_settled(checkpoint.values.get("distillation"), runner.cfg, ["dataset.load"], label)
    how = f"not exact: {inexact}" if inexact else "exact"
    changed = ""
    if checkpoint is not None:
        changed = changed_settings(run, checkpoint.values, runner.cfg, session.env_cfg, session.agent_cfg)
        changed += changed_processes(checkpoint, bool(changed))
    if runner.epoch >= runner.cfg.n_epochs:
        how = f"of {runner.cfg.n_epochs}: only the best student is measured again; --n_epochs asks for more"
    print(f"Resuming {run.path} after epoch {runner.epoch} ({how}{changed})")


def _refuse_settled(runner: DistillationRunner, checkpoint: RunCheckpoint[RunState]) -> None:
    """Refuse to change what is read before the first epoch alone, once the teacher was measured.

    Raises:
        UserError: Naming the setting.
    """
    if checkpoint.state is None or not checkpoint.state.baselines:
        return
    offset = "teacher.position_offset_correction"  # switched off it has an effect: the labels are the teacher's again
    paths = [*SETTLED, offset] if runner.cfg.teacher.position_offset_correction else SETTLED
    refuse_settled(checkpoint.values.get("distillation"), runner.cfg, paths, label)
