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
        without: What happens where that fails, for the warning.

    Returns:
        The library. None without a compiler, with ``FOUNDATION_NATIVE=0``, or where it cannot be had.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if os.environ.get("FOUNDATION_NATIVE") == "0" or compiler is None or os.name != "posix":
        return None
    try:
        path = _folder() / f"{source.stem}_{_fingerprint(source, compiler)}.so"
        if not path.exists():
            _compile(source, compiler, path)
        _check_owner(path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        logger.warning("%s: %s", without, error)
        return None


def _folder() -> Path:
    """Return the cache folder, which no other user may write to: its files are loaded as code.

    Raises:
        OSError: If the folder, or a file in it that would be loaded, belongs to another user.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = root / "foundation"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_owner(folder)
    folder.chmod(0o700)
    return folder


def _check_owner(path: Path) -> None:
    """Raise ``OSError`` if a path is a link, belongs to another user, or if others can write to it."""
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode) or status.st_uid != os.getuid():
        raise OSError(f"'{path}' is a link or belongs to another user")
    if not stat.S_ISDIR(status.st_mode) and status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"others may write to '{path}'")


def _fingerprint(source: Path, compiler: str) -> str:
    """Return a name for source, compiler and kind of processor: machines may share a cache."""
    kind = platform.machine()
    cpu = Path("/proc/cpuinfo")
    if cpu.is_file():
        kind += next((line for line in cpu.read_text().splitlines() if line.startswith("flags")), "")
    parts = [source.read_text(), compiler, str(os.stat(compiler).st_size), kind, " ".join(_FLAGS)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _compile(source: Path, compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        out = Path(folder) / path.name
        command = [compiler, *_FLAGS, "-o", str(out), str(source), "-lm"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        os.replace(out, path)  # whoever compiles at the same time writes the same
