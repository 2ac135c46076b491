"""Stages of one command in one file: each starts from the policy of the one before.

A file of ``configs/finetune`` or ``configs/experiment`` (or the user's own) with ``stages:``, a list of what each stage
sets, is one call of ``finetune.py`` or ``distillation.py``. Each stage is a run of its own, in a process of its own, as
some simulators start only once.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.cli import distillation_request
from foundation.cli.cli_args import CommandParser, parse_command
from foundation.cli.lifelong import Lifelong, LifelongCfg, read_lifelong, shared_arguments
from foundation.cli.own_process import without_flags
from foundation.cli.steps import StagedCommand, StepFailed, Steps, merged
from foundation.config.overrides import key_of, parse_overrides
from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint
from foundation.runs.run_dir import check_name
from foundation.runs.run_state import BEST

DISTILLATION = "foundation.rsl_rl.distillation"
DISTILLATION_ROOT = Path("logs/distillation")
PLAY = "foundation.rsl_rl.play"
DEFAULT_NAME = "curriculum"
"""Experiment and run name where none are typed: with both, ``--resume`` finds the stages again."""


@dataclass
class Curriculum:
    """The stages of a file, and what was typed beside it."""

    command: StagedCommand
    stages: list[dict[str, Any]]
    shared: dict[str, Any]
    """What the file sets for all stages."""
    argv: list[str]
    """What was typed and goes to every stage."""
    start: str | None
    """Policy that the first stage starts from."""
    experiment_name: str
    run_name: str
    resumes: bool
    lifelong: LifelongCfg | None
    """How each stage is compressed into one small network; None: it is not."""
    shared_argv: list[str]
    """What of the typed goes to every command."""

    @classmethod
    def read(cls, command: StagedCommand, parser: CommandParser, argv: Sequence[str]) -> Curriculum | None:
        """Read a command line; None where it names no file with stages.

        Args:
            command: What the stages are of.
            parser: The command's, without an engine's flags.
            argv: Arguments without the program's name.
        """
        args, tokens = parse_command(parser, argv, strict=False)
        names = [item.value for item in parse_overrides(tokens, scopes=()).bare if item.path == "experiment"]
        values = command.read_experiment(str(names[-1])) if names else {}
        if "stages" not in values:
            return None
        stages = values.pop("stages")
        lifelong = read_lifelong(values)
        if lifelong is not None and command.start != "checkpoint":
            raise UserError(f"experiment={names[-1]}: the stages of 'lifelong' are runs of finetune.py")
        if not (isinstance(stages, list) and stages and all(isinstance(stage, dict) for stage in stages)):
            raise UserError(f"experiment={names[-1]}: 'stages' must be a list of mappings, one for each stage")
        if args.load_run:
            raise UserError("the stages of a file are resumed together: type --resume without --load_run")
        typed = getattr(args, command.start)
        if isinstance(typed, list):
            if len(typed) > 1:
                raise UserError(f"the stages of a file start from one policy: type --{command.start} once")
            typed = typed[0]
        own = _taken(values, command.start_key)
        if own is not None and not isinstance(own, str):
            key = ".".join(command.start_key)
            raise UserError(f"experiment={names[-1]}: {key} must be one file, as the stages start from one policy")
        _check_typed(args, tokens)
        _check_values(command, values, stages, lifelong)
        ours = {f"--{command.start}": 1, "--experiment_name": 1, "--run_name": 1, "--resume": 0}
        return cls(
            command,
            stages,
            values,
            without_flags([word for word in argv if key_of(word) != "experiment"], ours),
            typed or own,
            args.experiment_name or DEFAULT_NAME,
            args.run_name or DEFAULT_NAME,
            bool(args.resume),
            lifelong,
            shared_arguments(vars(args), argv),
        )

    def run(self) -> int:
        """Run the stages one after the other, those that are done left out; return the exit code."""
        command = self.command
        folder = command.log_root / self.experiment_name / "stages"
        steps = Steps(folder, self.experiment_name, self.run_name, self.resumes)
        lifelong = None
        if self.lifelong is not None:
            others = (DISTILLATION, DISTILLATION_ROOT), PLAY
            lifelong = Lifelong(self.lifelong, steps, command, *others, self.shared_argv)
        done: dict[str, str] = {} if self.start is None else {"start": self.start}
        try:
            for index in range(len(self.stages)):
                name = f"stage{index + 1}"
                print(f"{name} of {len(self.stages)}", flush=True)
                values = _filled(merged(self.shared, self.stages[index]), done)
                arguments = functools.partial(self._arguments, steps, index, values, done)
                best = steps.run(name, command.module, command.log_root, arguments).path / BEST
                done[name] = str(best)
                if lifelong is not None:
                    done[f"{name}_learned"] = str(best)
                    done[name] = lifelong.compress(name, str(load_checkpoint(best)["task"]), best)
        except StepFailed as failed:
            if str(failed):
                print(failed, file=sys.stderr, flush=True)
            return failed.code
        return 0

    def _arguments(self, steps: Steps, index: int, values: dict[str, Any], done: dict[str, str]) -> list[str]:
        """Write a stage's file; return the arguments that run it."""
        argv = [*self.argv, f"experiment={steps.write(f'stage{index + 1}', values)}"]
        before = done.get(f"stage{index}") or self.start
        said = _at(values, self.command.start_key) is not None
        return argv if before is None or said else [*argv, f"--{self.command.start}", before]


