"""Time to 95 % and 98 % of the teacher's return: this project against RSL-RL's ``DistillationRunner``."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import ours, stock
from benchmarks.common import TeacherScore
from benchmarks.snapshots import LEVELS, Trace, evaluate_trace, reached
from benchmarks.stock import StockSettings

RULE = (
    "First at: the first snapshot whose mean return over the evaluation's episodes is at least the level's share of "
    "the teacher's. Settled: the first one after which none is below. Snapshots are taken after optimiser steps, on "
    "one grid of training time for both sides (8 % apart, and never more than half a second), and evaluated after "
    "training on the same initial states. The clock counts collection and learning only; neither side evaluates, logs "
    "or saves while it runs, and a short run of each side comes before the clock."
)
QUANTITIES = ("cpu_seconds", "wall_seconds", "env_steps", "settled_cpu_seconds", "settled_env_steps")

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


def spread_reached(traces: Sequence[Trace]) -> dict[str, dict[str, list[float] | None]]:
    """Return the lowest and the highest value over seeds of each level and quantity; None where a run missed it."""
    hits = [reached(trace) for trace in traces]
    out: dict[str, dict[str, list[float] | None]] = {}
    for level in (f"{level:g}" for level in LEVELS):
        out[level] = {}
        for quantity in QUANTITIES:
            values = [value for hit in hits if (value := (hit[level] or {}).get(quantity)) is not None]
            out[level][quantity] = [min(values), max(values)] if len(values) == len(hits) else None
    return out


@dataclass(frozen=True)
class Rival:
    """Whoever takes part in a race."""

    setting: Setting
    budget: float
    """Training time [s]."""
    label: str
    """What the picture and the tables call it."""

    def describe(self) -> dict[str, Any]:
        """Return its settings, as the JSON has them; of ours a fingerprint of what the preset makes of them too."""
        values = describe(self.setting)
        if not isinstance(self.setting, StockSettings):
            values["configuration"] = ours.fingerprint(self.setting)
        return json.loads(json.dumps(values))


def race(
    bench: Bench,
    rivals: Mapping[str, Rival],
    seeds: Sequence[int],
    known: Mapping[str, Any] | None = None,
    keep: Callable[[dict[str, list[Trace]]], None] = lambda traces: None,
) -> dict[str, list[Trace]]:
    """Run every rival with every seed, one after the other, so that the machine's moods hit all alike.

    Args:
        bench: Where.
        rivals: By name; the first is ours.
        seeds: Seeds.
        known: What :func:`summarise` made of a race that was cut off. Its runs are not run again.
        keep: Takes what was measured so far, after each run.

    Returns:
        Traces by rival.
    """
    earlier = known_traces(bench, rivals, known or {})
    traces: dict[str, list[Trace]] = {name: [] for name in rivals}
    for seed in seeds:
        for name, rival in rivals.items():
            trace = earlier.get((name, seed))
            traces[name].append(trace or bench.run(name, rival.setting, seed, rival.budget))
            if trace is None:
                keep(traces)
    return traces


def known_traces(bench: Bench, rivals: Mapping[str, Rival], known: Mapping[str, Any]) -> dict[tuple[str, int], Trace]:
    """Return the runs of an earlier race that had the same settings, budget, rule and evaluation."""
    if known.get("rule") != RULE or known.get("evaluation_episodes") != bench.score.env.num_envs:
        return {}
    out: dict[tuple[str, int], Trace] = {}
    for name, run in known["runs"].items():
        rival = rivals.get(name)
        if rival is None or (run["settings"], run["budget"]) != (rival.describe(), rival.budget):
            continue
        for kept in run["seeds"]:
            out[name, kept["seed"]] = Trace.of_curve(name, rival.budget, kept)
    return out


def summarise(bench: Bench, rivals: Mapping[str, Rival], traces: Mapping[str, Sequence[Trace]]) -> dict[str, Any]:
    """Return what goes into the JSON of the rivals that have run."""
    runs = {
        name: {
            "label": rival.label,
            "settings": rival.describe(),
            "budget": rival.budget,
            "median": median_reached(traces[name]),
            "range": spread_reached(traces[name]),
            "startup_cpu_seconds": statistics.median(t.startup["cpu"] for t in traces[name]),
            "seeds": [
                {"seed": trace.seed, "reached": reached(trace), "startup": trace.startup, "curve": trace.curve}
                for trace in traces[name]
            ],
        }
        for name, rival in rivals.items()
        if traces[name]
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
