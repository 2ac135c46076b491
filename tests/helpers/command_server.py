"""Start commands fast and kill them for real: a process with everything imported forks a child for each command.

A child is a process like any other: it has its own signals, folder, limits and exit code. Importing torch once instead
of once per command is what makes thirty kills affordable. :func:`run_script` runs a script so, in place of
``subprocess.run([sys.executable, script, ...])``, where a test's claim is not about starting Python.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HELPERS = Path(__file__).resolve().parent
COMMANDS = HELPERS.parents[1] / "foundation" / "rsl_rl"
MODULES = (
    "foundation.rsl_rl.distillation",
    "foundation.runs.runner",
    "foundation.engines.gymnasium",
    "foundation.engines.torch",
    "foundation.teachers",
    "foundation.cli.distillation_job",
    "foundation.cli.finetune_job",
    "foundation.cli.hydra_jobs",
    "foundation.cli.play_job",
    "foundation.cli.train_job",
    "foundation.export.formats",
)


class CommandServer:
    """Forks commands. Tests share one (:func:`shared`)."""

    def __init__(self) -> None:
        path = os.pathsep.join([str(HELPERS.parents[1]), str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ask(what="hello")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(30)

    def ask(self, **request: Any) -> Any:
        """Send a request and return the answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        argv: list[str],
        folder: Path,
        setup: dict[str, Any] | None = None,
        path: str = "",
        script: Path | None = None,
        environment: dict[str, str] | None = None,
        output: Path | None = None,
        error: Path | None = None,
    ) -> Command:
        """Start ``distillation.py``, or another script, in a folder.

        Args:
            argv: Its arguments.
            folder: Working directory.
            setup: ``{"module:function": arguments}``, called in the child before the command.
            path: Put on the child's ``sys.path``: where a user's own package is.
            script: The script, run as ``__main__``. None: the function ``main`` of ``distillation.py``.
            environment: Variables that are set for it.
            output: File of what it prints. None: ``output.txt`` in the folder.
            error: File of what it prints on standard error. None: ``output``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        output = output or folder / "output.txt"
        begins = output.stat().st_size if output.exists() else 0  # before it starts: it may print at once
        request = {"argv": [str(arg) for arg in argv], "folder": str(folder), "output": str(output)}
        request |= {"script": str(script or ""), "environment": environment or {}, "error": str(error or output)}
        pid = self.ask(what="start", setup=setup or {}, path=path, **request)
        return Command(self, pid, output, begins)

    def run(self, argv: list[str], folder: Path, **options: Any) -> Command:
        """Start a command and wait for its end."""
        command = self.start(argv, folder, **options)
        command.wait()
        return command


@dataclass
class Command:
    """A command that was started."""

    server: CommandServer
    pid: int
    output: Path
    begins: int
    code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, minus the signal's number if one killed it; None while it runs."""
        if self.code is None:
            self.code = self.server.ask(what="poll", pid=self.pid)
        return self.code

    def wait(self, seconds: float = 120.0) -> int:
        """Wait for the end and return the exit code."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill(signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s:\n{self.text}")
            time.sleep(0.005)
        return code

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Wait until it has printed something."""
        deadline = time.monotonic() + seconds
        while text not in self.text:
            assert self.poll() is None and time.monotonic() < deadline, f"never said {text!r}:\n{self.text}"
            time.sleep(0.002)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def text(self) -> str:
        """What it has printed, on both streams."""
        if not self.output.exists():
            return ""
        with self.output.open("rb") as file:
            file.seek(self.begins)
            return file.read().decode(errors="replace")

    @property
    def error(self) -> str:
        """The line that begins with ``error:``, or ""."""
        return next((line for line in self.text.splitlines() if line.startswith("error:")), "")


@functools.cache
def shared() -> CommandServer:
    """Return the server of this test session."""
    server = CommandServer()
    atexit.register(server.close)
    return server


def run_script(
    script: str | Path, *argv: object, folder: Path, environment: dict[str, str] | None = None, seconds: float = 300.0
) -> subprocess.CompletedProcess[str]:
    """Run a script in a forked process, and return what ``subprocess.run`` would.

    Args:
        script: A path, or the name of one of ``foundation/rsl_rl``, such as ``play.py``.
        argv: Its arguments.
        folder: Working directory; it must exist.
        environment: Variables that are set for it.
        seconds: Time that it has.
    """
    path = COMMANDS / script  # an absolute path stays as it is
    with tempfile.TemporaryDirectory() as scratch:
        files = {"output": Path(scratch) / "output", "error": Path(scratch) / "error"}
        command = shared().start([*map(str, argv)], folder, script=path, environment=environment, **files)
        code = command.wait(seconds)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files.values()]
    return subprocess.CompletedProcess([str(path), *map(str, argv)], code, *texts)


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    for module in MODULES:
        importlib.import_module(module)
    from torch.utils.tensorboard.writer import SummaryWriter  # noqa: F401  (imported once, for all children)

    from foundation.config.resolve import compose

    compose({}, defaults=True)  # Hydra finds its plugins, and the defaults are read, once for all children
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = None
        if request["what"] == "start":
            answer = os.fork()
            if answer == 0:
                _child(request)
        elif request["what"] == "poll":
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _child(request: dict[str, Any]) -> None:
    code = 70
    try:
        os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(request["folder"])
        for number, name in ((1, "output"), (2, "error")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        os.environ.update(request["environment"])
        if request["path"]:
            sys.path.insert(0, request["path"])
        for name, arguments in request["setup"].items():
            module, _, function = name.partition(":")
            getattr(importlib.import_module(module), function)(**arguments)
        code = _run_script(request["script"], request["argv"]) if request["script"] else _run_main(request["argv"])
        sys.stdout.flush()
    finally:
        os._exit(code)


def _run_main(argv: list[str]) -> int:
    from foundation.cli.command import run_command
    from foundation.rsl_rl.distillation import main

    return run_command(main, argv, many_processes=True)


def _run_script(script: str, argv: list[str]) -> int:
    """Run a script as Python does, and return the exit code."""
    sys.argv = [script, *argv]
    sys.path.insert(0, str(Path(script).parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve()
