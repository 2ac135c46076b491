"""Run a command with the stand-ins in place: run_with_stand_ins.py train|distillation|play|contract ARGUMENTS."""

from __future__ import annotations

import importlib
import sys

import kit_stand_ins

if __name__ == "__main__":
    kit_stand_ins.install()
    name = sys.argv.pop(1)
    command = importlib.import_module(name if name == "contract" else f"foundation.rsl_rl.{name}")
    from foundation.cli.cli_args import run_command

    code = run_command(command.main)
    print("Kit was asked:", " ".join(kit_stand_ins.CALLS))
    sys.exit(code)
