"""Robustness: return and success of policies while one quantity at a time leaves its nominal value."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from tensordict import TensorDict

from foundation.core.errors import UserError, suggest
from foundation.engines.base import Quantity, VecEnv
from foundation.engines.perturbed import BOUNDARY, OBSERVATION_BIAS, OBSERVATION_NOISE, SIMULATION, PerturbedEnv
from foundation.policies.actors import Actor
from foundation.rollout.episodes import EvaluationResult
from foundation.rollout.evaluate import evaluate
from foundation.rollout.stepper import Observer

SEED = 7_001
"""Seed of the episodes: none of a run's own."""
NUM_EPISODES = 128


@dataclass(frozen=True)
class Point:
    """One policy's episodes at one value."""

    mean_return: float
    return_interval: float
    """Half-width of the 95 % interval of the mean return."""
    success_rate: float | None = None
    """None where success is unknown."""
    success_interval: tuple[float, float] | None = None
    """Ends of its 95 % interval (Wilson 1927)."""

    @classmethod
    def of(cls, result: EvaluationResult) -> Point:
        """Take the figures of an evaluation."""
        if result.success is None:
            return cls(result.mean_return, result.return_interval)
        number = len(result.success)
        count = int(result.success.sum())
        return cls(result.mean_return, result.return_interval, count / number, wilson_interval(count, number))


@dataclass(frozen=True)
class Curve:
    """What every policy reaches while one quantity varies."""

    name: str
    unit: str
    nominal: float
    values: tuple[float, ...]
    """In rising order, the nominal one among them."""
    points: dict[str, tuple[Point, ...]]
    """Policy -> one point for each value."""

    def summary(self) -> dict[str, Any]:
        """Return worst case and area under the curve of each policy, as plain values.

        The area is the mean over the range of values (trapezoids over the width): it has the unit of what is averaged.
        """
        return {policy: self._summary_of(points) for policy, points in self.points.items()}

    def _summary_of(self, points: Sequence[Point]) -> dict[str, float]:
        returns = [point.mean_return for point in points]
        worst = min(range(len(points)), key=returns.__getitem__)
        out = {
            "nominal_return": returns[self.values.index(self.nominal)],
            "worst_return": returns[worst],
            "worst_at": self.values[worst],
            "area_return": mean_over_range(self.values, returns),
        }
        success = [point.success_rate for point in points]
        known = [rate for rate in success if rate is not None]
        if len(known) == len(points):
            out["nominal_success"] = known[self.values.index(self.nominal)]
            out["worst_success"] = min(known)
            out["area_success"] = mean_over_range(self.values, known)
        return out


@dataclass(frozen=True)
class Robustness:
    """All curves of a measurement."""

    episodes: int
    """Episodes of each policy at each value."""
    seed: int
    curves: tuple[Curve, ...] = field(default_factory=tuple)
    missing: tuple[str, ...] = ()
    """Quantities that the environment cannot vary."""

    def summary(self) -> dict[str, Any]:
        """Return what ``summary.json`` keeps: worst case and area under the curve by quantity and policy."""
        quantities = {
            curve.name: {"unit": curve.unit, "range": [curve.values[0], curve.values[-1]], "policies": curve.summary()}
            for curve in self.curves
        }
        return {"episodes": self.episodes, "quantities": quantities, "missing": list(self.missing)}

    def scalars(self) -> dict[str, float]:
        """Return worst case and area under the curve by tag, ``robustness/<quantity>/<policy>_<figure>``."""
        kept = ("worst_return", "area_return", "worst_success", "area_success")
        return {
            f"robustness/{curve.name}/{policy}_{name}": figures[name]
            for curve in self.curves
            for policy, figures in curve.summary().items()
            for name in kept
            if name in figures
        }

    def lacking(self) -> str:
        """Return one line on what the environment lacks, "" where it lacks nothing."""
        if not self.missing:
            return ""
        return f"Not varied: {', '.join(self.missing)}; this environment has no parameter for it (perturbations)"


def wilson_interval(count: int, number: int, z: float = 1.96) -> tuple[float, float]:
    """Return the ends of the interval of a rate by Wilson's score method (1927), within [0, 1].

    Args:
        count: Successes.
        number: Attempts, at least one.
        z: Standard deviations; 1.96 for 95 %.
    """
    rate = count / number
    width = z * math.sqrt(rate * (1.0 - rate) / number + z * z / (4.0 * number * number))
    middle = rate + z * z / (2.0 * number)
    scale = 1.0 + z * z / number
    return max(0.0, (middle - width) / scale), min(1.0, (middle + width) / scale)


def mean_over_range(places: Sequence[float], heights: Sequence[float]) -> float:
    """Return the area under a polyline over its width; the one height where there is no width."""
    width = places[-1] - places[0]
    if width == 0.0:
        return heights[0]
    steps = zip(places[:-1], places[1:], heights[:-1], heights[1:], strict=True)
    return sum(0.5 * (b - a) * (low + high) for a, b, low, high in steps) / width


class ColumnSpread(Observer):
    """Standard deviation of each column of each observation group over a rollout."""

    def __init__(self) -> None:
        self._sums: dict[str, list[torch.Tensor]] = {}
        self._count = 0

    def before_step(self, obs: TensorDict, actions: torch.Tensor) -> None:
        """See :class:`Observer`."""
        self._count += len(actions)
        for name, group in obs.items():
            if not (isinstance(group, torch.Tensor) and group.is_floating_point()):
                continue
            value = group.double()
            sums = self._sums.setdefault(str(name), [torch.zeros_like(value[0]), torch.zeros_like(value[0])])
            sums[0] += value.sum(0)
            sums[1] += value.square().sum(0)

    def scales(self) -> dict[str, torch.Tensor]:
        """Return the deviations by group. Shape of each: (group_size,)."""
        moments = {name: (total / self._count, square / self._count) for name, (total, square) in self._sums.items()}
        return {name: (square - mean.square()).clamp(min=0.0).sqrt() for name, (mean, square) in moments.items()}


