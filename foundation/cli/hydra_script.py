"""``hydra_task_config``: users' scripts as Hydra applications, on any engine."""

from __future__ import annotations

import argparse
import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from foundation.cli import hydra_jobs
from foundation.cli.cli_args import CommandParser, add_hydra_args, parse_command, set_up_logging
from foundation.cli.command import USER_ERROR
from foundation.cli.hydra_app import split
from foundation.config.overrides import parse_overrides
from foundation.config.plain import to_plain
from foundation.config.resolve import own_items, resolve
from foundation.config.values import apply_values, key_names
from foundation.core.errors import UserError
from foundation.core.registry import note_typed
from foundation.engines import select_engine
from foundation.engines.base import LaunchRequest
from foundation.learning.losses import LOSSES
from foundation.students import student_cfg_class


def hydra_task_config(task_name: str, agent_cfg_entry_point: str = "rsl_rl_cfg_entry_point") -> Callable:
    """Decorate a script's ``main(env_cfg, agent_cfg, cfg)`` as Isaac Lab's decorator of that name does, on any engine.

    The three configs have the values of the command line: ``env.``, ``agent.``, ``distill.`` and bare keys, groups,
    ``experiment=``. Hydra's own flags work too: ``--multirun``, ``--cfg job``. Flags of the script's own are to be
    taken out of ``sys.argv`` before it is called, as in Isaac Lab's scripts.

    Args:
        task_name: Gym id of the task, or ``module:Id``.
        agent_cfg_entry_point: Which of the task's agent configs.

    Returns:
        A decorator. The decorated function takes what comes after the configs; a function of two parameters gets the
        first two, so that a script written for Isaac Lab needs nothing but another import. It returns what the
        function returned, or None where Hydra ran it more than once.
    """

    def decorate(function: Callable) -> Callable:
        @functools.wraps(function)
        def main(*args: object, **kwargs: object) -> Any:
            set_up_logging()
            note_typed([task_name])  # by the script's author
            try:
                return _run_script(function, task_name, agent_cfg_entry_point, args, kwargs)
            except UserError as error:
                print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
                raise SystemExit(USER_ERROR) from None

        return main

    return decorate


def _run_script(function: Callable, task: str, entry_point: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    parser = CommandParser(prog=Path(sys.argv[0]).name)
    add_hydra_args(parser)
    line = split(sys.argv[1:], parser, files_sweep=True)
    own = parse_command(parser, line.own)[1]
    returned: list[Any] = []

    def job(cfg: Any) -> Any:
        try:
            tokens = [*hydra_jobs.typed(cfg), *hydra_jobs.swept_values()]
            note_typed([task, *tokens])  # a launcher's process has seen no command line
            configs = load_configs(task, entry_point, tokens)
        except UserError as error:
            if cfg.command.pid != os.getpid() or line.args.multirun:
                raise
            hydra_jobs.Outcome.error = error  # Hydra would print lines of its own
            return None
        result = function(*configs[: _places(function, len(args))], *args, **kwargs)
        returned.append(result)
        return result

    if line.args.cfg or line.args.info:
        env_cfg, agent_cfg, cfg = load_configs(task, entry_point, own)
        node = {"env": to_plain(env_cfg), "agent": to_plain(agent_cfg), "distill": to_plain(cfg)}
        hydra_jobs.show(node, [*line.flags, *line.hydra], parser.prog)
        return None
    node = hydra_jobs.command_node("", own)
    if not line.args.multirun:
        hydra_jobs.run_one(job, node, line.hydra, parser.prog)
        return returned[-1] if returned else None
    hydra_jobs.check_jobs(lambda argv: load_configs(task, entry_point, argv), own, line.sweep, line.hydra)
    hydra_jobs.run_sweep(job, node, line.sweep, line.hydra, parser.prog)
    return None


def _places(function: Callable, taken: int) -> int:
    """Count the configs that a function takes: two, or all three."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return 3
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    many = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return 3 if many else min(3, len(positional) - taken)


def load_configs(task: str, entry_point: str, tokens: Sequence[str]) -> tuple[Any, Any, Any]:
    """Load a task's configs with the values of a command line, starting nothing.

    Args:
        task: Gym id of the task, or ``module:Id``.
        entry_point: Which of its agent configs.
        tokens: ``key=value``.

    Returns:
        The environment's, the agent's and the distillation config.
    """
    overrides = parse_overrides(tokens)
    resolved = resolve(overrides, {"task": task}, student_cfg_class=student_cfg_class, loss_names=LOSSES)
    cfg = resolved.cfg
    engine = select_engine(task, cfg.engine)[0]()
    presets = overrides.take(engine.selectors)
    request = LaunchRequest(task, entry_point, args=argparse.Namespace(presets=presets))
    env_cfg, agent_cfg = engine.load_configs(request)
    device = None if cfg.device == "auto" else cfg.device
    engine.set_common(env_cfg, num_envs=cfg.num_envs, seed=cfg.seed, device=device)  # as the commands do
    if any(item.path == "seed" for item in own_items(overrides)) and "seed" in key_names(agent_cfg):
        apply_values(agent_cfg, {"seed": cfg.seed}, "agent")
    resolved.configure(env_cfg, agent_cfg, overrides)
    return env_cfg, agent_cfg, cfg
