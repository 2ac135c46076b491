"""One job of ``train.py``: resolve its command line, then run RSL-RL in a session."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from foundation.cli.cli_args import CommandParser, Interrupt, parse_command, say_beaten, typed_value
from foundation.cli.command import refuse_many_processes
from foundation.cli.session import Session, recorded_env_state
from foundation.config.interpolation import interpolate
from foundation.config.overrides import Overrides, parse_overrides
from foundation.config.plain import to_plain
from foundation.core.errors import UserError
from foundation.core.program import command_name
from foundation.engines import select_engine
from foundation.engines.base import AgentCfg, Engine, EnvCfg, LaunchRequest, VideoRequest
from foundation.ppo.agent_checks import check_rollout
from foundation.ppo.judge import Judge
from foundation.ppo.library_runner import RslRlRunner
from foundation.ppo.train_run import (
    LOG_ROOT,
    RslRlAgentCfg,
    check_agent_cfg,
    find_checkpoint,
    learn,
    load,
    seed_everything,
)
from foundation.ppo.versions import installed_version, translate
from foundation.runs.context import EVAL_SEED
from foundation.runs.run_dir import RunDir

logger = logging.getLogger("foundation.train")


@dataclass
class Job:
    """Command line of ``train.py`` with its engine, before the simulator is up."""

    args: argparse.Namespace
    overrides: Overrides
    engine: Engine
    device: str
    rank: int
    """Rank of this process among those that train together."""

    @classmethod
    def choose_engine(cls, parser: CommandParser, argv: Sequence[str]) -> Job:
        """Read a command line and choose the engine; its own flags are known only then.

        Args:
            parser: Knows the flags that need no engine.
            argv: Arguments without the program's name.
        """
        args, _ = parse_command(parser, argv, strict=False)
        if not args.distributed:
            refuse_many_processes(
                f"{command_name('train.py')} runs in one process unless it is given --distributed: add it"
            )
        if args.task is None:
            raise UserError("--task is missing, e.g. --task Isaac-Quadcopter-Point-Ctrl-v0")
        engine, why = select_engine(args.task, args.engine or "auto")
        logger.info(why)
        engine.add_args(parser)
        args, tokens = parse_command(parser, argv)
        overrides = parse_overrides(tokens, scopes=("env", "agent"))
        args.presets = overrides.take(engine.selectors)
        device, rank = choose_device(args, overrides)
        return cls(args, overrides, engine(), device, rank)

    @property
    def request(self) -> LaunchRequest:
        """Request to the engine."""
        args = self.args
        return LaunchRequest(args.task, args.agent, self.device, args.headless, args.video, args, needs_agent=True)

    def load_configs(self) -> dict[str, Any]:
        """Return the configs of environment and agent as plain values, starting nothing."""
        env_cfg, agent_cfg = self.engine.load_configs(self.request)
        self.configure(env_cfg, agent_cfg)
        return {"env": to_plain(env_cfg), "agent": to_plain(agent_cfg)}

    @contextlib.contextmanager
    def launch(self) -> Iterator[Session]:
        """Start the simulator."""
        with Session.launch(self.engine, self.request, self.configure) as session:
            yield session

    def configure(self, env_cfg: EnvCfg, agent_cfg: AgentCfg) -> None:
        """Apply overrides, then flags, which win."""
        args = self.args
        say_beaten(args, self.overrides)
        self.overrides.configure(env_cfg, agent_cfg)
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
        agent = cast(RslRlAgentCfg, agent_cfg)
        if agent.seed == -1:
            agent.seed = random.randint(0, 10_000)
        agent.seed += self.rank
        agent.device = self.device
        env_seed = typed_value(self.overrides, "env", "seed")
        seed = agent.seed if env_seed is None or args.seed is not None else None
        env_device = None if args.device is None and typed_value(self.overrides, "env", "sim.device") else self.device
        self.engine.set_common(env_cfg, num_envs=args.num_envs, seed=seed, device=env_device)
        check_agent_cfg(agent)

    def run(self, session: Session) -> int:
        """Train in the launched simulator; return the exit code."""
        args = self.args
        agent_cfg = cast(RslRlAgentCfg, session.agent_cfg)
        distils = translate(agent_cfg)["class_name"] == "DistillationRunner"
        checkpoint = find_checkpoint(agent_cfg, distils=distils, checkpoint=args.checkpoint, load_run=args.load_run)
        seed_everything(agent_cfg.seed)
        run = RunDir.create(LOG_ROOT, agent_cfg.experiment_name, agent_cfg.run_name) if self.rank == 0 else None
        video = None
        if args.video and run is not None:
            video = VideoRequest(run.video_dir("train"), args.video_length, args.video_interval)
        try:
            if run is not None:
                session.set_log_dir(run.path)
            if checkpoint is not None:
                session.env_state = recorded_env_state(checkpoint)
            env = session.make_env(video=video)
            steps = agent_cfg.num_steps_per_env
            check_rollout(agent_cfg.algorithm, steps, env.num_envs, env.num_actions, agent_cfg.device)
            runner = RslRlRunner(env, agent_cfg, None if run is None else run.path, agent_cfg.device)
            if checkpoint is not None:
                load(runner, checkpoint, agent_cfg.resume)
            if run is None:
                runner.learn(agent_cfg.max_iterations)
                return 0
            return self._run_in(run, session, runner)
        finally:
            session.close()
            if run is not None:
                run.discard_if_empty()

    def _run_in(self, run: RunDir, session: Session, runner: RslRlRunner) -> int:
        """Write down what is run, and run it, in the run's folder."""
        agent_cfg = cast(RslRlAgentCfg, session.agent_cfg)
        run.save_params(session.env_cfg, session.agent_cfg)
        runner.runner.add_git_repo_to_log(__file__)
        env = runner.runner.env
        where = f"{env.num_envs} environments on {env.device}"
        logger.info("rsl-rl-lib %s, %s; writing to %s", installed_version(), where, run.path)
        make_eval_env = functools.partial(session.make_env, seed=EVAL_SEED) if session.holds_many else None
        judge = Judge(make_eval_env, session.agent_cfg, runner, run)
        with Interrupt() as interrupt:
            learn(runner, run, agent_cfg.max_iterations, judge, interrupt.interrupted)
        return interrupt.exit_code


def choose_device(args: argparse.Namespace, overrides: Overrides) -> tuple[str, int]:
    """Return the compute device and this process's rank: as asked for, else a GPU where there is one."""
    if args.distributed:
        if "WORLD_SIZE" not in os.environ or not torch.cuda.is_available():
            started = command_name("train.py")
            what = started if started == "train.py" else f"--no-python {started}"
            raise UserError(f"--distributed needs GPUs and 'torchrun --nproc_per_node=N {what} ... --distributed'")
        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}", int(os.environ.get("RANK", "0"))
    asked = args.device or typed_value(overrides, "agent", "device") or typed_value(overrides, "env", "sim.device")
    return str(asked or ("cuda:0" if torch.cuda.is_available() else "cpu")), 0
