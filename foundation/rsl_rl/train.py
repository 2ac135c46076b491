"""Train a policy with RSL-RL, with Isaac Lab's flags and log folders.

Beside RSL-RL's own ``model_<iteration>.pt`` the run keeps ``best_model.pt``, chosen by evaluation, because PPO
oscillates.
"""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are imported: an end without a traceback

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file of a clone: take this clone's packages
    sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from foundation.cli.cli_args import (
    CommandParser,
    add_hydra_args,
    add_launch_args,
    add_rsl_rl_args,
    positive_int,
    run_command,
    set_up_logging,
)
from foundation.cli.hydra_app import run_application
from foundation.core.imports import many_imports
from foundation.core.program import command_name


def build_parser() -> CommandParser:
    """Return the flags that are known before an engine adds its own."""
    parser = CommandParser(prog=command_name("train.py"), description="Train a policy with RSL-RL.")
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
    """Run one job and return its exit code."""
    with many_imports():
        from foundation.cli.train_job import Job  # torch: --help does without it

    job = Job.choose_engine(build_parser(), argv)
    with job.launch() as session:
        return job.run(session)


def compose_configs(argv: Sequence[str]) -> dict[str, Any]:
    """Return the configs that a command line gives, starting nothing."""
    from foundation.cli.train_job import Job  # torch: --help does without it

    return Job.choose_engine(build_parser(), argv).load_configs()


if __name__ == "__main__":
    sys.exit(run_command(main, many_processes=True))
