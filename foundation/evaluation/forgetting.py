"""Forgetting and transfer over tasks that are learned one after another, from returns measured after each stage.

Stage ``i`` trains on task ``i``; after it every task is measured. Scores are normalised: 0 is what random actions
reach, 1 is what a policy reaches that was trained for the task alone. Then ``R[i][j]`` is the score on task ``j`` after
stage ``i``, the matrix of Lopez-Paz and Ranzato (2017, Gradient Episodic Memory).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from foundation.core.errors import UserError


def normalized_score(value: float, random: float, reference: float) -> float:
    """Return where a return lies between random actions (0) and a policy of the task's own (1).

    Args:
        value: The mean return.
        random: Mean return of random actions.
        reference: Mean return of the policy that was trained for the task alone.

    Returns:
        NaN where the reference is no better than random actions: nothing can be said in its units.
    """
    if not reference > random:
        return math.nan
    return (value - random) / (reference - random)


@dataclass(frozen=True)
class TaskReturns:
    """One task's mean returns: the units of its scores, and what was measured."""

    name: str
    random: float
    """Of random actions."""
    reference: float
    """Of a policy trained for this task alone."""
    before: float
    """Of the policy before the first stage; that of random actions where it was untrained."""
    after: tuple[float, ...]
    """After each stage."""

    def scores(self) -> list[float]:
        """Normalise what was measured after each stage."""
        return [normalized_score(value, self.random, self.reference) for value in self.after]


@dataclass(frozen=True)
class Forgetting:
    """The measures of a sequence of stages. Lists have one entry for each task, in the order of the stages."""

    names: list[str]
    """The tasks."""
    matrix: list[list[float]]
    """Normalised score: ``matrix[i][j]`` on task ``j`` after stage ``i``."""
    forgetting: list[float]
    """Best score of any earlier stage from the task's own on, less the score at the end (Chaudhry et al. 2018, eq. 3);
    the last task has none: NaN."""
    retention: list[float]
    """Score at the end, of the score after the task's own stage; NaN where that was not positive."""
    mean_score: float
    """Mean score of all tasks at the end."""
    backward_transfer: float
    """Mean change of the earlier tasks' scores from their own stage to the end (Lopez-Paz and Ranzato 2017); negative:
    forgotten. NaN for one task."""
    forward_transfer: float
    """Mean gain on a task from the stages before its own, over the policy that none has trained. NaN for one task."""

    def tags(self) -> dict[str, float]:
        """Return the finite measures by TensorBoard tag."""
        values = {
            "forgetting/mean_score": self.mean_score,
            "forgetting/backward_transfer": self.backward_transfer,
            "forgetting/forward_transfer": self.forward_transfer,
        }
        for name, lost, kept, score in zip(self.names, self.forgetting, self.retention, self.matrix[-1], strict=True):
            values |= {
                f"forgetting/score/{name}": score,
                f"forgetting/forgotten/{name}": lost,
                f"forgetting/retention/{name}": kept,
            }
        return {tag: value for tag, value in values.items() if math.isfinite(value)}


def measure_forgetting(tasks: Sequence[TaskReturns]) -> Forgetting:
    """Compute the measures after as many stages as were measured.

    Args:
        tasks: The tasks whose stages are done, in the order of the stages: as many tasks as measurements of each.

    Raises:
        UserError: If there are not as many measurements of each task as there are tasks.
    """
    stages = len(tasks)
    for task in tasks:
        if len(task.after) != stages:
            raise UserError(
                f"task '{task.name}' was measured after {len(task.after)} stages, and there are {stages} tasks: "
                "measure every task after every stage"
            )
    if not stages:
        raise UserError("no task was measured")
    columns = [task.scores() for task in tasks]
    matrix = [[column[stage] for column in columns] for stage in range(stages)]
    earlier = range(stages - 1)
    lost = [max(columns[j][j : stages - 1]) - columns[j][-1] for j in earlier]
    changes = [columns[j][-1] - columns[j][j] for j in earlier]
    gains = [
        columns[j][j - 1] - normalized_score(tasks[j].before, tasks[j].random, tasks[j].reference)
        for j in range(1, stages)
    ]
    return Forgetting(
        names=[task.name for task in tasks],
        matrix=matrix,
        forgetting=[*lost, math.nan],
        retention=[_share(columns[j][-1], columns[j][j]) for j in range(stages)],
        mean_score=fmean(matrix[-1]),
        backward_transfer=fmean(changes) if changes else math.nan,
        forward_transfer=fmean(gains) if gains else math.nan,
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0.0 else math.nan
