"""The console command ``foundation``: one word for each script of ``foundation/rsl_rl``."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Sequence
from typing import NamedTuple

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while modules are imported: an end without a traceback

import foundation
from foundation.cli.command import run_command
from foundation.core.errors import UserError, suggest
from foundation.core.program import note_console


class Command(NamedTuple):
    """One command."""

    module: str
    """Has ``main(argv)``; imported when the command is typed."""
    help: str
    many_processes: bool = False
    """Whether ``torchrun`` may start it several times."""


COMMANDS = {
    "train": Command("foundation.rsl_rl.train", "train a teacher, or any policy, with RSL-RL", many_processes=True),
    "distill": Command(
        "foundation.rsl_rl.distillation",
        "distil one or many trained teachers into a small student",
        many_processes=True,
    ),
    "finetune": Command("foundation.rsl_rl.finetune", "go on training a distilled policy with PPO, without forgetting"),
    "play": Command("foundation.rsl_rl.play", "play a trained policy, measure it, record it"),
    "export": Command("foundation.rsl_rl.export", "write a policy for a robot: ONNX, TorchScript, NumPy, C, checked"),
    "report": Command("foundation.rsl_rl.report", "write an HTML page of one run or several, to be looked at"),
    "info": Command("foundation.rsl_rl.teacher_info", "describe a policy's checkpoint"),
}


def help_text() -> str:
    """List the commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: foundation COMMAND ...",
            "",
            "Policy distillation for Isaac Lab and RSL-RL.",
            "",
            *lines,
            "",
            "'foundation COMMAND --help' lists the flags of a command.",
        ]
    )


def dispatch(argv: Sequence[str]) -> int:
    """Run the command that the first argument names.

    Args:
        argv: The command's name and its own arguments.

    Returns:
        The exit code.
    """
    if len(argv) > 1 and argv[0] == "help":  # foundation help distill
        return dispatch([argv[1], "--help", *argv[2:]])
    if len(argv) > 1 and argv[0] in ("-h", "--help", "--version"):
        raise UserError(f"{argv[0]} stands alone here, got '{argv[1]}' behind it: foundation COMMAND --help")
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if argv[0] == "--version":
        print(f"foundation {foundation.__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'. {suggest(name, COMMANDS)}")
    return importlib.import_module(COMMANDS[name].module).main(argv[1:])


def main() -> int:
    """Run the console command ``foundation`` on the process's own arguments."""
    note_console()
    argv = sys.argv[1:]
    command = COMMANDS.get(argv[0]) if argv else None
    return run_command(lambda _: dispatch(argv), argv, many_processes=command is not None and command.many_processes)


if __name__ == "__main__":
    sys.exit(main())
