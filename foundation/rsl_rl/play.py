"""Play a trained policy and measure it: ``python foundation/rsl_rl/play.py --help``.

Plays a student that ``distillation.py`` trained or a policy that ``train.py`` trained. The episodes are deterministic,
the first of each environment count, and the command ends by itself.
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
    number,
    parse_command,
    positive_int,
    run_command,
    set_up_logging,
)
from foundation.cli.hydra_app import run_application
from foundation.core.errors import UserError
from foundation.core.imports import many_imports
from foundation.core.program import command_name

NUM_EPISODES = 64
SEED = 42


def build_parser() -> CommandParser:
    """Return the parser of every flag that needs no simulator."""
    parser = CommandParser(prog=command_name("play.py"), description="Play a trained policy and measure it.")
    add_launch_args(parser)
    group = parser.add_argument_group("policy")
    flag = group.add_argument
    flag("--checkpoint", metavar="FILE", help="a path, or a name or pattern in the run (default: its best)")
    flag("--load_run", metavar="RUN", help="run to load: its name, a pattern, or its folder (default: the newest)")
    flag("--experiment_name", metavar="NAME", help="only this experiment's runs, under logs/")
    flag("--agent", metavar="NAME", default="trained", help="trained, zero or random actions (trained)")
    flag("--obs_groups", nargs="+", metavar="GROUP", help="observation groups (default: those it was trained on)")
    flag("--describe", action="store_true", help="describe the policy's checkpoint, and play nothing")
    flag("--no-export", action="store_true", help="do not write exported/policy.pt and policy.onnx beside the policy")
    group = parser.add_argument_group("measurement")
    flag = group.add_argument
    flag("--num_episodes", type=positive_int, default=NUM_EPISODES, metavar="N", help=f"episodes ({NUM_EPISODES})")
    flag("--eval_seeds", metavar="N,N", help="the episodes of each of these seeds, such as 0,1,2 (default: --seed)")
    gate = "success that it must have, from 0 to 1: below it the exit code is 3, and else 0"
    flag("--min_success", type=number, metavar="X", help=gate)
    ablated = "measure again without this input: a group, a term, or all; as zero, its mean (default), or shuffled"
    flag("--ablate", action="append", metavar="NAME[:HOW]", help=ablated)
    disturbed = "measure again under noise, delays, another mass ...: docs/howto/measure.md"
    flag("--robustness", action="store_true", help=disturbed)
    flag(
        "--perturbation",
        action="append",
        metavar="NAME[=V,V]",
        help="of --robustness: only this quantity, at these values; may be given several times",
    )
    flag("--similarity", action="store_true", help="compare its actions with the teacher's, on the states of both")
    flag("--teacher", metavar="FILE", help="teacher to measure beside (default: that of the student's run)")
    flag("--with_teacher", action="store_true", help="measure the teacher too, on the same episodes")
    own = "Python of an engine's own environment, of --engine torch,l2f,isaaclab: one table of all of them"
    flag("--engine_python", action="append", metavar="NAME=PATH", help=own)
    flag("--json", metavar="PATH", help="write the figures to this file")
    flag("--real-time", action="store_true", help="no faster than real time")
    group = parser.add_argument_group("viewer")
    flag = group.add_argument
    flag("--viewer", action="store_true", help="watch policy and teacher in the browser, and measure nothing")
    flag("--viewer_port", type=positive_int, metavar="N", help="port of its page, on this machine alone (8080)")
    add_hydra_args(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command, once or (``--multirun``) for each job of a sweep, and return its exit code."""
    set_up_logging()
    return run_application("foundation.rsl_rl.play", build_parser(), argv)


def run(argv: Sequence[str]) -> int:
    """Run one job and return its exit code."""
    with many_imports():  # torch: --help does without it
        from foundation.cli.engine_table import asks_for_table, play_on_engines
        from foundation.cli.play_args import check_args, refuse_near_misses, typed_device
        from foundation.cli.play_job import Job
        from foundation.cli.played_policy import PlayedPolicy
        from foundation.cli.policy_table import show_policy

    parser = build_parser()
    args, tokens = parse_command(parser, argv, strict=False)
    check_args(args)
    if args.device is None:  # the policy computes where the simulation does
        args.device = typed_device(tokens)
    try:
        played = PlayedPolicy.find(args, tokens)
    except UserError:
        refuse_near_misses(parser, argv)  # a misspelt --checkpoint is a likely reason
        raise
    if args.describe and played.policy is not None:
        refuse_near_misses(parser, argv)
        show_policy(played.policy, task=played.task or None)
        return 0
    if asks_for_table(args):
        refuse_near_misses(parser, argv)
        return play_on_engines(args, argv, played)
    job = Job.choose_engine(parser, argv, played, SEED)
    with job.launch() as session:
        return job.run(session)


def compose_configs(argv: Sequence[str]) -> dict[str, Any]:
    """Return the configs that a command line gives, starting nothing."""
    # torch: --help does without it
    from foundation.cli.play_args import check_args
    from foundation.cli.play_job import Job
    from foundation.cli.played_policy import PlayedPolicy

    parser = build_parser()
    args, tokens = parse_command(parser, argv, strict=False)
    check_args(args)
    return Job.choose_engine(parser, argv, PlayedPolicy.find(args, tokens), SEED).load_configs()


if __name__ == "__main__":
    sys.exit(run_command(main))
