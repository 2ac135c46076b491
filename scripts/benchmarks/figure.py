"""The learning-curve figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.snapshots import LEVELS, Trace

COLORS = ("#0b6e4f", "#d1495b", "#5b7db1", "#8d6a9f")
INK = "#333333"
POINTS = 300


def curve_on_grid(traces: Sequence[Trace], grid: np.ndarray, wall: bool) -> np.ndarray:
    """Hold each run's last snapshot between its snapshots.

    Args:
        traces: Runs of one setting.
        grid: Training seconds.
        wall: Whether they are wall seconds.

    Returns:
        Return ratio; NaN before a run's first snapshot and after its last. Shape: (num_runs, num_points).
    """
    rows = []
    for trace in traces:
        at = np.array([s.wall if wall else s.cpu for s in trace.snapshots])
        ratio = np.array([np.nan if s.ratio is None else s.ratio for s in trace.snapshots])
        index = np.searchsorted(at, grid, side="right") - 1
        values = np.where(index >= 0, ratio[np.clip(index, 0, None)], np.nan)
        rows.append(np.where(grid <= at[-1], values, np.nan))
    return np.stack(rows)


def draw(traces: Mapping[str, Sequence[Trace]], labels: Mapping[str, str], path: Path, *, wall: bool = False) -> None:
    """Draw return ratio against training time: median and range over seeds.

    Args:
        traces: Runs by setting.
        labels: Legend by setting.
        path: The PNG.
        wall: Plot wall seconds instead of CPU seconds.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 10, "font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": "#bbbbbb"})
    figure, axes = plt.subplots(figsize=(7.2, 4.0), dpi=160)
    ends = [(s.wall if wall else s.cpu) for runs in traces.values() for run in runs for s in run.snapshots]
    grid = np.geomspace(min(ends), max(ends), POINTS)
    for (name, runs), color in zip(traces.items(), COLORS, strict=False):
        values = curve_on_grid(runs, grid, wall)
        shown = ~np.isnan(values).any(axis=0)
        values = np.clip(values[:, shown], 0.0, None)
        axes.fill_between(grid[shown], values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
        axes.plot(grid[shown], np.median(values, axis=0), color=color, linewidth=2.0, label=labels[name])
    for level in LEVELS:
        axes.axhline(level, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
        axes.annotate(
            f"{100 * level:.0f} %", (1.005, level), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    axes.set_xscale("log")
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(0.0, 1.04)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(f"{'Wall' if wall else 'CPU'} seconds of training, one thread" if not wall else "Wall seconds")
    axes.set_ylabel("Return / teacher's return")
    axes.set_title("Distilling a 26→256·256·256→4 teacher into a 22→64·64→4 student", fontsize=10.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, which="both", color="#bbbbbb")
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)
