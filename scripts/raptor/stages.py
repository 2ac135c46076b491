"""Stages of a long job: each is timed, leaves its figures in a file, and is skipped when it has been done."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from rich.console import Console
from rich.markup import escape

from foundation.config.plain import finite
from foundation.core.child_process import end_with_parent
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes, load_yaml

ROOT = Path(__file__).resolve().parents[2]
TASK = "Isaac-Quadcopter-Point-Ctrl-v0"
TAIL = 3000
"""Characters of a failed command's output that are shown."""
COUNTS = re.compile(r"(^| )\d+/\d+[ ,]")
"""What a line of a command's output has that says how far it is: ``Epoch 3/800 (student)``."""
SHOW_EVERY = 60.0
"""Such a line is shown where nobody sits before a terminal [s]."""
STAMP = "%Y-%m-%d_%H-%M-%S"
"""How the names of runs' folders begin."""


class Stages:
    """The stages of a folder, in ``stages.json``.

    Args:
        folder: Where everything of the job goes.
        settings: What the job was started with; other settings in the same folder are an error.
        first_used: The stages before which some of the settings may still be changed.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], first_used: dict[str, str] | None = None):
        self.folder, self.path = folder, folder / "stages.json"
        saved = self._read()
        self.settings = settings
        self.done: dict[str, dict[str, Any]] = saved["stages"]
        self.begun: dict[str, dict[str, Any]] = saved["begun"]
        """Stages that have not ended: ``since`` when (as runs' folders are named), and what they have taken so far."""
        if saved["settings"]:
            self._accept(saved["settings"], first_used or {})

    def _read(self) -> dict[str, dict[str, Any]]:
        """Read what an earlier start has left."""
        saved: dict[str, Any] = {"settings": {}, "stages": {}, "begun": {}}
        if self.path.exists():
            try:
                saved |= json.loads(self.path.read_text())
                for spent in [*saved["stages"].values(), *saved["begun"].values()]:
                    _clock(spent)
                saved["settings"].keys()
            except (ValueError, TypeError, KeyError, AttributeError):
                raise UserError(f"'{self.path}' is corrupt: use another --folder, or remove it.") from None
        return saved

    def _accept(self, begun_with: dict[str, Any], first_used: dict[str, str]) -> None:
        """Refuse settings other than those of what is done; what was begun with others begins anew."""
        for name, value in self.settings.items():
            if begun_with.get(name) == value:
                continue
            stage = first_used.get(name)
            if stage is None or stage in self.done:
                raise UserError(
                    f"'{self.folder}' was begun with other settings ({name}: {begun_with.get(name)}, now {value}): "
                    "use another --folder, or remove it."
                )
            self.begun.pop(stage, None)

    def run(self, name: str, action: Callable[[], dict[str, Any] | None]) -> dict[str, Any]:
        """Run a stage unless it is done already.

        Args:
            name: Unique in the folder.
            action: Does the work; what it returns is kept with the stage.

        Returns:
            ``wall_seconds``, ``cpu_seconds`` (child processes and earlier, unfinished attempts included) and what
            ``action`` returned.
        """
        if name in self.done:
            print(f"==> {name}: done before ({_clock(self.done[name])})", flush=True)
            return self.done[name]
        print(f"==> {name}", flush=True)
        start = {"since": time.strftime(STAMP), "wall_seconds": 0.0, "cpu_seconds": 0.0}
        spent = self.begun.setdefault(name, start)
        self._save()  # from here on the folder is of these settings
        wall, cpu = time.perf_counter(), cpu_seconds()
        try:
            figures = action() or {}
        finally:
            spent["wall_seconds"] += time.perf_counter() - wall
            spent["cpu_seconds"] += cpu_seconds() - cpu
            self._save()
        del self.begun[name]
        self.done[name] = {key: spent[key] for key in ("wall_seconds", "cpu_seconds")} | figures
        self._save()
        print(f"==> {name}: {_clock(self.done[name])}", flush=True)
        return self.done[name]

    def take_up(self, name: str, figures: dict[str, Any]) -> None:
        """Count a stage as done that another job has done, with its figures."""
        self.done[name] = {"wall_seconds": 0.0, "cpu_seconds": 0.0} | figures
        self._save()

    def _save(self) -> None:
        write_json(self.path, {"settings": self.settings, "stages": self.done, "begun": self.begun})


def _clock(spent: dict[str, Any]) -> str:
    return f"{spent['wall_seconds']:.1f} s of wall time, {spent['cpu_seconds']:.1f} s of CPU time"


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended [s]."""
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def python(script: str, *arguments: object, log: Path) -> None:
    """Run one of the repository's scripts from the current folder; its output goes to ``log``.

    Raises:
        UserError: If it fails, with the end of its output.
    """
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file:
        file.write(" ".join(command) + "\n")
        file.flush()
        code, stopped = _run(command, file, log)
    if stopped:
        print(f"==> stopped; the same command goes on (output so far: {log})", flush=True)
        raise SystemExit(128 + stopped)
    if code != 0:
        print(log.read_text(encoding="utf-8", errors="replace")[-TAIL:], file=sys.stderr)
        raise UserError(f"{Path(script).name} failed with exit code {code}; its output is in '{log}'.")


def _run(command: Sequence[str], output: IO[str], log: Path) -> tuple[int, int]:
    """Run a command to its end; a signal for us is passed on, so that it saves what it has.

    Returns:
        Its exit code, and the last such signal, or 0.
    """
    stopped = 0
    # In a group of its own, Ctrl-C reaches it once, through us: a second one would end it before it has saved.
    child = subprocess.Popen(
        command,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=dict(os.environ),
        process_group=0,
        preexec_fn=end_with_parent(),
    )

    def pass_on(number: int, _: FrameType | None) -> None:
        nonlocal stopped
        stopped = number
        # A terminal that is closed would end it unsaved, or, as its group is another, leave it running on its own.
        child.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN else []  # nohup: to go on
    previous = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        code = _follow(child, log)
        return code, stopped
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _follow(child: subprocess.Popen[bytes], log: Path) -> int:
    """Wait for a command's end, and meanwhile show how far it is."""
    console, shown = Console(highlight=False), ""
    with console.status("") as status:  # a line that is written anew; nothing where there is no terminal
        while True:
            try:
                return child.wait(1.0 if console.is_terminal else SHOW_EVERY)
            except subprocess.TimeoutExpired:
                line = _last_count(log)
            if console.is_terminal:
                status.update(escape(line))
            elif line != shown:
                print(f"    {line}", flush=True)
            shown = line


def _last_count(log: Path) -> str:
    """Return the last line of a command's output that says how far it is, or nothing."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line for line in reversed(lines) if COUNTS.search(line)), "")


def newest_run(experiment: str, run_name: str, kind: str = "distillation") -> Path:
    """Return the newest run folder of an experiment that carries a name, of ``distillation.py`` or ``finetune.py``."""
    runs = _runs(experiment, run_name, kind)
    if not runs:
        raise UserError(f"{kind}.py left no run named '{run_name}' in logs/{kind}/{experiment}.")
    return runs[-1]


def begun_run(experiment: str, run_name: str, teachers: Path, since: str) -> Path | None:
    """Return the newest run folder of a name that was begun with these teachers since then, which can be resumed.

    Args:
        experiment: The folder of the runs.
        run_name: Their name.
        teachers: Their ``--teacher_checkpoint``.
        since: In the form of :data:`STAMP`. Older runs may be of a folder that has been removed.
    """
    for run in reversed(_runs(experiment, run_name)):
        parameters = run / "params" / "distillation.yaml"
        if run.name >= since and parameters.exists() and (run / "checkpoint_latest.pt").exists():
            checkpoint = load_yaml(parameters)["teacher"]["checkpoint"]
            if checkpoint in (str(teachers), [str(teachers)]):
                return run
    return None


def interrupted_run(experiment: str, run_name: str, kind: str, since: str) -> Path | None:
    """Return the newest run folder of a name that was begun since then and can be resumed; None: there is none.

    Args:
        experiment: The folder of the runs.
        run_name: Their name.
        kind: distillation or finetune.
        since: In the form of :data:`STAMP`.
    """
    runs = [run for run in _runs(experiment, run_name, kind) if run.name >= since]
    begun = [run for run in runs if (run / "checkpoint_latest.pt").exists()]
    return begun[-1] if begun else None


def _runs(experiment: str, run_name: str, kind: str = "distillation") -> list[Path]:
    """List the run folders of exactly this name by their time, which their names begin with."""
    stamp = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_" + re.escape(run_name))
    folder = Path("logs") / kind / experiment
    return sorted(path for path in folder.glob("*") if stamp.fullmatch(path.name) and path.is_dir())


def write_json(path: Path, data: Any) -> None:
    """Write plain values, whole or not at all."""
    atomic_write_bytes(path, (json.dumps(finite(data), indent=2, allow_nan=False) + "\n").encode())


def checked_tokens(tokens: Sequence[str]) -> list[str]:
    """Refuse, before anything is trained, arguments that ``distillation.py`` would refuse or gets from the pipeline."""
    from foundation.cli.cli_args import parse_command
    from foundation.cli.distillation_request import settle
    from foundation.engines.base import LaunchRequest
    from foundation.engines.torch import TorchEngine
    from foundation.rsl_rl.distillation import build_parser

    taken = ("--task", "--teacher_checkpoint", "--experiment_name", "--run_name", "--resume", "--load_run")
    for token in tokens:
        if token.partition("=")[0] in taken:
            raise UserError(f"{token}: the pipeline sets this itself.")
    args, rest = parse_command(build_parser(), ["experiment=raptor", *tokens])
    overrides, resolved = settle(args, rest, None)

    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        resolved.configure(env_cfg, agent_cfg, overrides)

    with TorchEngine().launch(LaunchRequest(TASK, device=resolved.cfg.device), configure):
        return list(tokens)
