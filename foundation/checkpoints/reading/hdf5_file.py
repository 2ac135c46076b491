"""HDF5 files read with care: plain numbers that lie in the file itself, read in a process with bounded memory."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from foundation.checkpoints.reading import hdf5_process
from foundation.core.archives import ROOM
from foundation.core.errors import UserError
from foundation.core.files import check_finite
from foundation.core.text import one_line

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_SECONDS = 5
_BYTES_PER_SECOND = 20 << 20
"""CPU time allowed for a small file [s], and the least speed at which the rest of a large one must be read [B/s]."""
_PATIENCE = 12
"""Wall-clock seconds allowed for each CPU second: the disk may be slow and other processes may run."""


class Hdf5Process:
    """A process that opens files one after the other; it ends with this one."""

    def __init__(self) -> None:
        """Start it."""
        self.owner = os.getpid()
        self._overdue = False
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", hdf5_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | threads | {"HDF5_PLUGIN_PRELOAD": "::"},  # so that libhdf5 loads no plugins
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to = self._process.stdin
        self._from = self._process.stdout
        self._send([path for path in sys.path if path])

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return self.owner == os.getpid() and self._process.poll() is None

    def ask(self, where: str, /, **request: object) -> Any:
        """Return the answer to a request: text, a number, names, or a tensor.

        Args:
            where: The file's path, for errors.
            request: What to do, and with what.
        """
        self._send(request)
        line = self._from.readline()
        if not line.endswith(b"\n"):
            raise UserError(f"'{where}' {self._end()}. Is it corrupt? Copy it again.")
        answer = json.loads(line)
        if "refused" in answer:
            raise UserError(f"'{where}': {one_line(answer['refused'])}. Is the file of another version, or corrupt?")
        if "corrupt" in answer:
            raise UserError(f"'{where}' is truncated or corrupt ({one_line(answer['corrupt'])}). Copy it again.")
        value = answer["value"]
        return self._tensor(**value) if isinstance(value, dict) else value

    @contextmanager
    def watched(self, seconds: float) -> Iterator[None]:
        """End the process where it is still busy with a file after some time [s]."""
        timer = threading.Timer(seconds, self._overtime)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def kill(self) -> None:
        """End it at once."""
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()
        for pipe in (self._to, self._from):
            with suppress(OSError):
                pipe.close()

    def _overtime(self) -> None:
        self._overdue = True
        self._process.kill()

    def _send(self, message: object) -> None:
        with suppress(BrokenPipeError):  # it has ended: the missing answer is the error
            self._to.write(json.dumps(message).encode() + b"\n")
            self._to.flush()

    def _tensor(self, shape: list[int], bytes: int) -> torch.Tensor:
        content = bytearray(bytes)
        view = memoryview(content)
        count = 0
        while count < bytes:
            more = self._from.readinto(view[count:])  # pyright: ignore[reportAttributeAccessIssue] (a buffered pipe)
            if not more:
                raise EOFError(self._end())
            count += more
        return torch.frombuffer(content, dtype=torch.float32).reshape(shape) if bytes else torch.zeros(shape)

    def _end(self) -> str:
        code = self._process.wait()
        if self._overdue or code == -getattr(signal, "SIGXCPU", 0):
            return "takes too long to read"
        return f"makes the library that reads it fail (exit code {code})"


_idle: list[Hdf5Process] = []
"""A process that waits for the next file: starting one takes a tenth of a second, and teachers come by the hundred."""


class Hdf5Group:
    """A group of an open file, every access to which is checked."""

    def __init__(self, process: Hdf5Process, number: int, name: str, path: str) -> None:
        """Refer to a group.

        Args:
            process: Has the file open.
            number: The group's, in the process.
            name: Path inside the file.
            path: The file's, for errors.
        """
        self._process = process
        self._number = number
        self.name = name
        self._path = path

    def names(self) -> list[str]:
        """Return the names of what the group holds."""
        return self._process.ask(self._path, do="names", group=self._number)

    def attribute(self, name: str) -> str | None:
        """Return an attribute as text, or None."""
        return self._process.ask(self._path, do="attribute", group=self._number, name=name)

    def group(self, name: str) -> Hdf5Group:
        """Return a group inside this one."""
        number = self._process.ask(self._path, do="group", group=self._number, name=name)
        return Hdf5Group(self._process, number, f"{self.name}/{name}".strip("/"), self._path)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a data set as float32, finite."""
        value: torch.Tensor = self._process.ask(self._path, do="numbers", group=self._number, name=name)
        check_finite({f"{self.name}/{name}": value}, self._path)
        return value


def _ready_process() -> Hdf5Process:
    while _idle:
        process = _idle.pop()
        if process.alive:
            return process
        process.kill()
    return Hdf5Process()


@contextmanager
def open_hdf5(path: Path) -> Iterator[Hdf5Group]:
    """Open a file; whatever a corrupt one runs into is one line."""
    if importlib.util.find_spec("h5py") is None:
        raise UserError(
            f"'{path}' is an HDF5 file, which needs the package h5py: pip install -e '.[raptor]' in the clone's folder"
        )
    size = path.stat().st_size
    seconds = _SECONDS + size // _BYTES_PER_SECOND
    process = _ready_process()
    sound = False
    try:
        with process.watched(_PATIENCE * seconds):
            budget = 4 * size + ROOM
            process.ask(
                str(path), do="open", path=str(path.absolute()), budget=budget, memory=budget + ROOM, seconds=seconds
            )
            yield Hdf5Group(process, 0, "", str(path))
            process.ask(str(path), do="close")
            sound = True
    except UserError:
        raise
    except Exception as error:  # numbers that do not fit together fail in any of torch's ways
        raise UserError(f"'{path}' is truncated or corrupt ({one_line(error)}). Copy it again.") from error
    finally:
        if sound and not _idle:
            _idle.append(process)
        else:
            process.kill()
