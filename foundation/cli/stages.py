"""Stages of one command in one file: each starts from the policy of the one before.

A file of ``configs/finetune`` or ``configs/experiment`` (or the user's own) with ``stages:``, a list of what each stage
sets, is one call of ``finetune.py`` or ``distillation.py``. Each stage is a run of its own, in a process of its own, as
some simulators start only once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foundation.cli.cli_args import CommandParser, parse_command
from foundation.cli.own_process import run_in_a_process, without_flags
from foundation.config.overrides import key_of, parse_overrides
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import BEST

DEFAULT_NAME = "curriculum"
"""Experiment and run name where none are typed: with both, ``--resume`` finds the stages again."""


@dataclass(frozen=True)
class StagedCommand:
    """A command whose runs can follow each other."""

    module: str
    """Module that runs a stage."""
    log_root: Path
    """Folder of its experiments."""
    read_experiment: Callable[[str], dict[str, Any]]
    """Return the values of a file by its name."""
    start: str
    """Flag, without dashes, of the policy that a stage starts from."""
    start_key: tuple[str, ...]
    """The same in a file. A stage that sets it is not given the policy of the stage before."""


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
        )

    def run(self) -> int:
        """Run the stages one after the other, those that are done left out; return the exit code."""
        done: dict[str, str] = {} if self.start is None else {"start": self.start}
        for index in range(len(self.stages)):
            name = f"stage{index + 1}"
            run = self._find(name) if self.resumes else None
            if run is not None and (run.path / "summary.json").exists():
                print(f"{name} is done: {run.path}", flush=True)
            else:
                argv = ["--resume", "--load_run", run.name] if run is not None else self._arguments(index, done)
                print(f"{name} of {len(self.stages)}", flush=True)
                code = run_in_a_process(self.command.module, [*argv, "--experiment_name", self.experiment_name])
                if code:
                    return code
                run = self._find(name)
            assert run is not None
            done[name] = str(run.path / BEST)
        return 0

    def _find(self, stage: str) -> RunDir | None:
        """Find the newest run of a stage."""
        pattern = rf"\d{{4}}.*_{re.escape(self.run_name)}_{stage}$"
        try:
            return RunDir.find(self.command.log_root, self.experiment_name, pattern)
        except UserError:
            return None

    def _arguments(self, index: int, done: dict[str, str]) -> list[str]:
        """Write a stage's file; return the arguments that run it."""
        values = _filled(_merged(self.shared, self.stages[index]), done)
        path = self.command.log_root / self.experiment_name / "stages" / f"{self.run_name}_stage{index + 1}.yaml"
        text = f"# @package _global_\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"
        atomic_write_bytes(path, text.encode())
        argv = [*self.argv, f"experiment={path}", "--run_name", f"{self.run_name}_stage{index + 1}"]
        before = done.get(f"stage{index}") or self.start
        said = _at(values, self.command.start_key) is not None
        return argv if before is None or said else [*argv, f"--{self.command.start}", before]


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


def _merged(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return nested values, a stage's own over those of all stages."""
    merged = dict(shared)
    for key, value in own.items():
        before = merged.get(key)
        merged[key] = _merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return merged


def _filled(value: Any, done: dict[str, str]) -> Any:
    """Put the files of earlier stages in the place of ``{start}``, ``{stage1}``, ... ."""
    if isinstance(value, dict):
        return {key: _filled(item, done) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, done) for item in value]
    named = re.fullmatch(r"\{(start|stage\d+)\}", value) if isinstance(value, str) else None
    if named is None:
        return value
    if named[1] not in done:
        known = ", ".join(f"{{{name}}}" for name in done) or "none"
        raise UserError(f"a stage names {value}, and there is no such policy before it; there are: {known}")
    return done[named[1]]
