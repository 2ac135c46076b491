"""Run a command to its exit code: one line for a user's mistake, the usual codes for signals, a traceback for a bug."""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import os
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from foundation.core.errors import UserError
from foundation.core.import_errors import explain
from foundation.core.text import shorten

USER_ERROR = 2
"""Exit code of a mistake that is the user's to mend."""
_DISK_ERRORS = (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EPERM, errno.EIO, errno.EFBIG)
_PATH_ERRORS = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)  # a file where a folder is to be, ...
_PACKAGE = Path(__file__).resolve().parents[1]
_BESIDE = (_PACKAGE.parent / "scripts", _PACKAGE.parent / "tests")
"""The clone's other code; in an installation there is none."""
_ASKING = (signal.SIGINT, signal.SIGTERM)
"""Signals by which somebody asks a process to end."""
_HANG_UP = getattr(signal, "SIGHUP", None)
"""The signal that the terminal is gone, as after a lost connection; None on systems without it."""
_WORLDS = (("WORLD_SIZE", "RANK"), ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"))
"""Variables in which torchrun and mpirun set how many processes they have started, and which of them this one is."""
_IN_ASCII = {"±": "+-", "…": "...", "–": "-", "—": "-", "→": "->", "×": "x"}


class TerminatedError(BaseException):
    """SIGTERM, or SIGHUP, came while nothing was there to save: unwind and leave."""

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__(number)
        self.number = number


class Interrupt:
    """Turn the first Ctrl-C, SIGTERM or SIGHUP into a flag that a long loop polls; a second request ends the process.

    A terminal that is closed may send SIGHUP more than once, and others send it beside SIGTERM: it is no request.

    Use it as a context around the loop, after a simulator is up (some replace signal handlers when they start).

    Args:
        quiet: Say nothing when a signal comes: of several processes one does.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._terminals: list[int] = []
        """Which of standard output and error are a terminal."""

    def interrupted(self) -> str:
        """Return the name of the signal that has come, or "". The loop then saves and returns."""
        return signal.Signals(self.signal).name if self.signal is not None else ""

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 130 after Ctrl-C, 143 after SIGTERM, 129 after SIGHUP, 0 if no signal came."""
        return 128 + self.signal if self.signal is not None else 0

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._terminals = [handle for handle in (1, 2) if os.isatty(handle)]
            self._previous = {number: signal.signal(number, self._handle) for number in (*_ASKING, *_heard_hang_up())}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == _HANG_UP:
            self.signal = self.signal or number
            for handle in self._terminals:  # what is printed from here on would be an error, and nothing be saved
                os.dup2(os.open(os.devnull, os.O_WRONLY), handle)
            return
        if self.signal in _ASKING:
            _write_error("\nstopped without saving\n")
            os._exit(128 + number)
        self.signal = number
        if not self.quiet:
            _write_error(f"\n{signal.Signals(number).name}: saving and leaving; once more to leave at once\n")


def _write_error(text: str) -> None:
    """Write from a signal handler, where a terminal that is gone must not raise."""
    with contextlib.suppress(OSError):
        os.write(2, text.encode())


def _heard_hang_up() -> list[int]:
    """Return SIGHUP, unless there is none or ``nohup`` has the process ignore it."""
    is_heard = _HANG_UP is not None and signal.getsignal(_HANG_UP) is not signal.SIG_IGN
    return [_HANG_UP] if is_heard and _HANG_UP is not None else []


def run_command(
    main: Callable[[Sequence[str] | None], int | None],
    argv: Sequence[str] | None = None,
    *,
    many_processes: bool = False,
) -> int:
    """Run a command's ``main(argv)`` and return the exit code of the process.

    Args:
        main: Parses ``argv`` (None: the process's own), does the work, returns an exit code or None for 0.
        argv: Arguments without the program's name.
        many_processes: Whether ``main`` knows what to do when it is started several times at once (``torchrun``).

    Returns:
        0; 2 for a user's mistake, with one line on stderr; 130, 143 or 129 after a signal; 1 for a bug.
    """
    previous = _unwind_on_signals()
    _interrupt_on_sigint()
    threading.excepthook = _report_thread
    _print_in_any_encoding()
    try:
        if not many_processes:
            refuse_many_processes(f"{_program()} runs in one process: start it without torchrun or mpirun")
        return _flushed(main, argv)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except TerminatedError as terminated:
        return 128 + terminated.number
    except BrokenPipeError:
        return reader_has_gone()
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # rich, which prints tables, leaves so
            return reader_has_gone()
        raise
    except Exception as error:
        return _end_of(error)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _flushed(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None) -> int:
    """Run ``main`` and write what it has printed: what cannot be written is an error, and no success."""
    leaving: SystemExit | None = None
    code = 0
    try:
        code = main(argv) or 0
    except SystemExit as left:  # as after --help
        leaving = left
    if sys.stdout is not None:  # the process may have been started without one
        sys.stdout.flush()
    if leaving is not None:
        raise leaving
    return code


def _end_of(error: Exception) -> int:
    """Say what an error means, and return the exit code."""
    if _has_interrupt(error):  # a library that was being imported made another error of it
        return 128 + signal.SIGINT
    message = _users_line(error)
    if message is not None:
        return _fail(message)
    theirs = _users_frames(error)
    return _report_users_bug(error, theirs) if theirs is not None else _report_bug()


def refuse_many_processes(what_to_do: str) -> None:
    """Refuse to run beside copies of this process, each of which would do all of the work.

    Args:
        what_to_do: Follows "WORLD_SIZE is 2, but ".

    Raises:
        UserError: If ``torchrun`` or ``mpirun`` has started more than one process, and this is the first.
        SystemExit: If it is another, which need not say the same again.
    """
    for name, rank in _WORLDS:
        size = os.environ.get(name, "")
        if not size.isdecimal() or int(size) < 2:
            continue
        if os.environ.get(rank, "0") != "0":
            raise SystemExit(USER_ERROR)
        raise UserError(f"{name} is {size}, but {what_to_do}")


def reader_has_gone(message: str = "") -> int:
    """Return the exit code of a command whose output is not read any more, as after ``| head``.

    Args:
        message: Text for stderr.
    """
    _close_stdout()
    with contextlib.suppress(OSError):  # that may be the same pipe
        if message:
            print(message, file=sys.stderr, flush=True)
    return 128 + signal.SIGPIPE


def _program() -> str:
    return Path(sys.argv[0]).name or "this command"


def _print_in_any_encoding() -> None:
    """Let a stream that cannot show a character, as under ``PYTHONIOENCODING=ascii``, show its like in ASCII."""
    codecs.register_error("foundation.ascii", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # tests and notebooks put other objects in their place
        is_utf = (getattr(stream, "encoding", None) or "").lower().startswith("utf")
        if reconfigure is not None and (stream.errors == "strict" or not is_utf):
            reconfigure(errors="foundation.ascii")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    return "".join(_IN_ASCII.get(character, "?") for character in characters), error.end


def _interrupt_on_sigint() -> None:
    """Let Ctrl-C raise ``KeyboardInterrupt`` from here on; scripts leave it to end the process while they import."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _has_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error."""
    return any(isinstance(cause, KeyboardInterrupt) for cause in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _users_line(error: Exception) -> str | None:
    """Return the message for an error that the user can mend, or None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS + _PATH_ERRORS:
        if error.filename:
            return f"{error.strerror}: {error.filename}"
        return f"the output cannot be written: {error.strerror}; look at what standard output goes to, and at the disk"
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.partition(".")[0] != "foundation":
        if _users_frames(error) is not None:
            return explain(error)
        return f"the Python package '{error.name}' is not installed: pip install -e . in the clone's folder"
    if _is_out_of_memory(error):
        less = "fewer --num_envs, a smaller distill.dataset.size or a smaller network"
        return f"out of memory ({_first_line(error)}): {less}"
    return None


class _PrintableFormatter(logging.Formatter):
    """Escapes what cannot be printed, such as a terminal's codes in a name of a received file; lines stay lines."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        text = super().format(record).replace("\t", "    ")
        signs = (
            sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in text
        )
        return "".join(signs)


def set_up_logging() -> None:
    """Send INFO lines of this package to stderr, once."""
    root = logging.getLogger("foundation")
    if not root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(_PrintableFormatter("[%(levelname)s] %(message)s"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False


def _unwind_on_signals() -> dict[int, Any]:
    """Let SIGTERM and SIGHUP unwind the stack, so that files and simulators are closed; return handlers to put back."""

    def unwind(number: int, frame: FrameType | None) -> None:
        raise TerminatedError(number)

    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, unwind) for number in (signal.SIGTERM, *_heard_hang_up())}


def _report_thread(failure: threading.ExceptHookArgs) -> None:
    """Keep quiet about a disk that is full under TensorBoard's own thread: the run's next write says it in one line."""
    if not (isinstance(failure.exc_value, OSError) and failure.exc_value.errno in _DISK_ERRORS):
        threading.__excepthook__(failure)


def _flush_stdout() -> None:
    """Write what was printed before an error, if that can be: the error matters more."""
    if sys.stdout is None:  # the process was started without one
        return
    try:
        sys.stdout.flush()
    except OSError:
        _close_stdout()


def _close_stdout() -> None:
    """Send what is still to be written to standard output nowhere, so that Python does not try once more at its end."""
    if sys.stdout is not None:
        with contextlib.suppress(OSError):  # what tests and notebooks put in its place is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    _flush_stdout()
    print(f"error: {shorten(' '.join(message.split()), 2000)}", file=sys.stderr)
    return USER_ERROR


def _users_frames(error: Exception) -> traceback.StackSummary | None:
    """Return the calls from the user's code on, if an error came from there, such as an environment's ``step``.

    It did where the innermost frame that is not a library's is neither this package's nor of the clone around it.
    """
    frames = traceback.extract_tb(error.__traceback__)
    owners = [_owner(frame.filename) for frame in frames]
    known = [owner for owner in owners if owner != "library"]
    if not known or known[-1] != "user":
        return None
    last_of_ours = max((i for i, owner in enumerate(owners) if owner == "ours"), default=-1)
    first = owners.index("user", last_of_ours + 1)
    return traceback.StackSummary.from_list(frames[first:])


def _owner(filename: str) -> Literal["ours", "library", "user"]:
    if filename.startswith("<"):
        return "library"
    path = Path(filename).resolve()
    if any(path.is_relative_to(folder) for folder in (_PACKAGE, *_BESIDE)):
        return "ours"
    installed = ("stdlib", "platstdlib", "purelib", "platlib")
    if {"site-packages", "dist-packages"} & set(path.parts) or any(
        path.is_relative_to(Path(sysconfig.get_path(name)).resolve()) for name in installed
    ):
        return "library"
    return "user"


def _report_users_bug(error: Exception, frames: traceback.StackSummary) -> int:
    _flush_stdout()
    print("Traceback (most recent call last):", *frames.format(), sep="\n", end="", file=sys.stderr)
    user = [frame for frame in frames if _owner(frame.filename) == "user"][-1]
    where = f"{user.filename}, line {user.lineno}, in {user.name}"
    return _fail(f"{type(error).__name__} in your code ({where}): {error}")


def _report_bug() -> int:
    _flush_stdout()
    traceback.print_exc()
    print(
        "This is a bug in foundation, not a mistake of yours: please report it with the lines above.", file=sys.stderr
    )
    return 1


def _is_out_of_memory(error: Exception) -> bool:
    refused = "can't allocate memory" in str(error) or "not enough memory" in str(error)  # torch, on the CPU
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or refused


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
