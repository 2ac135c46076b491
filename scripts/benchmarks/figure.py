"""The learning-curve figure: against training time, and against env steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.snapshots import LEVELS, Snapshot, Trace

COLORS = ("#0b6e4f", "#d1495b", "#5b7db1", "#8d6a9f", "#c98a1b", "#3c9d9b", "#7a7a7a", "#a4508b", "#50723c", "#b0563b")
INK = "#333333"
POINTS = 300
Place = Callable[[Snapshot], float]
"""Where on the axis a snapshot stands."""


def curve_on_grid(traces: Sequence[Trace], grid: np.ndarray, place: Place) -> np.ndarray:
    """Hold each run's last snapshot between its snapshots.

    Args:
        traces: Runs of one setting.
        grid: Places on the axis.
        place: Where a snapshot stands on it.

    Returns:
        Return ratio; NaN before a run's first snapshot and after its last. Shape: (num_runs, num_points).
    """
    rows = []
    for trace in traces:
        at = np.array([place(s) for s in trace.snapshots], dtype=np.float64)
        ratio = np.array([np.nan if s.ratio is None else s.ratio for s in trace.snapshots])
        index = np.searchsorted(at, grid, side="right") - 1
        values = np.where(index >= 0, ratio[np.clip(index, 0, None)], np.nan)
        rows.append(np.where(grid <= at[-1], values, np.nan))
    return np.stack(rows)


def draw(traces: Mapping[str, Sequence[Trace]], labels: Mapping[str, str], path: Path, *, wall: bool = False) -> None:
    """Draw return ratio against training time and against env steps: median and range over seeds.

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
    figure, panels = plt.subplots(1, 2, figsize=(11.0, 4.6), dpi=140, sharey=True)
    seconds: Place = (lambda s: s.wall) if wall else (lambda s: s.cpu)
    unit = "Wall seconds of training" if wall else "CPU seconds of training, one thread"
    _panel(panels[0], traces, labels, seconds, unit)
    _panel(panels[1], traces, labels, lambda s: float(max(s.env_steps, 1)), "Env steps of training")
    panels[0].set_ylabel("Return / teacher's return")
    levels = [0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 1.0]
    panels[0].yaxis.set_major_locator(matplotlib.ticker.FixedLocator(levels))
    for axes in panels:
        axes.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(_short))
        axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    handles, names = panels[0].get_legend_handles_labels()
    rows = -(-len(names) // 2)
    figure.legend(handles, names, loc="lower center", ncol=2 if len(names) > 1 else 1, frameon=False, fontsize=8.5)
    figure.tight_layout(rect=(0.0, 0.02 + 0.045 * rows, 1.0, 1.0))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def _short(value: float, _: int) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"


def _panel(
    axes: object, traces: Mapping[str, Sequence[Trace]], labels: Mapping[str, str], place: Place, unit: str
) -> None:
    """Draw one panel; what is missing of the teacher's return stands on a logarithmic axis, so that the end is seen."""
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    ends = [place(s) for runs in traces.values() for run in runs for s in run.snapshots]
    grid = np.geomspace(min(ends), max(ends), POINTS)
    for number, (name, runs) in enumerate(traces.items()):
        color = COLORS[number % len(COLORS)]
        values = curve_on_grid(runs, grid, place)
        shown = ~np.isnan(values).any(axis=0)
        values = np.clip(values[:, shown], 0.0, 0.999)
        axes.fill_between(grid[shown], values.min(axis=0), values.max(axis=0), color=color, alpha=0.13, linewidth=0)
        axes.plot(grid[shown], np.median(values, axis=0), color=color, linewidth=1.8, label=labels[name])
    for level in LEVELS:
        axes.axhline(level, color="#999999", linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    axes.set_xscale("log")
    axes.set_yscale("function", functions=(_stretch, _unstretch))
    axes.set_xlim(grid[0], grid[-1])
    axes.set_ylim(0.0, 0.998)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, which="both", color="#bbbbbb")
    axes.grid(axis="y", color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)


def _stretch(ratio: np.ndarray) -> np.ndarray:
    return -np.log10(np.clip(1.0 - np.asarray(ratio), 1e-3, None))


def _unstretch(height: np.ndarray) -> np.ndarray:
    return 1.0 - 10.0 ** -np.asarray(height)
