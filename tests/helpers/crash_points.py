"""Die at a chosen operation on files, or make operations on files fail: set up in a child of ``command_server``."""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import Any


def die_at(operation: int, writes: bool = False) -> None:
    """Kill this process (SIGKILL) at its n-th sync, rename or deletion, or half way through its n-th write."""
    count = 0

    def now(is_write: bool = False) -> bool:
        nonlocal count
        count += is_write == writes
        return is_write == writes and count == operation

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Any, after: bool) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            if now():
                if after:
                    function(*args, **options)
                die()
            return function(*args, **options)

        return call

    def half_write(file: Any, data: Any) -> int:
        if now(is_write=True):
            file.write(bytes(data)[: len(data) // 2])
            file.flush()
            die()
        return file.write(data)

    os.replace = around(os.replace, after=operation % 2 == 0)
    os.fsync = around(os.fsync, after=False)
    os.unlink = around(os.unlink, after=True)
    _wrap_files(half_write)


def fail_writes(name: str, code: int = errno.ENOSPC, after: int = 0) -> None:
    """Make writing of files whose name holds ``name`` fail with an error of the system, after some bytes.

    Args:
        name: Part of the file's name.
        code: The error.
        after: Files of that name that are still written whole.
    """
    opened: dict[str, Any] = {"path": "", "count": 0}
    import tempfile

    make = tempfile.mkstemp

    def mkstemp(*args: Any, **options: Any) -> Any:
        handle, path = make(*args, **options)
        opened["path"] = path
        opened["count"] += name in path
        return handle, path

    def write(file: Any, data: Any) -> int:
        if name in opened["path"] and opened["count"] > after:
            file.write(bytes(data)[:100])
            raise OSError(code, os.strerror(code))
        return file.write(data)

    tempfile.mkstemp = mkstemp
    _wrap_files(write)


def _wrap_files(write: Any) -> None:
    """Put ``write(file, data)`` in the place of the method of every file that ``os.fdopen`` opens for writing bytes."""
    fdopen = os.fdopen

    class File:
        def __init__(self, file: Any):
            self._file = file

        def __enter__(self) -> File:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def write(self, data: Any) -> int:
            return write(self._file, data)

    def opened(handle: int, mode: str = "r", *args: Any, **options: Any) -> Any:
        file = fdopen(handle, mode, *args, **options)
        return File(file) if mode == "wb" else file

    os.fdopen = opened


def forbid_folders() -> None:
    """Making a folder is not permitted (root may make them anywhere, so rights alone do not test it)."""

    def mkdir(path: Any, *args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    os.mkdir = mkdir


def signal_in(stage: str, number: int, nth: int = 1, times: int = 1, note: str = "") -> None:
    """Send this process a signal when it enters a stage of the run for the n-th time.

    Args:
        stage: collection, learning, evaluation, baselines, saving or final_evaluation.
        number: The signal.
        nth: Which time.
        times: How many signals.
        note: File that takes the time of the signal.
    """
    from foundation.core.stopwatch import Stopwatch

    enter, count = Stopwatch.stage, 0

    def entered(self: Any, name: str) -> Any:
        nonlocal count
        count += name == stage
        if name == stage and count == nth:
            _send(number, times, note)
        return enter(self, name)

    Stopwatch.stage = entered  # type: ignore[method-assign]


def signal_before(target: str, number: int) -> None:
    """Send this process a signal when it first calls ``module:name`` or ``module:Class.name``."""
    import importlib

    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    function = getattr(owner, name)

    def call(*args: Any, **options: Any) -> Any:
        _send(number, 1, "")
        return function(*args, **options)

    setattr(owner, name, call)


def _send(number: int, times: int, note: str) -> None:
    if note:
        with open(note, "w") as file:
            file.write(str(time.time()))
    for _ in range(times):
        os.kill(os.getpid(), number)


def fail_events() -> None:
    """Make TensorBoard's event files fail after the first records, as on a full disk."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    write, count = RecordWriter.write, 0

    def failing(self: Any, data: bytes) -> None:
        nonlocal count
        count += 1
        if count > 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, data)

    RecordWriter.write = failing
