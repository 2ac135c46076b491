"""Episodes of a rollout: the ledger that adds them up, and their statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    """The task's own hook, else "ended by time-out"; None where neither is known. Shape: (num_episodes,)."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """The task's ``extras["episode_metrics"]``. Each (num_episodes,)."""
    env_steps: int = 0
    """Transitions simulated, over all environments."""
    teacher: torch.Tensor | None = None
    """With many teachers, the one that each episode's environment followed at its end. Shape: (num_episodes,)."""

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
    """Whether it ended when an episode of any length could have: soon after a phase's beginning only short ones can,
    and their mean return is biased. None: all did. Shape: (num_episodes,)."""

    def unbiased(self, values: torch.Tensor) -> torch.Tensor:
        """Leave out the episodes that ended too soon after a phase's beginning. Shape: (num_episodes,)."""
        return values if self.settled is None else values[self.settled]


class EpisodeTracker(Observer):
    """The ledger of a rollout's episodes: add up returns, and keep what ended, without a host sync per env step.

    Args:
        num_envs: Number of environments.
        chunk_steps: Most env steps between two calls of :meth:`drain`.
        device: Device of the rewards.
        longest: Longest episode [env steps].
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
        """Env steps since every environment's episodes can have begun whole."""
        self.returns = torch.zeros(num_envs, device=device)
        self.lengths = torch.zeros(num_envs, device=device)
        self.whole = torch.ones(num_envs, dtype=torch.bool, device=device)
        self.counts = torch.zeros(num_envs, device=device)
        self.quota = math.inf
        self.gives_time_outs = False
        """Whether a step has come with ``extras["time_outs"]``: without them, how an episode ended is unknown."""
        self._shape = (chunk_steps, num_envs)
        self._device = device
        self._returns = torch.zeros(self._shape, device=device)
        self._lengths = torch.zeros(self._shape, device=device)
        self._ended = torch.zeros(self._shape, dtype=torch.bool, device=device)
        self._whole = torch.zeros(self._shape, dtype=torch.bool, device=device)
        self._time_outs = torch.zeros(self._shape, dtype=torch.bool, device=device)
        self._metrics: dict[str, torch.Tensor] = {}
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
        step = self._step
        self._step += 1
        self.age += 1
        self.returns.add_(rewards)
        self.lengths.add_(1.0)
        self._returns[step].copy_(self.returns)
        self._lengths[step].copy_(self.lengths)
        self._ended[step].copy_(dones)
        torch.logical_and(self.whole, self.counts < self.quota, out=self._whole[step])
        time_outs = extras.get("time_outs")
        if time_outs is not None:
            self.gives_time_outs = True
            self._time_outs[step].copy_(time_outs)
        for values in (extras.get("episode_metrics") or {}, self._labels):
            for name, value in values.items():
                if name not in self._metrics:
                    self._metrics[name] = torch.zeros(self._shape, dtype=value.dtype, device=self._device)
                self._metrics[name][step].copy_(value)
        self.counts.add_(dones)
        self.returns.masked_fill_(dones, 0.0)
        self.lengths.masked_fill_(dones, 0.0)
        self.whole.logical_or_(dones)

    def begin(self) -> None:
        """Forget the episodes that have ended: an epoch's statistics begin."""
        self._drained = []
        self._num_ended = 0
        self._env_steps = 0

    def cut(self) -> None:
        """Exclude the episodes in progress from all statistics: their beginning was another policy's."""
        self.age = -1  # nothing whole can begin before the next step's end
        self.whole.fill_(False)

    def restart(self, quota: float = math.inf) -> None:
        """Every environment was reset: all episodes begin now, and each environment's first ``quota`` count."""
        self.quota = quota
        self.age = 0
        self._step = 0
        self.counts.zero_()
        self.returns.zero_()
        self.lengths.zero_()
        self.whole.fill_(True)

    def chunk(self) -> dict[str, torch.Tensor]:
        """Return the steps since :meth:`drain`: where episodes ended, and how. Each (chunk_steps, num_envs).

        ``success`` is left out where the environment gives neither a success metric nor time-outs.
        """
        success = self._time_outs if self.gives_time_outs else None
        if "success" in self._metrics:
            success = self._metrics["success"].bool()
        # In whole rollouts from a reset on, those beyond the quota are whole too.
        whole = self._whole if self.quota == math.inf else torch.ones_like(self._whole)
        out = {"ended": self._ended, "returns": self._returns, "lengths": self._lengths, "whole": whole}
        return out if success is None else {**out, "success": success}

    def drain(self) -> int:
        """Take the episodes that ended since the last call (a host sync) and return how many have since :meth:`begin`.

        With a quota, only the episodes within it are counted: counting whichever end first would favour short ones.
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
            values.zero_()  # a step may come without any
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
        # A name may come late: time-outs only with the first episode that ends. Those before it have zeros there.
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
        """Return what a chunk's end carries over."""
        running = {"returns": self.returns.clone(), "lengths": self.lengths.clone(), "whole": self.whole.clone()}
        return {**running, "age": self.age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.age = state.get("age", self.longest)
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
