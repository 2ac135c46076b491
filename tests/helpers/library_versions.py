"""Obtain the other libraries that the tests run against, each with what it imports, in a folder under ``.cache``."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "libraries"
LIBRARIES = {
    "skrl-1.4.3": ("skrl==1.4.3", "tqdm"),
    "skrl-2.1.1": ("skrl==2.1.1", "tqdm"),
    "rl_games-1.6.5": ("rl_games==1.6.5", "tensorboardX", "psutil", "setproctitle", "watchdog"),
    "stable-baselines3-2.9.2": ("stable-baselines3==2.9.2", "cloudpickle"),
    "sb3-contrib-2.9.2": ("stable-baselines3==2.9.2", "sb3-contrib==2.9.2", "cloudpickle"),
}
"""What is installed for each, without what the package already needs."""


def library_dir(name: str) -> Path:
    """Return a folder that holds just this library, installing it on the first call."""
    folder = CACHE / name
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as staging:
            target = Path(staging) / name
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
            subprocess.run([*command, *LIBRARIES[name]], check=True)
            if not folder.is_dir():
                target.rename(folder)
    return folder


def run_with_library(name: str, script: Path, *args: str | Path) -> None:
    """Run a script against one library; a failure is the test's."""
    env = {**os.environ, "PYTHONPATH": str(library_dir(name)), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *map(str, args)],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
