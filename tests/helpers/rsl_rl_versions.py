"""Obtain the releases of rsl-rl-lib that the tests run against, each in its own folder under ``.cache``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "rsl_rl"
VERSIONS = ("3.0.1", "3.1.2", "4.0.1", "5.4.2", "5.5.1")


def version_dir(version: str) -> Path:
    """Return a folder that holds just this release, installing it on the first call."""
    folder = CACHE / version
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as staging:
            target = Path(staging) / version
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
            subprocess.run([*command, f"rsl-rl-lib=={version}"], check=True)
            if not folder.is_dir():
                target.rename(folder)
    return folder


def version_env(version: str) -> dict[str, str]:
    """Return the environment variables of a process that imports this release and this checkout."""
    path = os.pathsep.join([str(version_dir(version)), str(ROOT), str(ROOT / "tests" / "helpers")])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def run_with(version: str, *args: str | Path, cwd: Path, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
    """Run this Python with ``args`` against one release and return what it said."""
    return subprocess.run(
        [sys.executable, *map(str, args)],
        cwd=cwd,
        env=version_env(version),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
