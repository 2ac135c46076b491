"""Results of a sweep: the file that each job leaves in the sweep's folder, and the table of all jobs at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.config.typing_fit import read_fields
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes, load_json

_FIGURES = (
    ("return ratio", ("return_ratio",)),
    ("return", ("best_student_return",)),
    ("return", ("fresh", "mean_return")),
    ("return", ("best", "mean_return")),
    ("mean score", ("geometric_mean_score",)),
    ("held-out loss", ("held_out_loss",)),
)
"""Columns, and where ``summary.json`` of one command or another has the figure."""
_INTERRUPTED = 128
"""Exit codes from here on are those of signals."""


@dataclass
class JobResult:
    """The outcome of one job of a sweep."""

    number: int
    """Counted from 0, as Hydra does."""
    settings: list[str]
    """The values that the sweep has for it, as they would be typed."""
    code: int
    """Exit code."""
    folder: str | None = None
    """The run's folder; None if none was made."""
    error: str | None = None
    """The line that it ended with, where that was an error."""

    def write(self, folder: Path) -> None:
        """Leave the result in the sweep's folder, for the process that prints the table."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        atomic_write_bytes(folder / f"job_{self.number}.json", text.encode())

    def figures(self) -> dict[str, float]:
        """Return the figures of the run's summary by their column; none where the run did not get that far."""
        if self.folder is None:
            return {}
        try:
            summary = load_json(Path(self.folder) / "summary.json")
        except (UserError, OSError, ValueError):
            return {}
        found: dict[str, float] = {}
        for column, path in _FIGURES:
            value = _at(summary, path)
            if column not in found and isinstance(value, int | float) and not isinstance(value, bool):
                with contextlib.suppress(OverflowError):  # an integer that is larger than any number
                    found[column] = float(value)
        return found

    def objective(self) -> float:
        """Return the number that a sweeper such as Optuna's optimises: the first figure; NaN where there is none."""
        return next(iter(self.figures().values()), math.nan)

    def outcome(self) -> str:
        """Return one word on how it ended."""
        if self.code == 0:
            return "done"
        return "stopped" if self.code >= _INTERRUPTED else "failed"


def _at(values: Any, path: Sequence[str]) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def read_results(folder: Path) -> list[JobResult]:
    """Read what the jobs of a sweep have left, in the order of their numbers.

    Raises:
        UserError: If one of the files cannot be read, or holds something else; names it.
    """
    found = []
    for path in folder.glob("job_*.json"):
        try:
            values = load_json(path)
            known = values if isinstance(values, Mapping) else {}
            found.append(JobResult(**read_fields(JobResult, known, f"'{path}'")))
        except UserError as error:
            raise UserError(f"cannot read '{path}', which a job of this sweep wrote: {error}") from error
    return sorted(found, key=lambda result: result.number)


def table_lines(results: Sequence[JobResult], planned: int | None, folder: Path) -> list[str]:
    """Return the table of a sweep, a line for each run: its settings, its figures, how it ended and its folder.

    The errors of those that failed are below it.

    Args:
        results: The jobs that have ended.
        planned: How many jobs there were to be; None if only the sweeper knows.
        folder: The sweep's folder.
    """
    figures = [result.figures() for result in results]
    columns = [name for name in dict.fromkeys(name for name, _ in _FIGURES) if any(name in own for own in figures)]
    rows = [["job", "settings", *columns, "outcome", "folder"]]
    for result, own in zip(results, figures, strict=True):
        cells = [_shown(name, own[name]) if name in own else "-" for name in columns]
        rows.append([str(result.number), " ".join(result.settings), *cells, result.outcome(), result.folder or "-"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    of = "" if planned is None else f" of {planned}"
    done = sum(result.code == 0 for result in results)
    left = f", {planned - len(results)} not begun" if planned is not None and planned > len(results) else ""
    errors = [f"job {result.number}: {result.error}" for result in results if result.error is not None]
    return [f"Sweep: {done}{of} jobs done{left}; results in {folder}", *lines, *errors]


def _shown(column: str, value: float) -> str:
    return f"{100.0 * value:.1f} %" if column == "return ratio" else f"{value:.4g}"
