"""Similarity of a student and its teacher, on the states that either of them visits, and what explains their errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text
from tensordict import TensorDict

from foundation.engines.base import VecEnv
from foundation.evaluation.divergence import js_divergence
from foundation.policies.actors import PolicyActor
from foundation.policies.output import PolicyOutput
from foundation.rollout.evaluate import evaluate
from foundation.rollout.stepper import Observer

SEED = 9_001
"""Seed of the episodes: their starts are none of a run's own."""
INTERVAL = 5
"""Env steps from one compared state to the next; policies with memory see every step all the same."""
NUM_BINS = 5
"""Parts of equal size that the values of a column are cut into."""
NUM_SNAPSHOTS = 5
"""Students of a training that are compared: one at each fifth."""
WORST = 4
"""Episodes of the lowest returns that are kept."""
_MAX_STATES = 200_000
"""States kept for the explanation of the errors; of more, evenly spaced ones."""


@dataclass(frozen=True)
class Column:
    """How much of the squared error one observation explains, and where it is largest."""

    name: str
    share: float
    """Correlation ratio: variance of the error between parts of the column's range, of its whole variance, 0 to 1."""
    low: float
    """Begin of the part with the largest error, in the column's unit."""
    high: float
    rmse: float
    """Error in that part [action units]; the share of differing choices for discrete actions."""


@dataclass(frozen=True)
class Episode:
    """One episode of the student, for a small picture."""

    total: float
    """Its return."""
    steps: tuple[int, ...]
    """Env steps of the compared states."""
    errors: tuple[float, ...]
    """Root of the squared error of the actions at each [action units]."""
    rewards: tuple[float, ...]


@dataclass(frozen=True)
class Similarity:
    """Figures on the states of one policy's episodes."""

    states: str
    """Who acted: ``teacher`` or ``student``."""
    num_states: int
    figures: dict[str, float]
    """``action_rmse``, ``kl`` and ``js_divergence`` [nats], ``agreement``, ``value_rmse``: those that both policies
    have the outputs for."""
    columns: tuple[Column, ...] = ()
    """The observations that explain most, the first one most."""
    episodes: tuple[Episode, ...] = ()
    """The student's episodes of the lowest returns, the lowest first."""


@dataclass(frozen=True)
class Snapshot:
    """A student in the course of its training."""

    epoch: int
    states: dict[str, dict[str, float]]
    """Whose states (``teacher``, ``student``) -> figures on them."""


def fifths(epochs: Sequence[int]) -> list[int]:
    """Choose those of a training's kept epochs that are nearest to each fifth of it.

    Args:
        epochs: Epochs of which a student was kept; the largest one is the training's end.
    """
    if not epochs:
        return []
    last = max(epochs)
    wanted = [last * part / NUM_SNAPSHOTS for part in range(1, NUM_SNAPSHOTS + 1)]
    return sorted({min(epochs, key=lambda epoch: (abs(epoch - place), epoch)) for place in wanted})


