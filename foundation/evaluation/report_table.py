"""Figures of an evaluation, as plain values for JSON and as a table for the console."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from foundation.evaluation.audit import wilson_interval
from foundation.policies.actors import Policy
from foundation.rollout.evaluate import EvaluationResult

WIDEST = 200
"""Columns of a table that no terminal shows, at most."""


def table_console() -> Console:
    """Return where tables go. In a file a table is as wide as its text, so that paths in it are whole."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = WIDEST
    return console


def spread(values: torch.Tensor) -> dict[str, float]:
    """Return mean and population standard deviation. Shape: (num_episodes,)."""
    return {"mean": float(values.double().mean()), "std": float(values.double().std(correction=0))}


def evaluation_figures(result: EvaluationResult) -> dict[str, Any]:
    """Return what an evaluation measured, as plain values.

    Args:
        result: The episodes.

    Returns:
        ``num_episodes``, ``return``, ``return_interval_95``, ``length``, ``success_rate`` and
        ``success_interval_95`` (None where unknown), and ``metrics``.
    """
    interval = None
    if result.success is not None:
        interval = list(wilson_interval(int(result.success.sum()), len(result.success)))
    return {
        "num_episodes": len(result.returns),
        "return": spread(result.returns),
        "return_interval_95": result.return_interval,
        "length": spread(result.lengths),
        "success_rate": None if result.success is None else float(result.success.double().mean()),
        "success_interval_95": interval,
        "metrics": {name: spread(values) for name, values in result.metrics.items()},
    }


@torch.no_grad()
def inference_seconds(policy: Policy, obs: torch.Tensor, seconds: float = 0.2) -> float:
    """Time one step of a policy on observations that are where it is: the median over many steps [s].

    Args:
        policy: What to time.
        obs: Observations of the batch. Shape: (num_envs, num_obs).
        seconds: How long to measure [s].
    """

    def step(state: torch.Tensor | None) -> torch.Tensor | None:
        return policy.step(obs, state)[1]

    def wait() -> None:
        if obs.device.type == "cuda":
            torch.cuda.synchronize(obs.device)

    state = policy.initial_state(obs.shape[0], obs.device)
    for _ in range(10):
        state = step(state)
    wait()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        state = step(state)
        wait()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def evaluation_table(
    title: str,
    head: Sequence[tuple[str, str]],
    figures: dict[str, Any],
    units: Mapping[str, tuple[float, str]] | None = None,
) -> Table:
    """Lay the figures out.

    Args:
        title: The task.
        head: First rows: what was measured, and where.
        figures: What :func:`evaluation_figures` returned, with ``inference_us`` (batch size -> [µs]) and
            ``parameters`` where there is a network.
        units: Metric -> (factor, unit) by which it is shown, as the task declares them.
    """
    table = Table(title=title, box=box.ROUNDED, show_header=False, title_justify="left")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = list(head)
    rows.append(("return", _shown(figures["return"])))
    rows.append(("95 % of the mean return", f"± {figures['return_interval_95']:.2f}"))
    rows.append(("length [steps]", _shown(figures["length"], digits=1)))
    success = figures["success_rate"]
    unknown = "unknown (neither time_outs nor a success metric)"
    rows.append(("success", unknown if success is None else f"{100.0 * success:.1f} %"))
    interval = figures.get("success_interval_95")
    if interval is not None:
        rows.append(("95 % of the success rate", f"{100.0 * interval[0]:.1f} to {100.0 * interval[1]:.1f} %"))
    for name, values in figures["metrics"].items():
        factor, unit = (units or {}).get(name, (1.0, ""))
        scaled = {key: factor * value for key, value in values.items()}
        label = name.replace("_", " ")
        rows.append((f"{label} [{unit}]" if unit else label, _shown(scaled, digits=2 if unit else 4)))
    for batch, microseconds in figures.get("inference_us", {}).items():
        rows.append((f"inference, batch {batch} [µs]", f"{microseconds:.1f} per step"))
    if "parameters" in figures:
        rows.append(("parameters", f"{figures['parameters']:,}"))
    for name, text in rows:
        table.add_row(Text(name), Text(text))
    return table


def _shown(values: dict[str, float], digits: int = 2) -> str:
    return f"{values['mean']:.{digits}f} ± {values['std']:.{digits}f}"
