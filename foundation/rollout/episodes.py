"""Episodes of a rollout: the ledger that adds them up, and their statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.rollout.stepper import Observer
from foundation.teachers.assignment import TEACHER

METRIC = "metric/"
"""Prefix of the task's metrics among the columns of the ledger."""


@dataclass
class EvaluationResult:
    """Whole episodes of a rollout, one entry each; those of an evaluation are ordered by environment."""

    returns: torch.Tensor
    """Sum of rewards. Shape: (num_episodes,)."""
    lengths: torch.Tensor
    """Length [env steps]. Shape: (num_episodes,)."""
    success: torch.Tensor | None
    """Whether each was a success: by the task's metric ``success``, else if it ended by time-out. None: the environment
    reports neither. Shape: (num_episodes,)."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """The task's ``extras["episode_metrics"]``, by name. Shape of each: (num_episodes,)."""
    env_steps: int = 0
    """Transitions simulated, over all environments."""
    teacher: torch.Tensor | None = None
    """With many teachers, the index of the one that labelled each episode's last step. Shape: (num_episodes,)."""

    def part(self, block: slice) -> EvaluationResult:
        """Return the episodes of a slice."""
        metrics = {name: values[block] for name, values in self.metrics.items()}
        teacher = None if self.teacher is None else self.teacher[block]
        success = None if self.success is None else self.success[block]
        return EvaluationResult(self.returns[block], self.lengths[block], success, metrics, self.env_steps, teacher)

    @property
    def mean_return(self) -> float:
        """Mean return."""
        return float(self.returns.double().mean())

    @property
    def return_interval(self) -> float:
        """Half-width of the 95 % confidence interval of the mean return (normal approximation)."""
        if len(self.returns) < 2:
            return math.inf
        return 1.96 * float(self.returns.double().std()) / math.sqrt(len(self.returns))

    def summary(self) -> dict[str, float]:
        """Return plain numbers for logs and reports; ``success_rate`` only where success is known."""
        out = {
            "mean_return": self.mean_return,
            "std_return": float(self.returns.double().std(correction=0)),
            "mean_length": float(self.lengths.double().mean()),
        }
        if self.success is not None:
            out["success_rate"] = float(self.success.double().mean())
        out.update({name: float(values.double().mean()) for name, values in self.metrics.items()})
        return out