def _check_typed(args: argparse.Namespace, tokens: Sequence[str]) -> None:
    """Check what was typed and belongs to no stage, before a stage's file is written."""
    check_name("experiment_name", args.experiment_name or DEFAULT_NAME)
    check_name("run_name", args.run_name or DEFAULT_NAME)
    in_file = [word for word in tokens if key_of(word).partition(".")[0] in ("lifelong", "stages")]
    if in_file:
        raise UserError(f"'{in_file[0]}': 'stages' and 'lifelong' are set in a file; copy it, and write your own")


def _check_values(
    command: StagedCommand, shared: dict[str, Any], stages: Sequence[dict[str, Any]], lifelong: LifelongCfg | None
) -> None:
    """Check the keys of all stages before the first one begins."""
    for number, stage in enumerate(stages, 1):
        command.check(merged(shared, stage), f"stage{number}")
    if lifelong is not None:
        distillation_request.STAGED.check(lifelong.distill, "lifelong.distill")
        command.check(lifelong.compress, "lifelong.compress")


def refuse_stages(command: StagedCommand, parser: CommandParser, argv: Sequence[str]) -> None:
    """Refuse a file with stages where one run is asked about.

    Raises:
        UserError: For ``--cfg`` and ``--multirun`` of such a file.
    """
    if Curriculum.read(command, parser, argv) is not None:
        raise UserError(
            "the file of experiment= has stages, each a run of its own, and --cfg and --multirun are about one run: "
            "leave them out, or give the settings of one stage"
        )


def _at(values: dict[str, Any], key: Sequence[str]) -> Any:
    """Return a nested value; None where there is none."""
    found: Any = values
    for name in key:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _taken(values: dict[str, Any], key: Sequence[str]) -> str | None:
    """Return a nested value and remove it."""
    found = _at(values, key)
    if found is not None:
        holder = values if len(key) == 1 else _at(values, key[:-1])
        del holder[key[-1]]
    return found


def _filled(value: Any, done: dict[str, str]) -> Any:
    """Put the files of earlier stages in the place of ``{start}``, ``{stage1}``, ... ."""
    if isinstance(value, dict):
        return {key: _filled(item, done) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, done) for item in value]
    named = re.fullmatch(r"\{(start|stage\d+(?:_learned)?)\}", value) if isinstance(value, str) else None
    if named is None:
        return value
    if named[1] not in done:
        known = ", ".join(f"{{{name}}}" for name in done) or "none"
        raise UserError(f"a stage names {value}, and there is no such policy before it; there are: {known}")
    return done[named[1]]
