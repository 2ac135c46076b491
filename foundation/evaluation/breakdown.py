"""Figures by variant, where a task's environments differ, such as each having a vehicle of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from foundation.core.text import printable
from foundation.rollout.evaluate import EvaluationResult

MAX_ROWS = 20
"""Variants that the table shows; of more, the worst."""


def variant_figures(
    result: EvaluationResult, kind: str, names: Sequence[str], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Return name, episodes, mean return, success and metrics of every variant that was played.

    Args:
        result: Episodes, each with its variant in ``result.teacher``.
        kind: What a variant is called, such as ``vehicle``.
        names: Of all variants; those without one are numbered.
        metrics: Episode metrics to average over the episodes that succeeded, in the task's units.
    """
    if result.teacher is None:
        return []
    variant = result.teacher.long().cpu()
    rows = []
    for index in variant.unique().tolist():
        mine = variant == index
        ended = mine if result.success is None else mine & result.success.bool().cpu()
        row: dict[str, Any] = {
            kind: names[index] if index < len(names) else str(index),
            "episodes": int(mine.sum()),
            "return": float(result.returns.cpu()[mine].double().mean()),
            "success_rate": None if result.success is None else float(ended.sum() / mine.sum()),
        }
        for name in metrics:
            if name in result.metrics:
                values = result.metrics[name].cpu()[ended].double()
                row[name] = float(values.mean()) if len(values) else None
        rows.append(row)
    return rows


def variant_table(rows: Sequence[Mapping[str, Any]], kind: str, units: Mapping[str, tuple[float, str]]) -> Table:
    """Lay the figures by variant out, the worst first.

    Args:
        rows: What :func:`variant_figures` returned.
        kind: What a variant is called.
        units: Metric -> (factor, unit) by which it is shown, as the task declares them.
    """
    worst = sorted(rows, key=lambda row: row["return"])
    order = f"the worst {MAX_ROWS}" if len(rows) > MAX_ROWS else "the worst first"
    table = Table(title=f"{len(rows)} {kind}s, {order}", box=box.ROUNDED, title_justify="left")
    table.add_column(kind)
    metrics = [name for name in units if any(name in row for row in rows)]
    headings = [f"{name.replace('_', ' ')} [{units[name][1]}]" for name in metrics]
    for heading in ("episodes", "return", "success", *headings):
        table.add_column(Text(heading), justify="right")  # markup would swallow "[cm]"
    for row in worst[:MAX_ROWS]:
        success = row["success_rate"]
        cells = [Text(printable(row[kind])), str(row["episodes"]), f"{row['return']:.1f}"]
        cells.append("" if success is None else f"{100 * success:.1f} %")
        for name in metrics:
            value = row.get(name)
            cells.append("" if value is None else f"{units[name][0] * value:.2f}")
        table.add_row(*cells)
    return table