@dataclass
class CollectionStats(EvaluationResult):
    """Whole episodes of an epoch's collection, in the order of time."""

    slots: list[int] = field(default_factory=list)
    """Chunks written."""
    log: dict[str, float] = field(default_factory=dict)
    """Means of ``extras["log"]`` at the last step of each chunk."""
    settled: torch.Tensor | None = None
    """False for episodes that ended within the first maximum episode length of a phase (teacher or student acting): so
    early only short episodes have ended, and their mean return is biased. None: all are True. Shape:
    (num_episodes,)."""

    def unbiased(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of the settled episodes. Shape: (num_episodes,) to (num_settled,)."""
        return values if self.settled is None else values[self.settled]


class Running(NamedTuple):
    """The episodes in progress (see the attributes of :class:`EpisodeTracker`). Shape of each: (num_envs,)."""

    returns: torch.Tensor
    lengths: torch.Tensor
    whole: torch.Tensor
    counts: torch.Tensor


class StepRows(NamedTuple):
    """One env step of the ledger. Shape of each: (num_envs,)."""

    returns: torch.Tensor
    lengths: torch.Tensor
    ended: torch.Tensor
    whole: torch.Tensor
    time_outs: torch.Tensor


def add_step(
    running: Running,
    rows: StepRows,
    rewards: torch.Tensor,
    dones: torch.Tensor,
    time_outs: torch.Tensor | None,
    quota: float,
) -> None:
    """Add a step to the episodes in progress and write it, in place.

    Args:
        running: The episodes in progress; those that end begin anew.
        rows: Where to write.
        rewards: Shape: (num_envs,).
        dones: Bool. Shape: (num_envs,).
        time_outs: Shape: (num_envs,). None: unknown.
        quota: Episodes of each environment that count.
    """
    running.returns.add_(rewards)
    running.lengths.add_(1.0)
    rows.returns.copy_(running.returns)
    rows.lengths.copy_(running.lengths)
    rows.ended.copy_(dones)
    if quota == math.inf:
        rows.whole.copy_(running.whole)
    else:
        torch.logical_and(running.whole, running.counts < quota, out=rows.whole)
        running.counts.add_(dones)
    if time_outs is not None:
        rows.time_outs.copy_(time_outs)
    running.returns.masked_fill_(dones, 0.0)
    running.lengths.masked_fill_(dones, 0.0)
    running.whole.logical_or_(dones)


class EpisodeTracker(Observer):
    """The ledger of a rollout's episodes: adds up their returns, and keeps those of finished ones.

    Every env step writes one row of preallocated tensors on the device. :meth:`drain` reads them, so that the host
    waits for the device once per chunk and not at every step.

    Args:
        num_envs: Number of environments.
        chunk_steps: Maximum number of env steps between two calls of :meth:`drain`.
        device: Device of the rewards.
        longest: Maximum episode length [env steps].
        labels: Given the observations of an env step, returns further values that are kept for each episode that ends
            with it, such as its teacher. Each (num_envs,).
    """

    def __init__(
        self,
        num_envs: int,
        chunk_steps: int,
        device: torch.device | str,
        longest: int = 0,
        labels: Callable[[TensorDict], Mapping[str, torch.Tensor]] | None = None,
    ):
        self.longest = longest
        self.labels = labels
        self.age = 0
        """Env steps since the last :meth:`cut` or :meth:`restart`, before which no episode counts."""
        self.returns = torch.zeros(num_envs, device=device)
        """Sum of rewards so far of the episode in progress, for each environment."""
        self.lengths = torch.zeros(num_envs, device=device)
        """Env steps so far of the episode in progress."""
        self.whole = torch.ones(num_envs, dtype=torch.bool, device=device)
        """Whether the episode in progress has been followed from its first step."""
        self.counts = torch.zeros(num_envs, device=device)
        """Episodes that each environment has finished since :meth:`restart`, where there is a quota."""
        self.running = Running(self.returns, self.lengths, self.whole, self.counts)
        self.quota = math.inf
        """Episodes of each environment that statistics count."""
        self.gives_time_outs = False
        """Whether a step has come with ``extras["time_outs"]``: without them, how an episode ended is unknown."""
        # From here on, rows of the steps since the last drain(). What they hold is valid where _ended is set.
        self._shape = (chunk_steps, num_envs)
        self._device = device
        self._returns = torch.zeros(self._shape, device=device)
        self._lengths = torch.zeros(self._shape, device=device)
        self._ended = torch.zeros(self._shape, dtype=torch.bool, device=device)
        self._whole = torch.zeros(self._shape, dtype=torch.bool, device=device)
        self._time_outs = torch.zeros(self._shape, dtype=torch.bool, device=device)
        self._metrics: dict[str, torch.Tensor] = {}
        # Views of each row, made once: to index at every step costs as much as what is written.
        columns = (self._returns, self._lengths, self._ended, self._whole, self._time_outs)
        self._rows = [StepRows(*rows) for rows in zip(*(column.unbind(0) for column in columns), strict=True)]
        self._metric_rows: dict[str, tuple[torch.Tensor, ...]] = {}
        self._labels: Mapping[str, torch.Tensor] = {}
        self._step = 0
        self._drained: list[dict[str, torch.Tensor]] = []
        self._num_ended = 0
        self._env_steps = 0

    def before_step(self, obs: TensorDict, actions: torch.Tensor) -> None:
        """See :class:`Observer`."""
        if self.labels is not None:
            self._labels = self.labels(obs)

    def after_step(self, rewards: torch.Tensor, dones: torch.Tensor, extras: dict[str, Any]) -> None:
        """See :class:`Observer`."""
        time_outs = extras.get("time_outs")
        add_step(self.running, self.step_rows, rewards, dones, time_outs, self.quota)
        self.gives_time_outs |= time_outs is not None
        for values in (extras.get("episode_metrics") or {}, self._labels):
            for name, value in values.items():
                self.metric_row(name, value.dtype).copy_(value)
        self.end_step()

    @property
    def step_rows(self) -> StepRows:
        """Where the next step is written, but for metrics."""
        return self._rows[self._step]

    def metric_row(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Return where the next step's values of a metric are written. Shape: (num_envs,)."""
        if name not in self._metrics:
            self._metrics[name] = torch.zeros(self._shape, dtype=dtype, device=self._device)
            self._metric_rows[name] = self._metrics[name].unbind(0)
        return self._metric_rows[name][self._step]

    def label_steps(self, num_steps: int, labels: Mapping[str, torch.Tensor]) -> None:
        """Write labels that are the same in each of the next steps. Shape of each: (num_envs,)."""
        for name, value in labels.items():
            self.metric_row(name, value.dtype)
            self._metrics[name][self._step : self._step + num_steps] = value

    def end_step(self) -> None:
        """Count a step that has been written."""
        self._step += 1
        self.age += 1

    def begin(self) -> None:
        """Begin an epoch's statistics: forget the episodes that have ended so far."""
        self._drained = []
        self._num_ended = 0
        self._env_steps = 0

    def cut(self) -> None:
        """Exclude the episodes in progress from all statistics: another policy acted in their beginning."""
        self.age = -1  # the next episodes begin after the next step at the earliest
        self.whole.fill_(False)

    def restart(self, quota: float = math.inf) -> None:
        """Take note that every environment was reset: of the episodes from now on, each one's first ``quota`` count."""
        self.quota = quota
        self.age = 0
        self._step = 0
        self.counts.zero_()
        self.returns.zero_()
        self.lengths.zero_()
        self.whole.fill_(True)

    def chunk(self) -> dict[str, torch.Tensor]:
        """Return the steps since the last :meth:`drain`: where episodes ended, and their outcomes.

        Returns:
            ``ended``, ``returns``, ``lengths``, ``whole``, and ``success`` where the environment reports a success
            metric or time-outs. Shape of each: (chunk_steps, num_envs).
        """
        success = self._time_outs if self.gives_time_outs else None
        if "success" in self._metrics:
            success = self._metrics["success"].bool()
        # With a quota all episodes began at a reset, and are whole. The quota limits statistics, not what is stored.
        whole = self._whole if self.quota == math.inf else torch.ones_like(self._whole)
        out = {"ended": self._ended, "returns": self._returns, "lengths": self._lengths, "whole": whole}
        return out if success is None else {**out, "success": success}

    def drain(self) -> int:
        """Collect the episodes that ended since the last call (a host sync).

        Returns:
            The number of episodes that ended since :meth:`begin`. With a quota, only those within it: counting the
            first to end, whichever they are, would favour short ones.
        """
        steps = self._step
        counted = (self._ended[:steps] & self._whole[:steps]).flatten().nonzero().squeeze(1)
        self._num_ended += len(counted) if self.quota < math.inf else int(self._ended[:steps].sum())
        self._env_steps += steps * self._shape[1]
        step_of = counted // self._shape[1]
        columns = {"returns": self._returns, "lengths": self._lengths}
        if self.gives_time_outs:
            columns["time_outs"] = self._time_outs
        columns |= {METRIC + name: values for name, values in self._metrics.items()}
        out = {name: values.flatten()[counted] for name, values in columns.items()}
        out["env"] = counted % self._shape[1]
        if self.quota == math.inf:
            out["settled"] = step_of + (self.age - steps + 1) >= self.longest
        self._drained.append(out)
        self._step = 0
        for values in (self._time_outs, *self._metrics.values()):
            values.zero_()  # a later step may come without them, and must not repeat these
        return self._num_ended

    def stats(
        self, slots: Sequence[int] = (), logs: Sequence[Mapping[str, Any]] = (), *, by_env: bool = False
    ) -> CollectionStats:
        """Return the episodes drained since :meth:`begin`, in the order of time.

        Args:
            slots: Chunks written.
            logs: ``extras["log"]`` dictionaries to average.
            by_env: Order the episodes by environment, and those of one environment by time.
        """
        # Some environments report a metric only once an episode has ended: the chunks before that have zeros.
        like = {name: values for drained in self._drained for name, values in drained.items()}
        merged = {
            name: torch.cat([part.get(name, values.new_zeros(len(part["returns"]))) for part in self._drained])
            for name, values in like.items()
        }
        if by_env:
            order = merged["env"].argsort(stable=True)
            merged = {name: values[order] for name, values in merged.items()}
        metrics = {name.removeprefix(METRIC): merged[name] for name in merged if name.startswith(METRIC)}
        success = metrics.pop("success", merged.get("time_outs"))
        teacher = metrics.pop(TEACHER, None)
        return CollectionStats(
            merged["returns"],
            merged["lengths"],
            None if success is None else success.bool(),
            metrics,
            self._env_steps,
            None if teacher is None else teacher.long(),
            list(slots),
            mean_log(logs),
            merged.get("settled"),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the episodes in progress, at the end of a chunk."""
        running = {"returns": self.returns.clone(), "lengths": self.lengths.clone(), "whole": self.whole.clone()}
        return {**running, "age": self.age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.age = state.get("age", self.longest)  # runs of an earlier version did not save it
        for name in ("returns", "lengths", "whole"):
            getattr(self, name).copy_(state[name])


def mean_log(logs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Average ``extras["log"]`` dictionaries; entries are numbers or tensors, whose mean counts as in RSL-RL."""
    values: dict[str, list[float]] = {}
    for log in logs:
        for name, value in log.items():
            values.setdefault(str(name), []).append(_number(name, value))
    means = {name: math.fsum(numbers) / len(numbers) for name, numbers in values.items()}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def _number(name: str, value: Any) -> float:
    try:
        return float(value.float().mean() if isinstance(value, torch.Tensor) else value)
    except (TypeError, ValueError):
        raise UserError(
            f"step(actions) returned extras['log']['{name}'] of {type(value).__name__}; expected a number or a tensor"
        ) from None
