"""Runs many command lines in one process, as the command itself would run each, and reports what each one did.

``python cli_driver.py cases.json results.json``: a case is ``{"argv": [...], "cwd": "...", "full_disk": false}``, a
result ``{"code": 2, "out": "...", "err": "...", "left": [files]}``. One process, because importing torch is most of
what such a command costs.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from foundation.cli.command import run_command
from foundation.rsl_rl.distillation import main


@contextlib.contextmanager
def full_disk_for(name: str, after: int) -> Any:
    """Make renaming to ``name`` fail as on a full disk, from the ``after``-th time on."""
    count, replace = [0], os.replace

    def failing(source: Any, target: Any) -> None:
        if Path(target).name == name:
            count[0] += 1
            if count[0] > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with mock.patch.object(os, "replace", failing):
        yield


def run_case(case: dict[str, Any]) -> dict[str, Any]:
    """Run one command line in its folder."""
    out, err = io.StringIO(), io.StringIO()
    cwd = Path(case["cwd"])
    before = set(cwd.rglob("*"))
    disk = full_disk_for("checkpoint_latest.pt", 2) if case.get("full_disk") else contextlib.nullcontext()
    with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), disk:
        try:
            code: Any = run_command(main, case["argv"])
        except SystemExit as leaving:
            code = leaving.code
    left = sorted(str(path.relative_to(cwd)) for path in set(cwd.rglob("*")) - before)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "left": left}


if __name__ == "__main__":
    cases, results = (Path(name) for name in sys.argv[1:3])
    results.write_text(json.dumps([run_case(case) for case in json.loads(cases.read_text())]))
