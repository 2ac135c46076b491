"""The runs that a report is asked for: folders, names, and the folders of sweeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foundation.cli.played_policy import LOG_ROOT
from foundation.cli.sweep_table import read_results
from foundation.core.errors import UserError
from foundation.runs.run_dir import RunDir


def find_runs(named: Sequence[str]) -> list[Path]:
    """Return the folders of runs, each once, in the order of their names.

    Args:
        named: Folders of runs or sweeps, or names and patterns of distillation runs; none: the newest of these.

    Raises:
        UserError: If nothing is found for one of them.
    """
    found: list[Path] = []
    for name in named or [None]:
        if name is None or not Path(name).exists():
            found.append(RunDir.find(LOG_ROOT / "distillation", None, name).path)
        elif any(Path(name).glob("job_*.json")):
            found += _of_sweep(Path(name))
        else:
            found.append(Path(name))
    return list(dict.fromkeys(found))


def _of_sweep(folder: Path) -> list[Path]:
    """Return the runs of a sweep that have made a folder."""
    # The runs are named from the folder that the sweep was started in, which need not be this one.
    starts = (Path(), *folder.resolve().parents)
    named = [Path(result.folder) for result in read_results(folder) if result.folder is not None]
    found = [next((start / path for start in starts if (start / path).is_dir()), None) for path in named]
    there = [path for path in found if path is not None]
    if not there:
        raise UserError(f"'{folder}' is a sweep none of whose runs has a folder here: they were moved, or all failed")
    return there