class ComparedStates(Observer):
    """Run teacher and student beside the policy that acts, and compare their outputs.

    Args:
        teacher: The teacher, with a memory of its own.
        student: The student, likewise.
        acts: Whose states they are: ``teacher`` or ``student``.
        bound: Actions are clipped to it before they are compared; None: they are not.
        discrete: Whether actions are indices of choices.
    """

    def __init__(self, teacher: PolicyActor, student: PolicyActor, acts: str, bound: float | None, discrete: bool):
        self.teacher = teacher
        self.student = student
        self.acts = acts
        self.bound = bound
        self.discrete = discrete
        self._steps = 0
        self._sums: dict[str, list[torch.Tensor]] = {}
        self._errors: list[torch.Tensor] = []
        self._observed: list[torch.Tensor] = []
        self._rewards: list[torch.Tensor] = []
        self._firsts: list[torch.Tensor] = []
        self._first: torch.Tensor | None = None
        """Whether an environment is in its first episode. Shape: (num_envs,)."""

    @torch.no_grad()
    def before_step(self, obs: TensorDict, actions: torch.Tensor) -> None:
        """See :class:`Observer`."""
        outputs = {"teacher": self.teacher.output(self.teacher.selector(obs))}
        seen = self.student.selector(obs)
        outputs["student"] = self.student.output(seen)
        self._steps += 1
        if (self._steps - 1) % INTERVAL:
            return
        errors = self._compare(outputs["teacher"], outputs["student"])
        self._errors.append(errors.float())
        self._observed.append(seen.detach().float().clone())

    def after_step(self, rewards: torch.Tensor, dones: torch.Tensor, extras: dict[str, Any]) -> None:
        """See :class:`Observer`."""
        self.teacher.reset(dones)
        self.student.reset(dones)
        if self._first is None:
            self._first = torch.ones_like(dones)
        if (self._steps - 1) % INTERVAL == 0:
            self._rewards.append(rewards.float())
            self._firsts.append(self._first.clone())
        self._first &= ~dones

    def _compare(self, teacher: PolicyOutput, student: PolicyOutput) -> torch.Tensor:
        """Add the figures of one step; return the squared error of each state. Shape: (num_envs,)."""
        if self.discrete:
            same = (teacher.mean == student.mean).all(-1)
            self._add("agreement", same)
            errors = (~same).float()
            if teacher.logits is not None and student.logits is not None:
                self._add_discrete(teacher.logits, student.logits)
        else:
            errors = (self._clipped(teacher.mean) - self._clipped(student.mean)).square().mean(-1)
            self._add("action_rmse", errors)
            if _is_gaussian(teacher) and _is_gaussian(student):
                self._add("kl", gaussian_kl(teacher, student))
                self._add("js_divergence", js_divergence(teacher, student))
        if teacher.value is not None and student.value is not None:
            self._add("value_rmse", (teacher.value - student.value).square().mean(-1))
        return errors

    def _add_discrete(self, teacher: torch.Tensor, student: torch.Tensor) -> None:
        p, q = teacher.log_softmax(-1), student.log_softmax(-1)
        middle = torch.logaddexp(p, q) - math.log(2.0)
        self._add("kl", (p.exp() * (p - q)).sum(-1))
        self._add("js_divergence", 0.5 * ((p.exp() * (p - middle)).sum(-1) + (q.exp() * (q - middle)).sum(-1)))

    def _add(self, name: str, values: torch.Tensor) -> None:
        self._sums.setdefault(name, []).append(values.double().mean())

    def _clipped(self, actions: torch.Tensor) -> torch.Tensor:
        return actions if self.bound is None else actions.clamp(-self.bound, self.bound)

    def worst_episodes(self, returns: torch.Tensor) -> tuple[Episode, ...]:
        """Return the first episodes of the environments with the lowest returns.

        Args:
            returns: Return of each environment's first episode. Shape: (num_envs,).
        """
        errors, rewards, firsts = (torch.stack(kept).cpu() for kept in (self._errors, self._rewards, self._firsts))
        found = []
        for env in returns.cpu().argsort()[:WORST].tolist():
            length = int(firsts[:, env].sum())
            steps = tuple(range(0, INTERVAL * length, INTERVAL))
            root = tuple(errors[:length, env].sqrt().tolist())
            found.append(Episode(float(returns[env]), steps, root, tuple(rewards[:length, env].tolist())))
        return tuple(found)

    def result(self, names: Sequence[str], episodes: tuple[Episode, ...] = ()) -> Similarity:
        """Return the figures of all compared states.

        Args:
            names: Names of the student's observations, with their units.
            episodes: Episodes to show.
        """
        figures = {name: float(torch.stack(values).mean()) for name, values in self._sums.items()}
        for name in ("action_rmse", "value_rmse"):
            if name in figures:
                figures[name] = math.sqrt(figures[name])
        errors, observed = torch.cat(self._errors), torch.cat(self._observed)
        stride = max(1, math.ceil(len(errors) / _MAX_STATES))
        columns = explain_errors(observed[::stride], errors[::stride], names)
        return Similarity(self.acts, len(errors), figures, columns, episodes)


def _is_gaussian(output: PolicyOutput) -> bool:
    return output.std is not None and output.pre_tanh is None and output.concentration is None


def gaussian_kl(p: PolicyOutput, q: PolicyOutput) -> torch.Tensor:
    """Return KL(p || q) of two diagonal Gaussians [nats]. Shape: (num_envs,)."""
    assert p.std is not None and q.std is not None
    variance = (p.std / q.std).square()
    distance = ((p.mean - q.mean) / q.std).square()
    return 0.5 * (variance + distance - 1.0 - variance.log()).sum(-1)


