"""Charts of what a run's files hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from foundation.report.charts import Line, line_chart


def number(value: object) -> float:
    """Read a number of a file; NaN where there is none, or an integer that is larger than any number."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def mappings(value: object) -> list[Mapping[str, Any]]:
    """Read a list of mappings; what is none is left out."""
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def mapping(value: object) -> Mapping[str, Any]:
    """Read a mapping; an empty one where there is none."""
    return value if isinstance(value, Mapping) else {}


def numbers(value: object) -> list[float]:
    """Read a list of numbers."""
    return [number(item) for item in value] if isinstance(value, list) else []


def robustness_charts(measured: Mapping[str, Any]) -> list[str]:
    """Draw the return, and the success where it is known, over each quantity.

    Args:
        measured: What ``robustness.json`` holds.
    """
    charts = []
    for curve in mappings(measured.get("curves")):
        name = str(curve.get("name", "")).replace("_", " ")
        label = f"{name} [{curve.get('unit', '')}]"
        values = numbers(curve.get("values"))
        policies = {str(policy): mappings(points) for policy, points in mapping(curve.get("points")).items()}
        charts.append(line_chart(f"Return, {name}", label, "return", _return_lines(values, policies)))
        lines = _success_lines(values, policies)
        charts.append(line_chart(f"Success, {name}", label, "success [%]", lines, bounds=(-4.0, 104.0)))
    return [chart for chart in charts if chart]


def _return_lines(values: Sequence[float], policies: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Line]:
    lines = []
    for policy, points in policies.items():
        if len(points) != len(values):
            continue
        means = [number(point.get("mean_return")) for point in points]
        widths = [number(point.get("return_interval")) for point in points]
        low = [mean - width for mean, width in zip(means, widths, strict=True)]
        high = [mean + width for mean, width in zip(means, widths, strict=True)]
        lines.append(Line(policy, values, means, low, high, marks=True))
    return lines


def _success_lines(values: Sequence[float], policies: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Line]:
    lines = []
    for policy, points in policies.items():
        rates = [100.0 * number(point.get("success_rate")) for point in points]
        ends = [numbers(point.get("success_interval")) for point in points]
        if len(points) != len(values) or any(len(pair) != 2 for pair in ends):
            continue
        low = [100.0 * pair[0] for pair in ends]
        high = [100.0 * pair[1] for pair in ends]
        lines.append(Line(policy, values, rates, low, high, marks=True))
    return lines
