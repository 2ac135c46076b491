"""Time to 95 % and 98 % of the teacher's return: this project against RSL-RL's ``DistillationRunner``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import ours, stock
from benchmarks.common import TeacherScore
from benchmarks.snapshots import LEVELS, Trace, evaluate_trace, reached
from benchmarks.stock import StockSettings

RULE = (
    "First snapshot whose mean return over the evaluation's episodes is at least the level's share of the teacher's. "
    "Snapshots are taken after optimiser steps, on one geometric grid of training time for both sides, and evaluated "
    "after training on the same initial states. The clock counts collection and learning only; neither side evaluates, "
    "logs or saves while it runs, and a short run of each side comes before the clock."
)
QUANTITIES = ("cpu_seconds", "wall_seconds", "env_steps", "settled_cpu_seconds")

Setting = Mapping[str, Any] | StockSettings
"""Changes to ``experiment=fast``, or RSL-RL's settings: the type says whose run it is."""


class Bench:
    """One teacher, one evaluation, one device.

    Args:
        teacher: The teacher's checkpoint.
        device: Torch device.
        episodes: Episodes in the evaluation of a snapshot.
        report: Takes a line of progress.
    """

    def __init__(self, teacher: Path, device: str, episodes: int, report: Callable[[str], None] = print):
        self.teacher, self.device, self.report = teacher, device, report
        self.score = TeacherScore(teacher, episodes, device)
        obs = self.score.env.get_observations()
        self._obs, self._num_actions = obs, self.score.env.num_actions

    def run(self, name: str, setting: Setting, seed: int, budget: float, *, stop_at_top: bool = False) -> Trace:
        """Train once, then evaluate the snapshots.

        Args:
            name: Name of the setting, for reports.
            setting: Whose run, and with what.
            seed: Seed of everything.
            budget: Training time [s].
            stop_at_top: Evaluate no further than the first snapshot that reaches the highest level.
        """
        if isinstance(setting, StockSettings):
            trace = stock.train(setting, self.teacher, self.device, seed, budget, name)
        else:
            trace = ours.train(setting, self.teacher, self.device, seed, budget, name)
        evaluate_trace(trace, self.score, lambda weights: self._actor(setting, weights), stop_at_top=stop_at_top)
        at = {level: "-" if hit is None else f"{hit['cpu_seconds']:.2f}" for level, hit in reached(trace).items()}
        best = max((s.ratio for s in trace.snapshots if s.ratio is not None), default=math.nan)
        self.report(f"{name} seed {seed}: CPU s to levels {at}, best {best:.3f}")
        return trace

    def warm_up(self, *settings: Setting) -> None:
        """Let both sides do what a process does only once."""
        for setting in settings or ({}, stock.TUNED):
            (stock.train if isinstance(setting, StockSettings) else ours.train)(
                setting, self.teacher, self.device, 0, 0.2
            )

    def _actor(self, setting: Setting, weights: dict) -> Any:
        if isinstance(setting, StockSettings):
            return stock.actor(weights, self._obs, self._num_actions, self.device, setting)
        return ours.actor(weights, self._obs["deployable"].shape[-1], self._num_actions, self.device, setting)


def describe(setting: Setting) -> dict[str, Any]:
    """Return a setting's values."""
    return asdict(setting) if isinstance(setting, StockSettings) else dict(setting)


def median_reached(traces: Sequence[Trace]) -> dict[str, dict[str, float | None] | None]:
    """Return the medians over seeds of when each level was reached; None where half of the runs or more missed it."""
    hits = [reached(trace) for trace in traces]
    out: dict[str, dict[str, float | None] | None] = {}
    for level in (f"{level:g}" for level in LEVELS):
        found = [_median([(hit[level] or {}).get(quantity) for hit in hits]) for quantity in QUANTITIES]
        out[level] = None if found[0] is None else dict(zip(QUANTITIES, found, strict=True))
    return out


def _median(values: Sequence[float | None]) -> float | None:
    """Return the median, a missing value counting as later than all others."""
    median = statistics.median(math.inf if value is None else value for value in values)
    return None if math.isinf(median) else median


def race(
    bench: Bench,
    settings: Mapping[str, Setting],
    seeds: Sequence[int],
    budgets: Mapping[str, float],
    keep: Callable[[dict[str, list[Trace]]], None] = lambda traces: None,
) -> dict[str, list[Trace]]:
    """Run every setting with every seed, one after the other, so that the machine's moods hit all alike.

    Args:
        bench: Where.
        settings: By name; the first is ours.
        seeds: Seeds.
        budgets: Training time of each setting [s].
        keep: Takes what was measured so far, after each seed.

    Returns:
        Traces by setting.
    """
    traces: dict[str, list[Trace]] = {name: [] for name in settings}
    for seed in seeds:
        for name, setting in settings.items():
            traces[name].append(bench.run(name, setting, seed, budgets[name]))
        keep(traces)
    return traces


def summarise(bench: Bench, settings: Mapping[str, Setting], traces: Mapping[str, Sequence[Trace]]) -> dict[str, Any]:
    """Return what goes into the JSON."""
    runs = {
        name: {
            "settings": describe(settings[name]),
            "median": median_reached(traces[name]),
            "startup_cpu_seconds": statistics.median(t.startup["cpu"] for t in traces[name]),
            "seeds": [
                {
                    "seed": trace.seed,
                    "reached": reached(trace),
                    "startup": trace.startup,
                    "curve": [[round(s.cpu, 4), round(s.wall, 4), s.env_steps, s.ratio] for s in trace.snapshots],
                }
                for trace in traces[name]
            ],
        }
        for name in settings
    }
    return {
        "rule": RULE,
        "teacher": bench.score.result,
        "evaluation_episodes": bench.score.env.num_envs,
        "curve_columns": ["cpu_seconds", "wall_seconds", "env_steps", "return_ratio"],
        "runs": runs,
        "ratios": ratios(runs),
    }


def ratios(runs: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return how many times more each other setting took than ours (the first), by setting, level and quantity."""
    first, *others = runs
    out: dict[str, dict[str, dict[str, float | None]]] = {}
    for name in others:
        out[name] = {}
        for level, own in runs[first]["median"].items():
            other = runs[name]["median"][level]
            out[name][level] = {
                quantity: other[quantity] / own[quantity]
                if own and other and own[quantity] and other[quantity]
                else None
                for quantity in QUANTITIES
            }
    return out