def explain_errors(
    observed: torch.Tensor, errors: torch.Tensor, names: Sequence[str], most: int = 6
) -> tuple[Column, ...]:
    """Find the observations by whose value the error varies most.

    Each column's values are cut at their quantiles into ``NUM_BINS`` parts; the correlation ratio is the variance of
    the parts' mean errors over the whole variance of the error.

    Args:
        observed: Shape: (num_states, num_obs).
        errors: Squared error of each state. Shape: (num_states,).
        names: Of the columns; those without one are numbered.
        most: Columns to return.

    Returns:
        The columns that explain most, the first one most; none where the error is the same everywhere, or overflows.
    """
    error = errors.double()
    variance = float(error.var(correction=0))
    if not (math.isfinite(variance) and variance > 0.0):
        return ()
    mean = error.mean()
    found = []
    for index in range(observed.shape[1]):
        values = observed[:, index].double().contiguous()
        edges = torch.quantile(values, torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)[1:-1].to(values.device))
        part = torch.bucketize(values, edges.unique())
        count = torch.bincount(part, minlength=NUM_BINS).double()
        means = torch.bincount(part, error, minlength=NUM_BINS) / count.clamp(min=1.0)
        share = float((count * (means - mean).square()).sum() / len(error)) / variance
        worst = int(torch.where(count > 0, means, -1.0).argmax())
        inside = values[part == worst]
        name = names[index] if index < len(names) else f"observation {index}"
        rmse = math.sqrt(max(0.0, float(means[worst])))
        found.append(Column(name, share, float(inside.min()), float(inside.max()), rmse))
    return tuple(sorted(found, key=lambda column: -column.share)[:most])


def measure_similarity(
    env: VecEnv,
    teacher: PolicyActor,
    student: PolicyActor,
    names: Sequence[str] = (),
    num_episodes: int = 64,
    seed: int = SEED,
    bound: float | None = None,
    discrete: bool = False,
    poll: Callable[[], None] | None = None,
) -> list[Similarity]:
    """Compare a student with its teacher on the states of the teacher's episodes, then on those of its own.

    Args:
        env: The environment.
        teacher: The teacher.
        student: The student.
        names: Names of the student's observations, with their units.
        num_episodes: Episodes of each.
        seed: Seed of the episodes, which no training has.
        bound: Actions are clipped to it before they are compared; None: they are not.
        discrete: Whether actions are indices of choices.
        poll: Called every few env steps; may raise to stop.
    """
    found = []
    for acts, actor in (("teacher", teacher), ("student", student)):
        # Actors of their own, so that what is compared remembers the same steps as what acts, and no step counts twice.
        watching = [PolicyActor(one.policy, one.selector) for one in (teacher, student)]
        states = ComparedStates(watching[0], watching[1], acts, bound, discrete)
        result = evaluate(env, actor, num_episodes, seed, [states], poll, role=acts)
        own = result.returns[:: len(result.returns) // env.num_envs]  # ordered by environment: the first of each
        found.append(states.result(names, states.worst_episodes(own) if acts == "student" else ()))
    return found


def measure_snapshot(
    env: VecEnv,
    teacher: PolicyActor,
    student: PolicyActor,
    epoch: int,
    num_episodes: int = 64,
    seed: int = SEED,
    bound: float | None = None,
    discrete: bool = False,
    poll: Callable[[], None] | None = None,
) -> Snapshot:
    """Measure a student of an earlier epoch as :func:`measure_similarity` does, and keep the figures alone."""
    found = measure_similarity(env, teacher, student, (), num_episodes, seed, bound, discrete, poll)
    return Snapshot(epoch, {one.states: one.figures for one in found})


def snapshot_table(snapshots: Sequence[Snapshot]) -> Table:
    """Lay the figures over the training out, a row for each epoch and set of states."""
    table = Table(title="Over the training", box=box.ROUNDED, title_justify="left")
    table.add_column("epoch", justify="right")
    table.add_column("states of")
    names = list(dict.fromkeys(name for one in snapshots for figures in one.states.values() for name in figures))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for one in snapshots:
        for number, (states, figures) in enumerate(one.states.items()):
            cells = [f"{figures[name]:.4g}" if name in figures else "" for name in names]
            table.add_row("" if number else str(one.epoch), Text(states), *cells)
    return table


def similarity_table(found: Sequence[Similarity]) -> Table:
    """Lay the figures out, a row for each set of states."""
    table = Table(title="Similarity of student and teacher", box=box.ROUNDED, title_justify="left")
    table.add_column("states of")
    names = list(dict.fromkeys(name for one in found for name in one.figures))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    table.add_column("largest errors")
    for one in found:
        cells = [f"{one.figures[name]:.4g}" if name in one.figures else "" for name in names]
        lines = [f"{c.name} {c.low:.3g}..{c.high:.3g}: {c.rmse:.3g} ({100 * c.share:.0f} %)" for c in one.columns[:3]]
        table.add_row(Text(one.states), *cells, Text("\n".join(lines)))
    return table
