"""Description of a policy's checkpoint, as a table or as JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from foundation.core.text import printable
from foundation.deploy.description import Field
from foundation.evaluation.report_table import table_console
from foundation.export.bundle import known_fields
from foundation.teachers import TeacherPolicyWrapper

logger = logging.getLogger("foundation.teacher_info")


def show_policy(policy: TeacherPolicyWrapper, as_json: bool = False, task: str | None = None) -> None:
    """Print what was understood about a policy, and what the columns that it reads and gives are.

    Args:
        policy: The policy.
        as_json: Print JSON instead of a table.
        task: The task that it acts in, which names columns. None: the one that its checkpoint names, if any.

    Raises:
        UserError: If there is no such task, or it has other observations.
    """
    described = {**policy.describe(), "num_parameters": policy.num_parameters}
    fields = known_fields(policy.info, task)
    if task is not None and not fields:
        logger.warning("--task %s: it states no names of the columns that a policy reads, so that none are shown", task)
    if as_json:
        columns = {f"{what}_fields": [asdict(field) for field in known] for what, known in fields.items()}
        print(json.dumps(described | columns, indent=2))
        return
    described.pop("derived_groups", None)
    described |= {f"made for it: {name}": group.line() for name, group in policy.info.derived.items()}
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a long path is shown whole
    for name, value in described.items():
        table.add_row(_cell(name.replace("_", " ")), _cell("-" if value is None else str(value)))
    print(printable(policy.architecture_line()))  # as a title it would be wrapped at the table's width
    console = table_console()
    console.print(table)
    for what, known in fields.items():
        console.print(_columns_table(what, known))


def _cell(text: str) -> Text:
    """Return a file's text as it is, without a terminal's codes: in a plain string rich reads markup."""
    return Text(printable(text))


def _columns_table(what: str, fields: Sequence[Field]) -> Table:
    """Lay out the columns of observations or actions: places, names, units."""
    table = Table(title=what, title_justify="left")
    table.add_column("columns", no_wrap=True)
    for name in ("name", "unit", "what they are"):
        table.add_column(name, overflow="fold")
    first = 0
    for field in fields:
        last = first + field.size - 1
        steps = f"{field.history} steps, oldest first" if field.history > 1 else ""
        said = "; ".join(part for part in (field.frame, steps) if part)
        places = f"{first}" if first == last else f"{first}..{last}"
        table.add_row(*map(_cell, (places, field.name, field.unit or "-", said or "-")))
        first = last + 1
    return table
