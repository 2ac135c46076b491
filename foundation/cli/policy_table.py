"""Description of a policy's checkpoint, as a table or as JSON."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from foundation.teachers import TeacherPolicyWrapper


def show_policy(policy: TeacherPolicyWrapper, as_json: bool = False) -> None:
    """Print what was understood about a policy.

    Args:
        policy: The policy.
        as_json: Print JSON instead of a table.
    """
    described = {**policy.describe(), "num_parameters": policy.num_parameters}
    if as_json:
        print(json.dumps(described, indent=2))
        return
    described.pop("derived_groups", None)
    described |= {f"made for it: {name}": group.line() for name, group in policy.info.derived.items()}
    table = Table(show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")  # a long path is shown whole
    for name, value in described.items():
        table.add_row(name.replace("_", " "), "-" if value is None else str(value))
    print(policy.architecture_line())  # as a title it would be wrapped at the table's width
    Console().print(table)
