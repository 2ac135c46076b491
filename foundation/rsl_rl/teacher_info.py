"""Describe a policy's checkpoint: ``python foundation/rsl_rl/teacher_info.py PATH``."""

from __future__ import annotations

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are imported: an end without a traceback

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a file of a clone: take this clone's packages
    sys.path.insert(1, str(Path(__file__).resolve().parents[2]))

from foundation.cli.cli_args import CommandParser, add_import_arg, parse_command
from foundation.cli.command import run_command, set_up_logging
from foundation.core.program import command_name


def build_parser() -> CommandParser:
    """Return the command's parser."""
    parser = CommandParser(prog=command_name("teacher_info.py"), description="Describe a policy's checkpoint.")
    parser.epilog = (
        f"Further arguments are those that {command_name('distillation.py')} takes about its teacher: "
        "distill.teacher.strict=false, "
        "distill.teacher.run_as_is=true, distill.teacher.action_range=[-1,1], ..."
    )
    parser.add_argument("checkpoint", metavar="PATH", help="a checkpoint or an exported policy, of any known format")
    parser.add_argument("--activation", metavar="NAME", help="activation of the hidden layers, if no config states it")
    parser.add_argument(
        "--distribution", metavar="NAME", help="gaussian, heteroscedastic, beta, ... if no config states it"
    )
    parser.add_argument("--agent_config", metavar="PATH", help="agent.yaml to use instead of the one beside it")
    acts = "task that it acts in, for names and units of its columns (default: that of the checkpoint)"
    parser.add_argument("--task", metavar="ID", help=acts)
    add_import_arg(parser)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Read the checkpoint and print its description."""
    args, tokens = parse_command(build_parser(), argv)
    set_up_logging()
    # torch: --help does without it
    from foundation.cli.policy_table import show_policy
    from foundation.cli.teacher_tokens import said_of_teacher
    from foundation.teachers import TeacherPolicyWrapper

    flags = {name: getattr(args, name) for name in ("activation", "distribution", "agent_config")}
    said = said_of_teacher(tokens) | {name: value for name, value in flags.items() if value is not None}
    show_policy(TeacherPolicyWrapper(args.checkpoint, **said), args.json, args.task)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
