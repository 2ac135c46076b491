"""Commands as Hydra applications: ``--multirun``, launchers, sweepers, ``--cfg job``.

A job is the command line with the sweep's values put in; what it means is settled by ``foundation.config.resolve``, so
that a job of a sweep and the same line typed alone are the same run. No ``outputs/`` is made: a sweep leaves
``multirun.yaml`` and its launcher's files in ``logs/multirun/<time>/``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from foundation.cli.cli_args import CommandParser, add_hydra_args, parse_command
from foundation.config.overrides import is_sweep, key_of
from foundation.core.errors import UserError

DISTILLATION = "foundation.rsl_rl.distillation"
"""The command whose experiments are ``configs/experiment``, which may bring a sweep."""
_OUTPUT = ("hydra.run.dir", "hydra.output_subdir", "hydra.job.chdir")
"""Where Hydra itself would put a run."""


class CommandLine(NamedTuple):
    """A command line, split into the command's own part and Hydra's."""

    own: list[str]
    """The command's own arguments."""
    sweep: list[str]
    """``seed=1,2,3``: what Hydra's sweeper makes jobs of."""
    hydra: list[str]
    """``hydra.launcher.n_jobs=2``, ``hydra/launcher=joblib``."""
    flags: list[str]
    """Hydra's flags other than ``--multirun``: ``--cfg job``, ``--resolve``."""
    args: argparse.Namespace
    """Hydra's flags, read."""


def run_application(command: str, parser: CommandParser, argv: Sequence[str] | None) -> int:
    """Run a command as a Hydra application, once or, with ``--multirun``, once for each job of the sweep.

    Args:
        command: The module; its ``run(argv)`` does the work of one job and returns an exit code, its
            ``compose_configs(argv)`` returns the configs for ``--cfg``.
        parser: The command's own flags.
        argv: Arguments without the program's name; None takes the process's own.

    Returns:
        The exit code; of a sweep, the highest of its jobs'.
    """
    line = split(sys.argv[1:] if argv is None else list(argv), parser, files_sweep=command == DISTILLATION)
    module = importlib.import_module(command)
    needed = line.args.multirun or line.hydra or any("${hydra:" in word for word in line.own)
    if not (needed or line.args.cfg or line.args.info):
        # One job without any of Hydra's flags needs no Hydra, which would compose its config a second time.
        return module.run([*line.own, *line.sweep])  # a sweep without --multirun is refused there
    from foundation.cli import hydra_jobs  # Hydra and OmegaConf: --help and plain runs do without this half second

    if line.args.cfg or line.args.info:
        node = module.compose_configs([*line.own, *line.sweep]) if line.args.cfg != "hydra" else {}
        hydra_jobs.show(node, [*line.flags, *line.hydra], parser.prog)
        return 0
    node = hydra_jobs.command_node(command, line.own, "--run_name" in parser.flag_names())
    if not line.args.multirun:
        return hydra_jobs.run_one(hydra_jobs.run_job, node, line.hydra, parser.prog)
    if "--resume" in line.own:
        raise UserError("--multirun begins new runs: leave --resume out, or resume the runs one by one")
    hydra_jobs.check_jobs(module.compose_configs, line.own, line.sweep, line.hydra)
    return hydra_jobs.run_sweep(hydra_jobs.run_job, node, line.sweep, line.hydra, parser.prog)


def experiment_tokens(tokens: Sequence[str]) -> list[str]:
    """Return what the experiment's file sweeps over, ``hydra.sweeper.params``, but for keys that were typed.

    Args:
        tokens: The overrides, in the order in which they were typed.
    """
    chosen = [token.partition("=")[2] for token in tokens if key_of(token) == "experiment"]
    if not chosen or any(is_sweep(f"experiment={name}") for name in chosen):
        return []
    from foundation.config.resolve import experiment_sweep  # Hydra: --help does without this half second

    typed = {key_of(token).removeprefix("distill.") for token in tokens}
    # Hydra leaves what is typed for its own parameters in force, and joins them to those of the file by itself.
    typed |= {key_of(token).removeprefix("hydra.sweeper.params.") for token in tokens}
    return [f"{key}={values}" for key, values in experiment_sweep(chosen[-1]).items() if key not in typed]


def split(argv: list[str], parser: CommandParser, *, files_sweep: bool) -> CommandLine:
    """Split a command line into the command's own part and Hydra's.

    Args:
        argv: Arguments without the program's name.
        parser: The command's own flags.
        files_sweep: Whether ``experiment=`` names a file that may bring a sweep.
    """
    hydras = CommandParser(prog=parser.prog, add_help=False)
    add_hydra_args(hydras)
    args, rest = hydras.parse_known_args(argv)
    flags = ["--cfg", args.cfg] if args.cfg else []
    flags += ["--info", args.info] if args.info else []
    flags += ["--package", args.package] if args.package else []
    flags += ["--resolve"] if args.resolve else []
    tokens = set(parse_command(parser, rest, strict=False)[1])
    hydra = [token for token in rest if token in tokens and key_of(token).startswith(("hydra.", "hydra/"))]
    for token in hydra:
        if key_of(token) in _OUTPUT:
            names = " and ".join(name for name in ("--experiment_name", "--run_name") if name in parser.flag_names())
            raise UserError(f"override '{token}': a run's folder is not Hydra's here; {names or '--output'} names it")
    sweep = [token for token in rest if args.multirun and token in tokens and token not in hydra and is_sweep(token)]
    if args.multirun and files_sweep:
        sweep += experiment_tokens([token for token in rest if token in tokens])
    own = [token for token in rest if token not in hydra and token not in sweep]
    return CommandLine(own, sweep, hydra, flags, args)
