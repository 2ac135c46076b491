"""One policy on several engines, ``play.py --engine torch,l2f,isaaclab``: a process for each, and one table of all.

Simulators exclude each other: Isaac Lab and mjlab pin different versions of RSL-RL. So each engine may have the Python
of an environment of its own (``--engine_python isaaclab=/path/to/python``).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from foundation.cli.own_process import run_in_a_process, without_flags
from foundation.cli.played_policy import PlayedPolicy
from foundation.cli.studies import write_json
from foundation.core.errors import UserError, suggest
from foundation.core.text import shorten
from foundation.engines import engine_class, engine_names, select_engine
from foundation.engines.base import MissingPackage
from foundation.evaluation.audit import MISSED
from foundation.evaluation.report_table import table_console

logger = logging.getLogger("foundation.play")

_OWN_FLAGS = {"--engine": 1, "--engine_python": 1, "--json": 1, "--with_teacher": 0, "--no-export": 0}
"""Flags of the whole table, which its parts get otherwise: flag -> number of its values."""
_OF_ONE = ("describe", "viewer", "robustness", "similarity", "ablate", "video", "real_time")
"""Flags that go with one engine: each leaves files that the next engine would overwrite, or shows something."""
_STOPPED = (130, 143)
"""Exit codes of a command that Ctrl-C or SIGTERM has ended."""
_FAILED = 1


@dataclass
class EngineTable:
    """What was measured on each engine."""

    flown: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Engine -> the figures of ``play.py --json``."""
    missing: dict[str, str] = field(default_factory=dict)
    """Engines that are not installed -> what is missing, and what to do."""
    failed: dict[str, str] = field(default_factory=dict)
    """Engines on which it could not be played -> the error."""

    def table(self, title: str) -> Table:
        """Lay the figures out, an engine a row."""
        table = Table(title=title, box=box.ROUNDED, title_justify="left", pad_edge=False)
        table.add_column("engine", no_wrap=True)
        for name in ("return", "success", "teacher's", "ratio [%]", "episodes"):
            table.add_column(name, justify="right")
        for engine, figures in self.flown.items():
            teacher = figures.get("teacher")
            success = figures["success_rate"]
            cells = [
                _return(figures),
                "-" if success is None else f"{100.0 * success:.1f} %",
                "-" if teacher is None else _return(teacher),
                _ratio(figures),
                str(figures["num_episodes"]),
            ]
            table.add_row(Text(engine), *map(Text, cells))
        return table

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"engines": self.flown, "not_installed": self.missing, "failed": self.failed}


def asks_for_table(args: argparse.Namespace) -> bool:
    """Return whether a command line asks for the table: a list of engines, or one with a Python of its own."""
    return "," in (args.engine or "") or args.engine_python is not None


def play_on_engines(args: argparse.Namespace, argv: Sequence[str], played: PlayedPolicy) -> int:
    """Play a policy on each of several engines, and show one table.

    Args:
        args: Flags.
        argv: All arguments without the program's name.
        played: The policy and its task.

    Returns:
        The exit code: 0; that of ``--min_success`` where one is below; 1 where an engine that is installed failed.

    Raises:
        UserError: For a list that cannot be, or where no engine could be used.
    """
    names = read_engines(args.engine)
    pythons = read_pythons(args.engine_python or (), names)
    _refuse_of_one(args)
    found = EngineTable(missing=_missing([name for name in names if name not in pythons], played.task))
    for name, reason in found.missing.items():
        hint = f"or name the Python of its own environment: --engine_python {name}=PATH"
        logger.warning("%s is left out: %s; %s", name, reason, hint)
    rest = without_flags(argv, _OWN_FLAGS)
    if played.checkpoint is not None and not args.checkpoint:
        rest = [*rest, "--checkpoint", str(played.checkpoint)]  # a run that begins meanwhile does not become the newest
    if played.policy is not None:
        rest = [*rest, "--with_teacher"]
    missed = False
    for name in names:
        if name in found.missing:
            continue
        logger.info("playing on engine '%s'", name)
        code = _play_on(name, [*rest, "--no-export", "--engine", name], pythons.get(name), found)
        if code in _STOPPED:
            print("Stopped before every engine was played on: nothing was measured")
            return code
        missed = missed or code == MISSED
    _show(args, found, played)
    if found.failed:
        return _FAILED
    return MISSED if missed else 0


