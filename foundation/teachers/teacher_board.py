"""Returns of each of many teachers, and of the student with each of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from foundation.core.errors import UserError

FEW = 100
"""Teachers up to which each has its own scalars after every epoch; beyond, after every tenth."""

NEWEST = 0.3
"""Weight of an epoch's returns in their running mean, by which teachers are chosen."""


class TeacherBoard:
    """Mean returns by teacher: the teachers' own, and the student's in collection and in evaluation.

    Args:
        names: The teachers.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        unknown = torch.full((len(self.names),), math.nan, dtype=torch.float64)
        self.returns = {"teacher": unknown.clone(), "collected": unknown.clone(), "student": unknown.clone()}
        """Mean return by teacher; NaN where no episode has ended. Each (num_teachers,)."""
        self.running = unknown.clone()
        """``collected``, averaged over epochs: few episodes of each teacher end in one. Shape: (num_teachers,)."""
        self.active = torch.ones(len(self.names), dtype=torch.bool)
        """Teachers whose transitions of the last epoch are learned from. Shape: (num_teachers,)."""

    def record(self, what: str, returns: torch.Tensor, teacher: torch.Tensor) -> None:
        """Take the episodes of an epoch or an evaluation; a teacher without any keeps what it had.

        Args:
            what: ``teacher``, ``collected`` or ``student``.
            returns: Shape: (num_episodes,).
            teacher: Each episode's teacher. Shape: (num_episodes,).
        """
        means = by_teacher(returns, teacher, len(self.names))
        self.returns[what] = torch.where(means.isnan(), self.returns[what], means)
        if what == "collected":
            mixed = torch.where(self.running.isnan(), means, self.running.lerp(means, NEWEST))
            self.running = torch.where(means.isnan(), self.running, mixed)

    def choose(self, number: int | None, selection: str, seed: int) -> torch.Tensor:
        """Choose the teachers whose data is learned from, by the student's returns in collection.

        A return counts by how far it is from the teacher's own, where that is known: some vehicles allow less than
        others. Teachers with which no return of the student's is known yet come first in any order but ``random``.

        Args:
            number: How many; None: all.
            selection: all | best | worst | random.
            seed: Of ``random``.

        Returns:
            Shape: (num_teachers,), bool.
        """
        self.active = torch.ones_like(self.active)
        if number is None or selection == "all" or number >= len(self.names):
            return self.active
        if selection == "random":
            order = torch.randperm(len(self.names), generator=torch.Generator().manual_seed(seed))
        else:
            gap = self.running - self.returns["teacher"].nan_to_num(0.0)
            order = torch.argsort((gap if selection == "worst" else -gap).nan_to_num(-math.inf), stable=True)
        self.active = torch.zeros_like(self.active)
        self.active[order[:number]] = True
        return self.active

    def check(self, floor: float | None) -> None:
        """Refuse a set with teachers below a floor.

        Raises:
            UserError: Naming the worst of them.
        """
        below = self.below(floor)
        if below:
            raise UserError(
                f"{len(below)} of {len(self.names)} teachers are below --teacher_min_return {floor:g}: "
                f"{self._shown(below)}. --teacher_below_min drop leaves them out."
            )

    def below(self, floor: float | None) -> list[int]:
        """Return the teachers whose own mean return is below a floor, the worst first."""
        if floor is None:
            return []
        returns = self.returns["teacher"]
        return sorted((i for i, r in enumerate(returns.tolist()) if r < floor), key=lambda i: float(returns[i]))

    def _shown(self, indices: list[int], most: int = 5) -> str:
        shown = ", ".join(f"{self.names[i]} ({float(self.returns['teacher'][i]):.1f})" for i in indices[:most])
        return shown + (", ..." if len(indices) > most else "")

    # -- figures ------------------------------------------------------------------------------------------------

    def spread(self, what: str) -> dict[str, float]:
        """Return worst, median and best over the teachers; empty where nothing is known."""
        known = self.returns[what][~self.returns[what].isnan()]
        if len(known) == 0:
            return {}
        return {"worst": float(known.min()), "median": float(known.quantile(0.5)), "best": float(known.max())}

    def scalars(self, epoch: int, evaluated: bool) -> dict[str, float]:
        """Return what is logged after an epoch, counted from 0."""
        kinds = {"collected": "data_collection"} | ({"student": "evaluation"} if evaluated else {})
        out: dict[str, float] = {"data_collection/active_teachers": float(self.active.sum())}
        for what, tag in kinds.items():
            out |= {f"{tag}/{name}_teacher_return": value for name, value in self.spread(what).items()}
            if len(self.names) <= FEW or epoch % 10 == 9:
                pairs = zip(self.names, self.returns[what].tolist(), strict=True)
                out |= {f"{tag}_by_teacher/{name}": value for name, value in pairs if not math.isnan(value)}
        return out

    def baseline_scalars(self) -> dict[str, float]:
        """Return the teachers' own returns, logged once."""
        out = {f"baseline/{name}_teacher_return": value for name, value in self.spread("teacher").items()}
        pairs = zip(self.names, self.returns["teacher"].tolist(), strict=True)
        return out | {f"baseline_by_teacher/{name}": value for name, value in pairs if not math.isnan(value)}

    def line(self, what: str) -> str:
        """Return worst, median and best with the names of the extremes, for the console."""
        returns = self.returns[what]
        spread = self.spread(what)
        if not spread:
            return "no episode has ended"
        low, high = (self.names[int(r)] for r in (returns.nan_to_num(math.inf).argmin(), _highest(returns)))
        return f"worst {spread['worst']:.2f} ({low}), median {spread['median']:.2f}, best {spread['best']:.2f} ({high})"

    def summary(self) -> dict[str, Any]:
        """Return plain values for ``summary.json``."""
        teacher = self.returns["teacher"]
        student = self.returns["student"]
        each = {
            name: {"teacher_return": _plain(teacher[i]), "student_return": _plain(student[i])}
            for i, name in enumerate(self.names)
        }
        known = ~(teacher.isnan() | student.isnan())
        ratio = (student / teacher)[known & (teacher > 0.0)]
        return {
            "number": len(self.names),
            "teacher": self.spread("teacher"),
            "student": self.spread("student"),
            "worst_ratio": _plain(ratio.min()) if len(ratio) else None,
            "each": each,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return everything, as plain tensors."""
        returns = {name: value.clone() for name, value in self.returns.items()}
        return {"returns": returns, "running": self.running.clone(), "active": self.active.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if len(state["active"]) != len(self.names):
            raise UserError(
                f"The run had {len(state['active'])} teachers, now {len(self.names)}: resume with the same."
            )
        self.returns = {name: value.clone() for name, value in state["returns"].items()}
        self.running = state.get("running", self.returns["collected"]).clone()
        self.active = state["active"].clone()


def by_teacher(values: torch.Tensor, teacher: torch.Tensor, num_teachers: int) -> torch.Tensor:
    """Average episodes by teacher; NaN for a teacher without any. Shape: (num_episodes,) to (num_teachers,)."""
    values = values.double().cpu()
    teacher = teacher.long().cpu()
    sums = torch.zeros(num_teachers, dtype=torch.float64).index_add_(0, teacher, values)
    return sums / torch.bincount(teacher, minlength=num_teachers)


def _highest(returns: torch.Tensor) -> torch.Tensor:
    return returns.nan_to_num(-math.inf).argmax()


def _plain(value: torch.Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)
