"""The same small sweep for both sides: one value changed at a time, then the best value of every axis together."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import ours, recurrent, stock
from benchmarks.race import Bench, Setting, describe, median_reached
from benchmarks.snapshots import LEVELS, Trace, reached
from benchmarks.stock import StockSettings

Axes = dict[str, list[Any]]

STOCK_AXES: Axes = {
    "learning_rate": [5e-4, 2e-3, 5e-3, 1e-2],
    "num_steps": [12, 48],
    "num_learning_epochs": [1, 4],
    "num_envs": [64, 128],
    "init_std": [0.02],
}


REFINED_AXES: Axes = {
    "learning_rate": [1e-3, 3e-3, 4e-3],
    "num_steps": [6, 8, 16],
    "num_learning_epochs": [2],
    "num_envs": [64, 192],
    "init_std": [0.01, 0.05],
}
"""Around RSL-RL's best found to the first level: the presets of this project were tuned more than once, too."""


def our_axes(preset: Mapping[str, Any] | None = None) -> Axes:
    """Return the values around ``experiment=fast``, or another preset, as many as RSL-RL's."""
    base = ours.settings(preset or {})
    num_envs = base.num_envs or 512
    forcing = base.epoch_teacher_forcing
    return {
        "learning_rate": [base.learning_rate * factor for factor in (0.15, 0.5, 1.5, 2.5)],
        "batch_size": [base.batch_size // 2, base.batch_size * 2],
        "optimizer.update_ratio": [base.optimizer.update_ratio / 2, base.optimizer.update_ratio * 2],
        "num_envs": [num_envs // 2, num_envs * 2],
        "epoch_teacher_forcing": [0 if forcing == 1 else forcing // 2 if forcing else 1],
    }


STOCK_GRU_AXES: Axes = {
    "learning_rate": [5e-4, 1e-3, 5e-3, 1e-2],
    "num_steps": [15, 60],
    "num_learning_epochs": [1, 4],
    "num_envs": [64, 128],
    "init_std": [0.02],
}


def sides_with_memory() -> dict[str, tuple[Setting, Axes]]:
    """Return centre and axes of the sweep of students with memory."""
    return {
        "ours": (recurrent.PRESET, our_axes(recurrent.PRESET)),
        "rsl_rl": (stock.TUNED_GRU, STOCK_GRU_AXES),
    }


def best_found(*sweeps: tuple[Setting, Sequence[Mapping[str, Any]]]) -> dict[str, Setting]:
    """Return the settings of some sweeps that were first at each level, by level; none where all missed it.

    A setting that is first at several levels is there once, under the highest of them.

    Args:
        sweeps: Centre and rows of each.
    """
    every = [(row["median"], _with(base, row["changes"])) for base, rows in sweeps for row in rows]
    found: dict[str, Setting] = {}
    for level in (f"{level:g}" for level in LEVELS):
        hits = [(median[level]["cpu_seconds"], setting) for median, setting in every if median.get(level) is not None]
        if hits:
            setting = min(hits, key=lambda hit: hit[0])[1]
            found = {earlier: other for earlier, other in found.items() if other != setting} | {level: setting}
    return found


def _with(base: Setting, changes: Mapping[str, Any]) -> Setting:
    return base.changed(**changes) if isinstance(base, StockSettings) else {**base, **changes}


def badness(traces: Sequence[Trace]) -> float:
    """Return the geometric mean, over levels and seeds, of the training seconds; a miss counts double the budget."""
    logs = []
    for trace in traces:
        hits = reached(trace)
        for level in LEVELS:
            hit = hits[f"{level:g}"]
            logs.append(math.log(2.0 * trace.budget if hit is None else hit["cpu_seconds"] or 1e-9))
    return math.exp(statistics.fmean(logs))


Rows = list[dict[str, Any]]


def sweep(
    bench: Bench,
    name: str,
    base: Setting,
    axes: Axes,
    seeds: Sequence[int],
    budget: float,
    known: Sequence[Mapping[str, Any]] = (),
    keep: Callable[[Rows], None] = lambda rows: None,
) -> tuple[Rows, Setting]:
    """Run base, single changes and their combination.

    Args:
        bench: Where.
        name: Whose sweep, for reports.
        base: Its centre.
        axes: Values to try, by axis.
        seeds: Seeds of every setting.
        budget: Training time of a run [s].
        known: Rows of an earlier sweep that was cut off: their settings are not run again.
        keep: Takes the rows so far, after each setting.

    Returns:
        The table, and the best setting.
    """
    rows: Rows = []

    def measure(changes: Mapping[str, Any]) -> float:
        row = next((dict(row) for row in known if row["changes"] == dict(changes)), None)
        if row is None:
            label = f"{name} " + (", ".join(f"{k}={v:g}" for k, v in changes.items()) or "base")
            setting = _with(base, changes)
            traces = [bench.run(label, setting, seed, budget, stop_at_top=True) for seed in seeds]
            row = {"changes": dict(changes), "score": badness(traces), "median": median_reached(traces)}
        rows.append(row)
        keep(rows)
        return row["score"]

    centre = measure({})
    combined: dict[str, Any] = {}
    for axis, values in axes.items():
        scores = {value: measure({axis: value}) for value in values}
        value = min(scores, key=scores.__getitem__)
        if scores[value] < centre:
            combined[axis] = value
    if len(combined) > 1:
        measure(combined)
    best = min(rows, key=lambda row: row["score"])
    return rows, _with(base, best["changes"])


def sweep_both(
    bench: Bench,
    seeds: Sequence[int],
    budgets: Mapping[str, float],
    known: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
    sides: Mapping[str, tuple[Setting, Axes]] | None = None,
) -> dict[str, Any]:
    """Run both sides' sweeps.

    Args:
        bench: Where.
        seeds: Seeds of every setting.
        budgets: Training time of a run [s] of ``ours`` and ``rsl_rl``.
        known: What an earlier call gave to ``keep``. Rows of the same base, seeds and budget are not run again.
        keep: Takes the result so far, after each setting.
        sides: Centre and axes of ``ours`` and ``rsl_rl``. None: those of the student without memory.
    """
    sides = sides or {"ours": ({}, our_axes()), "rsl_rl": (stock.TUNED, STOCK_AXES)}
    out: dict[str, Any] = {"score": badness.__doc__, "seeds": len(seeds)}
    earlier = known or {}
    for name, (base, axes) in sides.items():
        what = json.loads(json.dumps({"base": describe(base), "budget": budgets[name]}))
        side = earlier.get(name, {})
        same = earlier.get("seeds") == len(seeds) and {key: side.get(key) for key in what} == what

        def keep_rows(rows: Rows, name: str = name, what: Mapping[str, Any] = what) -> None:
            out[name] = {**what, "rows": rows}
            keep(out)

        rows, best = sweep(bench, name, base, axes, seeds, budgets[name], side["rows"] if same else (), keep_rows)
        out[name] = {**what, "rows": rows, "best": describe(best)}
    return out
