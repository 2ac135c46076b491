"""C sources of this package, compiled once per machine into the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

_FLAGS = ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC"]


def load(source: Path, without: str) -> ctypes.CDLL | None:
    """Compile a C source, if that has not been done yet, and load it.

    Args:
        source: Its path.
        without: What happens where that fails, for the log.

    Returns:
        The library. None without a compiler, with ``FOUNDATION_NATIVE=0``, or where it cannot be had.
    """
    if os.environ.get("FOUNDATION_NATIVE") == "0":
        return None
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.name != "posix":
        logger.info("%s: there is no C compiler (cc, gcc or clang)", without)
        return None
    try:
        path = _folder() / f"{source.stem}_{_fingerprint(source, compiler)}.so"
        if not _is_own(path):
            _compile(source, compiler, path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("%s: %s", without, error)
        return None


def _folder() -> Path:
    """Return the cache folder, which no other user may write to: its files are loaded as code.

    Raises:
        OSError: If it is a link or belongs to another user, or cannot be made.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "foundation"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.getuid():
        raise OSError(f"'{folder}' is a link or belongs to another user")
    if stat.S_IMODE(status.st_mode) & 0o077:  # not where it is closed already: it may be on a read-only disk
        folder.chmod(0o700)
    return folder


def _is_own(path: Path) -> bool:
    """Whether there is a file that nobody else can have written; any other is compiled anew, and replaced.

    So is an empty one, as a power cut leaves it.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not writable and status.st_size > 0


def _fingerprint(source: Path, compiler: str) -> str:
    """Return a name for source, compiler and kind of processor: machines may share a cache."""
    kind = platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        named = ("flags", "Features")  # of x86, of ARM
        kind += next((line for line in cpu.read_text().splitlines() if line.startswith(named)), "")
    parts = [source.read_text(), compiler, str(os.stat(compiler).st_size), kind, " ".join(_FLAGS)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(source: Path, compiler: str, path: Path) -> None:
    """Compile a source.

    Raises:
        OSError: If the compiler fails, with the first error that it names.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = Path(folder) / path.name
        command = [compiler, *_FLAGS, "-o", str(out), str(source), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=60)
        if done.returncode:
            lines = [*done.stderr.splitlines(), f"status {done.returncode}"]
            raise OSError(f"{compiler} failed: {next((line for line in lines if 'error' in line), lines[0])}")
        out.chmod(0o700)  # compilers leave it writable to the group where new files are
        os.replace(out, path)  # whoever compiles at the same time writes the same