def chosen_quantities(env: PerturbedEnv, typed: Sequence[str]) -> dict[str, Quantity]:
    """Return what is to be measured: all that the environment can vary, or what was typed.

    Args:
        env: Knows what can be varied.
        typed: ``name`` or ``name=v1,v2,...``; nothing: everything.

    Raises:
        UserError: For a name that the environment does not have, or values that are no numbers.
    """
    if not typed:
        return dict(env.quantities)
    chosen: dict[str, Quantity] = {}
    for text in typed:
        name, equals, listed = text.partition("=")
        if name not in env.quantities:
            raise UserError(
                f"--perturbation {name}: this environment cannot vary it. {suggest(name, sorted(env.quantities))}"
            )
        quantity = env.quantities[name]
        chosen[name] = quantity._replace(values=_numbers(text, listed)) if equals else quantity
    for name, quantity in chosen.items():  # refused before the first episode, not after many minutes
        for value in quantity.values:
            env.vary(name, value)
    env.vary(None)
    return chosen


def _numbers(text: str, listed: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in listed.split(","))
    except ValueError:
        raise UserError(f"--perturbation {text}: expected NAME=NUMBER,NUMBER,..., such as mass=-20,20") from None


def measure_robustness(
    env: VecEnv,
    actors: Mapping[str, Actor],
    typed: Sequence[str] = (),
    num_episodes: int = NUM_EPISODES,
    seed: int = SEED,
    poll: Callable[[], None] | None = None,
    show: Callable[[str], None] | None = None,
) -> Robustness:
    """Measure policies at every value of every quantity, all from the same initial states.

    Args:
        env: The environment; nominal again afterwards.
        actors: Policies by name. The first one's nominal episodes give the unit of noise and bias.
        typed: As of :func:`chosen_quantities`.
        num_episodes: Episodes of each policy at each value.
        seed: Seed of the episodes and of the perturbations.
        poll: Called every few env steps; may raise to stop.
        show: Called as each quantity begins, with its name, its place among them, and the time left.
    """
    spread = ColumnSpread()
    perturbed = PerturbedEnv(env)
    quantities = chosen_quantities(perturbed, typed)
    nominal: dict[str, Point] = {}
    try:
        for name, actor in actors.items():
            observers = [] if nominal else [spread]
            nominal[name] = Point.of(
                evaluate(cast(VecEnv, perturbed), actor, num_episodes, seed, observers, poll, role=name)
            )
        perturbed.scales = spread.scales()
        missing = [] if typed else [name for name in SIMULATION if name not in quantities]
        for name in (OBSERVATION_NOISE, OBSERVATION_BIAS):
            if name in quantities and not perturbed.scales:  # integers, as images have
                del quantities[name]
                missing.append(name)
        curves = []
        begun = time.monotonic()
        for done, (name, quantity) in enumerate(quantities.items()):
            if show is not None:
                show(f"{name.replace('_', ' ')}, {_place(done, len(quantities), time.monotonic() - begun)}")
            points = dict(_points(perturbed, actors, nominal, name, quantity, num_episodes, seed, poll))
            values = tuple(sorted({*quantity.values, quantity.nominal}))
            curves.append(Curve(name, quantity.unit, quantity.nominal, values, points))
    finally:
        perturbed.vary(None)
    return Robustness(num_episodes, seed, tuple(curves), tuple(missing))


def _place(done: int, total: int, seconds: float) -> str:
    """Return the place of the next quantity, and the time left by those that are done."""
    place = f"{done + 1} of {total}"
    return f"{place}, about {seconds / done * (total - done):.0f} s left" if done else place


def _points(
    env: PerturbedEnv,
    actors: Mapping[str, Actor],
    nominal: Mapping[str, Point],
    name: str,
    quantity: Quantity,
    num_episodes: int,
    seed: int,
    poll: Callable[[], None] | None,
) -> Iterator[tuple[str, tuple[Point, ...]]]:
    """Yield each policy's points in the order of the values; the nominal one was measured already."""
    for policy, actor in actors.items():
        points = []
        for value in sorted({*quantity.values, quantity.nominal}):
            if value == quantity.nominal:
                points.append(nominal[policy])
                continue
            env.vary(name, value)
            points.append(Point.of(evaluate(cast(VecEnv, env), actor, num_episodes, seed, poll=poll, role=policy)))
        yield policy, tuple(points)


def robustness_table(measured: Robustness) -> Table:
    """Lay out worst case and mean over the range, a row for each quantity and policy."""
    table = Table(title=f"Robustness, {measured.episodes} episodes at each value", box=box.ROUNDED)
    table.title_justify = "left"
    table.add_column("quantity", overflow="fold", min_width=len("observation"))  # names differ in their last words
    table.add_column("policy")
    for heading in ("nominal", "worst", "at", "mean of range", "worst success"):
        table.add_column(heading, justify="right")
    for curve in measured.curves:
        for number, (policy, row) in enumerate(curve.summary().items()):
            success = row.get("worst_success")
            label = "" if number else f"{curve.name.replace('_', ' ')} [{curve.unit}]"
            cells = [
                f"{row['nominal_return']:.1f}",
                f"{row['worst_return']:.1f}",
                f"{row['worst_at']:g}",
                f"{row['area_return']:.1f}",
                "" if success is None else f"{100 * success:.1f} %",
            ]
            table.add_row(Text(label), Text(policy), *cells)
    return table


__all__ = ["BOUNDARY", "Curve", "Point", "Robustness", "measure_robustness", "robustness_table"]
