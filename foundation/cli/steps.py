"""The processes that one command runs one after the other: each once, found again by its name and resumed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from foundation.cli.own_process import run_in_a_process
from foundation.config.values import apply_values
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes
from foundation.runs.run_dir import RunDir

_ELSEWHERE = ("env", "agent", "defaults", "hydra")
"""Parts of a file that are not the command's own config."""


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
    make_config: Callable[[str], object]
    """Return the command's own config, with a student of this name."""

    def check(self, values: Mapping[str, Any], where: str) -> None:
        """Check the names and the types of what a stage sets: hours may pass before it begins.

        Values of environment and agent, which a simulator knows, interpolated ones and those of a student from another
        package are left to the stage itself.

        Args:
            values: As they are in the file.
            where: The stage, for the message.

        Raises:
            UserError: For a key that does not exist or a value of another type.
        """
        own = _plain({key: value for key, value in values.items() if key not in _ELSEWHERE})
        student = own.get("student")
        name = str(student.get("name", "mlp")) if isinstance(student, dict) else "mlp"
        if ":" in name or "defaults" in values:
            own.pop("student", None)
            name = "mlp"
        try:
            apply_values(self.make_config(name), own)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error


class StepFailed(Exception):  # noqa: N818  # a process's exit code on its way to this one's
    """A process ended with an exit code that is not 0."""

    def __init__(self, code: int, said: str = ""):
        super().__init__(said)
        self.code = code


@dataclass
class Steps:
    """Runs of a command, or of several, that belong together.

    Args:
        folder: Where their files are written.
        experiment_name: Experiment of all runs.
        run_name: First part of their names.
        resumes: Whether those that are done are left out.
    """

    folder: Path
    experiment_name: str
    run_name: str
    resumes: bool

    def write(self, name: str, values: dict[str, Any]) -> Path:
        """Write a step's settings as a file that ``experiment=`` takes."""
        path = self.folder / f"{self.run_name}_{name}.yaml"
        text = f"# @package _global_\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}"
        atomic_write_bytes(path, text.encode())
        return path

    def run(self, name: str, module: str, log_root: Path, arguments: Callable[[], list[str]]) -> RunDir:
        """Run a step, or resume it, unless it is done.

        Args:
            name: The step's name.
            module: Module of its command.
            log_root: Folder of that command's experiments.
            arguments: Returns what a new run is started with.

        Raises:
            StepFailed: If it fails.
        """
        run = self._find(log_root, name) if self.resumes else None
        if run is not None and (run.path / "summary.json").exists():
            print(f"{name} is done: {run.path}", flush=True)
            return run
        argv = ["--resume", "--load_run", run.name] if run is not None else arguments()
        if run is None:
            argv += ["--run_name", f"{self.run_name}_{name}"]
        code = run_in_a_process(module, [*argv, "--experiment_name", self.experiment_name])
        if code:
            raise StepFailed(code)
        run = self._find(log_root, name)
        assert run is not None
        return run

    def _find(self, log_root: Path, name: str) -> RunDir | None:
        """Find the newest run of a step."""
        pattern = rf"\d{{4}}.*_{re.escape(self.run_name)}_{name}$"
        try:
            return RunDir.find(log_root, self.experiment_name, pattern)
        except UserError:
            return None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested values without those that are interpolated."""
    kept: dict[str, Any] = {}
    for key, value in values.items():
        if not (isinstance(value, str) and "${" in value):
            kept[key] = _plain(value) if isinstance(value, dict) else value
    return kept


def merged(shared: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return nested values, ``own`` over ``shared``."""
    both = dict(shared)
    for key, value in own.items():
        before = both.get(key)
        both[key] = merged(before, value) if isinstance(before, dict) and isinstance(value, dict) else value
    return both