def _show(args: argparse.Namespace, found: EngineTable, played: PlayedPolicy) -> None:
    """Print the table, and write it where ``--json`` says."""
    if not found.flown:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in (found.missing | found.failed).items())
        raise UserError(f"--engine {args.engine}: it could be played on none of them ({reasons})")
    table_console().print(found.table(f"{played.task}: {played.describe()}"))
    for name, reason in found.failed.items():
        print(f"{name}: {reason}")
    if args.json:
        origin = {"task": played.task, "policy": played.describe(), "checkpoint": _text(played.checkpoint)}
        write_json(Path(args.json), origin | found.as_dict())


def read_engines(text: str | None) -> list[str]:
    """Read ``--engine torch,l2f,isaaclab``.

    Raises:
        UserError: For what is no list of different engines.
    """
    names = [] if text is None else [name.strip() for name in text.split(",")]
    if not names or "auto" in names:
        raise UserError("--engine: name the engines to play on, such as --engine torch,l2f,isaaclab")
    for name in names:
        if not name:
            raise UserError(f"--engine {text} has an empty name: write it as torch,l2f,isaaclab")
        if ":" not in name and name not in engine_names():
            raise UserError(f"--engine {name}: unknown engine. {suggest(name, engine_names())}")
    if len(set(names)) < len(names):
        raise UserError(f"--engine {text} names an engine twice: name it once")
    return names


def read_pythons(words: Sequence[str], engines: Sequence[str]) -> dict[str, str]:
    """Read ``--engine_python isaaclab=/path/to/python``, each for one of the engines.

    Raises:
        UserError: For an engine that is not played on, or a file that cannot be run.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not path:
            raise UserError(f"--engine_python {word}: write it as isaaclab=/path/to/python")
        if name not in engines:
            raise UserError(f"--engine_python {word}: --engine does not name '{name}'. {suggest(name, engines)}")
        if name in found:
            raise UserError(f"--engine_python gives '{name}' two Pythons: give one")
        file = Path(path).expanduser()
        if not file.is_file() or not os.access(file, os.X_OK):
            raise UserError(f"--engine_python {word}: '{path}' is no program: give an environment's bin/python")
        found[name] = str(file.absolute())  # not resolved: a link to a Python is what makes an environment of it
    return found


def _refuse_of_one(args: argparse.Namespace) -> None:
    for name in _OF_ONE:
        if getattr(args, name):
            raise UserError(f"--{name.replace('real_time', 'real-time')} goes with one engine: give --engine one name")


def _missing(names: Sequence[str], task: str) -> dict[str, str]:
    """Return which engines are not installed in this environment, and what is missing.

    Raises:
        UserError: If one is installed and cannot run the task.
    """
    found: dict[str, str] = {}
    for name in names:
        obstacle = engine_class(name).why_not(task)
        if obstacle is not None and (isinstance(obstacle, MissingPackage) or "not installed" in obstacle):
            found[name] = str(obstacle)
        else:
            select_engine(task, name)
    return found


def _play_on(name: str, argv: Sequence[str], python: str | None, found: EngineTable) -> int:
    """Play on one engine, and take down what came of it; return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        with (Path(folder) / "output.txt").open("w+b") as output:
            code = run_in_a_process("foundation.rsl_rl.play", [*argv, "--json", str(figures)], python, output)
            output.seek(0)
            said = output.read().decode(errors="replace").splitlines()
        if code in (0, MISSED) and figures.exists():
            found.flown[name] = json.loads(figures.read_text())
        else:
            found.failed[name] = _last_error(said) or f"its process ended with exit code {code}"
    return code


def _last_error(lines: Sequence[str]) -> str:
    """Return the command's own error, or else the last line that it printed."""
    lines = [line.strip() for line in lines if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return shorten((errors or lines or [""])[-1].removeprefix("error: "), 600)


def _return(figures: dict[str, Any]) -> str:
    """Return the mean return and its 95 % interval, as text."""
    interval = figures["return_interval_95"]
    return f"{figures['return']['mean']:.2f}" + ("" if interval is None else f" ± {interval:.2f}")


def _ratio(figures: dict[str, Any]) -> str:
    ratio = figures.get("return_ratio")
    interval = figures.get("return_ratio_interval_95")
    if ratio is None:
        return "-"
    return f"{100.0 * ratio:.2f}" + ("" if interval is None else f" ± {100.0 * interval:.2f}")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
