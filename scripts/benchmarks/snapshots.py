"""Weights on a grid of training time, taken while training runs and evaluated afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.common import Clock, TeacherScore

LEVELS = (0.95, 0.98)
FIRST, GROWTH, LONGEST_GAP = 0.05, 1.08, 0.5
"""The grid: seconds of its first point, the ratio of a point to the one before, and the most seconds between two."""

Weights = dict[str, torch.Tensor]


class BudgetSpentError(Exception):
    """Ends a run: its time is over."""


@dataclass
class Snapshot:
    """A student as it was."""

    cpu: float
    wall: float
    env_steps: int
    weights: Weights
    ratio: float | None = None
    """Its return over the teacher's, once evaluated."""


@dataclass
class Trace:
    """One training run."""

    setting: str
    seed: int
    budget: float
    snapshots: list[Snapshot] = field(default_factory=list)
    startup: dict[str, float] = field(default_factory=dict)

    @property
    def curve(self) -> list[list[float | None]]:
        """Return what the JSON keeps of each snapshot: CPU and wall seconds, env steps, return ratio."""
        return [[round(s.cpu, 4), round(s.wall, 4), s.env_steps, s.ratio] for s in self.snapshots]

    @classmethod
    def of_curve(cls, setting: str, budget: float, kept: Mapping[str, Any]) -> Trace:
        """Return a run as the JSON keeps it: without its weights."""
        snapshots = [Snapshot(cpu, wall, steps, {}, ratio) for cpu, wall, steps, ratio in kept["curve"]]
        return cls(setting, kept["seed"], budget, snapshots, dict(kept["startup"]))


class SnapshotRecorder:
    """Takes weights when the grid's next point has passed. Call it after every optimiser step, on either side.

    Args:
        trace: Where snapshots go.
        clock: Counts training time; it stands while a snapshot is taken.
        weights: Returns the live weights.
        env_steps: Returns the transitions so far.
    """

    def __init__(self, trace: Trace, clock: Clock, weights: Callable[[], Weights], env_steps: Callable[[], int]):
        self.trace, self.clock, self.weights, self.env_steps = trace, clock, weights, env_steps
        self.next = FIRST

    def __call__(self, *_: Any) -> None:
        """Take a snapshot if one is due.

        Raises:
            BudgetSpentError: If the run's time is over.
        """
        if self.clock.seconds < self.next:
            return
        self.clock.pause()
        self.take()
        while self.next <= self.clock.seconds:
            self.next = min(self.next * GROWTH, self.next + LONGEST_GAP)
        if self.clock.seconds > self.trace.budget:
            raise BudgetSpentError
        self.clock.start()

    def take(self) -> None:
        """Take a snapshot now; the clock is standing."""
        cpu, wall = self.clock.read()
        weights = {name: tensor.detach().clone() for name, tensor in self.weights().items()}
        self.trace.snapshots.append(Snapshot(cpu, wall, self.env_steps(), weights))


def evaluate_trace(
    trace: Trace, score: TeacherScore, make_actor: Callable[[Weights], Any], *, stop_at_top: bool = False
) -> None:
    """Fill in the ratios.

    Args:
        trace: The run.
        score: The evaluation.
        make_actor: Builds a deterministic actor of some weights.
        stop_at_top: Stop at the first snapshot that reaches the highest level.
    """
    for snapshot in trace.snapshots:
        snapshot.ratio = score.ratio(make_actor(snapshot.weights))
        if stop_at_top and snapshot.ratio >= LEVELS[-1]:
            return


def reached(trace: Trace) -> dict[str, dict[str, float | None] | None]:
    """Return when each level was first reached, ``None`` where it was not.

    ``settled_cpu_seconds`` and ``settled_env_steps`` are those of the first snapshot from which on no later one fell
    below the level (None if the last one is below).
    """
    out: dict[str, dict[str, float | None] | None] = {}
    known = [s for s in trace.snapshots if s.ratio is not None]
    for level in LEVELS:
        above = [s.ratio is not None and s.ratio >= level for s in known]
        if not any(above):
            out[f"{level:g}"] = None
            continue
        first = known[above.index(True)]
        below = [i for i, ok in enumerate(above) if not ok]
        settled = (below[-1] + 1) if below else 0
        out[f"{level:g}"] = {
            "cpu_seconds": first.cpu,
            "wall_seconds": first.wall,
            "env_steps": first.env_steps,
            "settled_cpu_seconds": known[settled].cpu if settled < len(known) else None,
            "settled_env_steps": known[settled].env_steps if settled < len(known) else None,
        }
    return out
