"""Start a command, or a function, in several processes that know each other, as ``torchrun`` does."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from command_server import Command, shared
from torch.distributed import TCPStore

from foundation.runs.run_dir import FollowedRunDir

THIS = Path(__file__).resolve()


class Launched:
    """Processes that were started together.

    Args:
        argv: Arguments of each.
        folder: Working directory.
        number: How many processes.
        script: What they run. None: ``distillation.py``.
    """

    def __init__(self, argv: list[Any], folder: Path, number: int, script: Path | None = None):
        # As with torchrun, none of the processes keeps the store: it is there whichever of them ends.
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        common = {"WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number, "MASTER_ADDR": "127.0.0.1"}
        common |= {"MASTER_PORT": self.store.port, "TORCHELASTIC_USE_AGENT_STORE": "True"}
        self.commands: list[Command] = []
        for rank in range(number):
            environment = {name: str(value) for name, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
            output = folder / f"output_{rank}.txt"
            output.unlink(missing_ok=True)
            setup = {"ranks:keep_what_followers_save": {}}
            started = shared().start(
                [str(arg) for arg in argv], folder, setup, script=script, environment=environment, output=output
            )
            self.commands.append(started)

    def wait(self, seconds: float = 120.0) -> list[int]:
        """Wait for all of them and return their exit codes."""
        try:
            return [command.wait(seconds) for command in self.commands]
        finally:
            for command in self.commands:
                command.kill(signal.SIGKILL)

    @property
    def text(self) -> str:
        """What all of them have printed, in order of rank."""
        return "".join(command.text for command in self.commands)


def distil(argv: list[Any], folder: Path, number: int, code: int = 0) -> str:
    """Run ``distillation.py --distributed`` to its end; return what was printed."""
    launched = Launched([*argv, "--distributed"], folder, number)
    codes = launched.wait()
    assert set(codes) == {code}, launched.text
    return launched.text


def keep_what_followers_save() -> None:
    """Let each process but the first write its own final student too, to ``final_<rank>.pt``."""

    def save(self: FollowedRunDir, name: str, payload: Mapping[str, Any]) -> Path:
        path = Path(f"final_{os.environ['RANK']}.pt")
        if name == "final_student.pt":
            torch.save(dict(payload), path)
        return path

    FollowedRunDir.save_checkpoint = save


def on_ranks(function: Callable[..., Any], number: int, folder: Path, *arguments: Any) -> list[Any]:
    """Call a function of a test module in several processes that have joined; return what each has returned."""
    torch.save(arguments, folder / "arguments.pt")
    path = Path(sys.modules[function.__module__].__file__ or "")
    launched = Launched([path, function.__name__, folder], folder, number, THIS)
    assert set(launched.wait()) == {0}, launched.text
    return [torch.load(folder / f"result_{rank}.pt", weights_only=True) for rank in range(number)]


def _main(path: Path, function: str, folder: Path) -> None:
    from foundation.core.distributed import joined

    sys.path.insert(0, str(path.parent))
    module = importlib.import_module(path.stem)
    arguments = torch.load(folder / "arguments.pt", weights_only=True)
    with joined() as ranks:
        result = getattr(module, function)(ranks, *arguments)
    torch.save(result, folder / f"result_{os.environ['RANK']}.pt")


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
