"""A training run with RSL-RL in a folder of its own: what it loads, its loop with the judge, how it ends."""

from __future__ import annotations

import importlib.util
import logging
import os
import random
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, get_args

import numpy as np
import torch

from foundation.config.distillation_cfg import LoggerName
from foundation.config.validate import read
from foundation.core.errors import RunInterrupted, UserError, suggest
from foundation.core.files import load_checkpoint
from foundation.core.program import command_name
from foundation.ppo.agent_checks import check_algorithm, check_count, check_networks
from foundation.ppo.judge import Judge
from foundation.ppo.library_runner import RslRlRunner
from foundation.runs.run_dir import RunDir

logger = logging.getLogger("foundation.train")

LOG_ROOT = Path("logs") / "rsl_rl"
LOGGERS = get_args(LoggerName)


class RslRlAgentCfg(Protocol):
    """The settings of RSL-RL's runner config that a training run itself reads; Isaac Lab's class has them all."""

    seed: int
    device: str
    num_steps_per_env: int
    """Env steps of a rollout."""
    max_iterations: int
    save_interval: int
    """Iterations between two checkpoints."""
    experiment_name: str
    run_name: str
    logger: str
    resume: bool
    load_run: str
    load_checkpoint: str
    algorithm: object
    """With ``learning_rate``."""


def check_agent_cfg(agent_cfg: RslRlAgentCfg) -> None:
    """Refuse settings that cannot work, before anything is built."""
    for name in ("num_steps_per_env", "max_iterations", "num_eval_episodes"):
        check_count(read(agent_cfg, name), f"agent.{name}")
    if agent_cfg.save_interval < 1:
        raise UserError(f"agent.save_interval must be at least 1, it is {agent_cfg.save_interval}")
    if agent_cfg.algorithm is None:
        raise UserError(
            "agent.algorithm=null: training needs it; set single values of it, agent.algorithm.<name>=VALUE"
        )
    interval = read(agent_cfg, "eval_interval")
    if isinstance(interval, int) and interval < 0:
        raise UserError(f"agent.eval_interval must be at least 0 (0: never), it is {interval}")
    check_algorithm(agent_cfg.algorithm)
    check_networks(agent_cfg)
    if agent_cfg.logger not in LOGGERS:
        raise UserError(f"--logger {agent_cfg.logger}: unknown logger. {suggest(str(agent_cfg.logger), LOGGERS)}")
    if agent_cfg.logger != "tensorboard" and importlib.util.find_spec(agent_cfg.logger) is None:
        raise UserError(f"--logger {agent_cfg.logger}: not installed, pip install {agent_cfg.logger}")


def find_checkpoint(
    agent_cfg: RslRlAgentCfg, *, distils: bool, checkpoint: str | None, load_run: str | None
) -> Path | None:
    """Return the file to load: the run to resume, or the teacher of a distillation run; None to start afresh.

    Args:
        agent_cfg: The agent's config, flags applied.
        distils: Whether RSL-RL's own ``DistillationRunner`` runs, which needs a teacher.
        checkpoint: ``--checkpoint`` as it was typed.
        load_run: ``--load_run`` as it was typed.
    """
    if not agent_cfg.resume and not distils:
        if load_run or checkpoint:
            if checkpoint and Path(checkpoint).is_file():
                refuse_student(Path(checkpoint))
            raise UserError("--load_run and --checkpoint name what to resume: add --resume")
        return None
    if checkpoint and (os.sep in checkpoint or Path(checkpoint).is_file()):
        refuse_student(Path(checkpoint))
        return Path(checkpoint)
    try:
        run = RunDir.find(LOG_ROOT, agent_cfg.experiment_name, agent_cfg.load_run)
        if distils and not agent_cfg.resume and checkpoint is None and (run.path / "best_model.pt").is_file():
            return run.path / "best_model.pt"
        found = run.checkpoint_path(agent_cfg.load_checkpoint)
    except UserError as error:
        if agent_cfg.resume:
            raise
        raise UserError(f"a distillation run needs a teacher, --checkpoint PATH ({error})") from error
    refuse_student(found)
    return found


def refuse_student(path: Path) -> None:
    """Name a student of ``distillation.py``, which RSL-RL's runners cannot read, and what can be done with it."""
    try:
        checkpoint = load_checkpoint(path)
    except UserError:
        return  # whatever it is, the runner says so
    if isinstance(checkpoint, dict) and {"student", "model_state_dict"} <= set(checkpoint):
        distil = command_name("distillation.py")
        task = checkpoint.get("task")
        typed = f"--task {task} " if isinstance(task, str) and task.isprintable() else ""
        raise UserError(
            f"{path} is a student of {distil}, which RSL-RL's runners cannot go on with. Go on training it with PPO: "
            f"{command_name('finetune.py')} {typed}--checkpoint {path}; or distil further from its weights: {distil} "
            f"... distill.student.init_checkpoint={path}; or write it in RSL-RL's layout "
            f"({command_name('export.py')} --checkpoint {path} --formats rsl_rl)"
        )


def load(runner: RslRlRunner, checkpoint: Path, resume: bool) -> None:
    """Load the run to resume, or the teacher.

    Args:
        runner: Takes the weights.
        checkpoint: The file.
        resume: Whether the run is to continue at its iteration.
    """
    resumed = runner.load(checkpoint)
    if resumed and not resume:
        raise UserError(f"{checkpoint} is a student's: name a teacher with --checkpoint, or go on with it by --resume")
    what = f"going on with iteration {runner.iteration} from" if resumed else "teacher:"
    logger.info("%s %s", what, checkpoint)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's random numbers."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def learn(runner: RslRlRunner, run: RunDir, iterations: int, judge: Judge, interrupted: Callable[[], str]) -> None:
    """Run the iterations, judging the policy now and then; save whatever ends them.

    Args:
        runner: Runs them.
        run: The run's folder.
        iterations: How many.
        judge: Keeps the best policy.
        interrupted: Names the signal that asks to stop; "" without one.
    """
    wall = time.perf_counter()
    cpu = time.process_time()

    def after(iteration: int) -> None:
        runner.check_finite()
        run.check_there()
        judge(iteration)
        if interrupted():
            raise RunInterrupted

    runner.on_iteration = after
    first = runner.iteration
    try:
        runner.learn(iterations)
    except RunInterrupted:
        path = run.path / f"model_{runner.iteration}.pt"
        run.check_there()
        runner.save(path)
        how_far = f"after {runner.iteration - first + 1} of {iterations} iterations"
        go_on = f"Go on with: --resume --load_run {shlex.quote(run.name)}"
        logger.info("Stopped (%s) %s; saved %s. %s", interrupted(), how_far, path, go_on)
        return
    runner.on_iteration = None
    judge(runner.iteration, last=True)
    judge.report(time.perf_counter() - wall, time.process_time() - cpu)
