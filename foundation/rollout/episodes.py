"""Episodes of an epoch: adding up, and which of them count."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from foundation.teachers.assignment import TEACHER


@dataclass
class CollectionStats:
    """What an epoch's collection saw. Statistics come from whole episodes alone."""

    returns: torch.Tensor
    """Return of each finished episode. Shape: (num_episodes,)."""
    lengths: torch.Tensor
    """Length of each finished episode [env steps]. Shape: (num_episodes,)."""
    time_outs: torch.Tensor | None
    """Whether it ended by time-out; None where the environment does not say. Shape: (num_episodes,)."""
    env_steps: int
    """Transitions collected, over all environments."""
    slots: list[int] = field(default_factory=list)
    """Chunks written."""
    log: dict[str, float] = field(default_factory=dict)
    """Means of ``extras["log"]`` at the last step of each chunk."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """``extras["episode_metrics"]`` of the finished episodes, each (num_episodes,)."""
    teacher: torch.Tensor | None = None
    """With many teachers, the one that each episode's environment followed at its end. Shape: (num_episodes,)."""
    settled: torch.Tensor | None = None
    """Whether it ended when an episode of any length could have: soon after a phase's beginning only short ones can,
    and their mean return is biased. None: all did. Shape: (num_episodes,)."""

    def unbiased(self, values: torch.Tensor) -> torch.Tensor:
        """Leave out the episodes that ended too soon after a phase's beginning. Shape: (num_episodes,)."""
        return values if self.settled is None else values[self.settled]


class EpisodeTracker:
    """Adds up returns per environment and records the episodes that end, without a host sync per step.

    Args:
        num_envs: Environments.
        chunk_steps: Most env steps between two calls of :meth:`drain`.
        device: Where rewards are.
        longest: Longest episode [env steps].
    """

    def __init__(self, num_envs: int, chunk_steps: int, device: torch.device | str, longest: int = 0):
        self.longest, self.age = longest, 0
        self.returns = torch.zeros(num_envs, device=device)
        self.lengths = torch.zeros(num_envs, device=device)
        self.whole = torch.ones(num_envs, dtype=torch.bool, device=device)
        self.counts = torch.zeros(num_envs, device=device)
        self.quota = math.inf
        self.gives_time_outs = False
        """Whether a step has come with ``extras["time_outs"]``: without them, how an episode ended is unknown."""
        shape = (chunk_steps, num_envs)
        self._returns = torch.zeros(shape, device=device)
        self._lengths = torch.zeros(shape, device=device)
        self._ended = torch.zeros(shape, dtype=torch.bool, device=device)
        self._whole = torch.zeros(shape, dtype=torch.bool, device=device)
        self._time_outs = torch.zeros(shape, dtype=torch.bool, device=device)
        self._ages: list[int] = []
        self._metrics: list[dict[str, torch.Tensor]] = []

    def add(self, step: int, rewards: torch.Tensor, dones: torch.Tensor, extras: dict[str, Any]) -> None:
        """Count one env step. Shapes: (num_envs,)."""
        self.age += 1
        self._ages.append(self.age)
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
        metrics = extras.get("episode_metrics") or {}
        self._metrics.append({name: value.clone() for name, value in metrics.items()})
        self.counts.add_(dones)
        self.returns.masked_fill_(dones, 0.0)
        self.lengths.masked_fill_(dones, 0.0)
        self.whole.logical_or_(dones)

    def cut(self) -> None:
        """A phase begins. Episodes in progress are not whole: they never enter a statistic."""
        self.age = -1  # nothing whole can begin before the next step's end
        self.whole.fill_(False)

    def restart(self, quota: float = math.inf) -> None:
        """Every environment was reset: all episodes begin now, and each environment's first ``quota`` count."""
        self.quota, self.age = quota, 0
        self.counts.zero_()
        self.returns.zero_()
        self.lengths.zero_()
        self.whole.fill_(True)

    def chunk(self) -> dict[str, torch.Tensor]:
        """Return the steps since :meth:`drain`: where episodes ended, and how. Each (chunk_steps, num_envs).

        ``success`` is left out where the environment gives neither a success metric nor time-outs.
        """
        success = self._time_outs if self.gives_time_outs else None
        if self._metrics and "success" in self._metrics[0]:
            success = torch.stack([metrics["success"] for metrics in self._metrics]).bool()
        # In whole rollouts from a reset on, those beyond the quota are whole too.
        whole = self._whole if self.quota == math.inf else torch.ones_like(self._whole)
        out = {"ended": self._ended, "returns": self._returns, "lengths": self._lengths, "whole": whole}
        return out if success is None else {**out, "success": success}

    def drain(self) -> tuple[int, dict[str, torch.Tensor]]:
        """Return how many episodes ended since the last call, and the whole ones among them; waits for the device.

        With a quota, only the episodes within it are counted: counting whichever end first would favour short ones.
        """
        mask = self._ended & self._whole
        ended = int((mask if self.quota < math.inf else self._ended).sum())
        out = {"returns": self._returns[mask], "lengths": self._lengths[mask]}
        if self.gives_time_outs:
            out["time_outs"] = self._time_outs[mask]
        if self.quota == math.inf:
            settled = torch.tensor([age >= self.longest for age in self._ages], device=mask.device)
            out["settled"] = settled.unsqueeze(1).expand_as(mask[: len(settled)])[mask[: len(settled)]]
        if self._metrics and self._metrics[0]:
            for name in self._metrics[0]:
                out["metric/" + name] = torch.stack([m[name] for m in self._metrics])[mask]
        self._metrics, self._ages = [], []
        self._ended.zero_()
        self._time_outs.zero_()  # a step may come without any
        return ended, out

    def state_dict(self) -> dict[str, Any]:
        """Return what a chunk's end carries over."""
        running = {"returns": self.returns.clone(), "lengths": self.lengths.clone(), "whole": self.whole.clone()}
        return {**running, "age": self.age}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.age = state.get("age", self.longest)
        for name in ("returns", "lengths", "whole"):
            getattr(self, name).copy_(state[name])


def merge_stats(
    drained: list[dict[str, torch.Tensor]], env_steps: int, slots: list[int], logs: list[dict]
) -> CollectionStats:
    """Put the chunks of an epoch together; ``drained`` is what :meth:`EpisodeTracker.drain` returned for each."""
    # The last chunk has every name: time-outs may come only with the first episode that ends.
    merged = {name: torch.cat([d[name] for d in drained if name in d]) for name in drained[-1]}
    if "time_outs" in merged and len(merged["time_outs"]) < len(merged["returns"]):
        early = torch.zeros(len(merged["returns"]) - len(merged["time_outs"]), dtype=torch.bool)
        merged["time_outs"] = torch.cat([early.to(merged["time_outs"].device), merged["time_outs"]])
    metrics = {name.removeprefix("metric/"): merged[name] for name in merged if name.startswith("metric/")}
    return CollectionStats(
        merged["returns"],
        merged["lengths"],
        merged.get("time_outs"),
        env_steps,
        slots,
        mean_log(logs),
        metrics,
        metrics.pop(TEACHER, None),
        merged.get("settled"),
    )


def mean_log(logs: list[dict]) -> dict[str, float]:
    """Average ``extras["log"]`` dictionaries; entries are numbers or one-element tensors."""
    values: dict[str, list[float]] = {}
    for log in logs:
        for name, value in log.items():
            values.setdefault(str(name), []).append(float(value))
    means = {name: math.fsum(numbers) / len(numbers) for name, numbers in values.items()}
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}
