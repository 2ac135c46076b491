"""The page of a sweep: its runs side by side, with the picture of the students' sizes against their scores."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from foundation.cli.sweep_table import JobResult
from foundation.core.errors import UserError
from foundation.core.files import atomic_write_bytes
from foundation.report.page import make_page
from foundation.report.run_record import RunRecord

PAGE = "report.html"
logger = logging.getLogger("foundation.sweep")


def write_report(results: Sequence[JobResult], folder: Path) -> Path | None:
    """Write the page of the jobs that are done to the sweep's folder.

    Args:
        results: The jobs that have ended.
        folder: The sweep's folder.

    Returns:
        The page; None where fewer than two are done, or a run cannot be read, which is logged.
    """
    runs = [Path(result.folder) for result in results if result.code == 0 and result.folder is not None]
    if len(runs) < 2:
        return None
    try:
        page = make_page([RunRecord.read(run) for run in runs], f"Sweep {folder.name}")
        atomic_write_bytes(folder / PAGE, page.encode("utf-8", "backslashreplace"))
    except UserError as error:
        logger.warning("the page of the sweep was not written: %s", error)
        return None
    return folder / PAGE
