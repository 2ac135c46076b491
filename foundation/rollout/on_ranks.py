"""Rollouts of several processes as one: each runs its own, and all get the episodes of all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from foundation.core.distributed import Ranks
from foundation.rollout.episodes import CollectionStats, EvaluationResult

Result = TypeVar("Result", bound=EvaluationResult)
_OWN = ("slots",)
"""What a process keeps of its own rollout alone."""


def on_ranks(ranks: Ranks, rollouts: Callable[[], Mapping[str, Result]]) -> dict[str, Result]:
    """Run rollouts in every process, and return the episodes of all, in order of rank.

    Args:
        ranks: The processes.
        rollouts: Runs this process's rollouts; returns their episodes by name.

    Raises:
        UserError: If a rollout of any process has raised it.
        RunInterrupted: If any process was asked to stop.
    """
    own: dict[str, Result] = {}

    def run() -> dict[str, dict[str, Any]]:
        own.update(rollouts())
        return {name: _plain(result) for name, result in own.items()}

    if ranks.world_size == 1:
        return dict(rollouts())
    parts = ranks.together(run)
    return {name: join_episodes(result, [part[name] for part in parts]) for name, result in own.items()}


def one_on_ranks(ranks: Ranks, rollout: Callable[[], Result]) -> Result:
    """Run one rollout in every process, as :func:`on_ranks` does."""
    return on_ranks(ranks, lambda: {"": rollout()})[""]


def join_episodes(own: Result, parts: Sequence[Mapping[str, Any]]) -> Result:
    """Return the episodes of several rollouts as those of one.

    Args:
        own: This process's; the result is on its device, and has its chunks.
        parts: The fields of every process's, its own among them.
    """
    device = own.returns.device
    number = [len(part["returns"]) for part in parts]
    # Some environments report a metric only once an episode has ended: a process without any yet has none.
    metrics = {name: values for part in parts for name, values in part["metrics"].items()}
    joined: dict[str, Any] = {
        "metrics": {
            name: torch.cat(
                [part["metrics"].get(name, like.new_zeros(size)) for part, size in zip(parts, number, strict=True)]
            ).to(device)
            for name, like in metrics.items()
        },
        "env_steps": sum(part["env_steps"] for part in parts),
    }
    if isinstance(own, CollectionStats):
        joined["log"] = _mean_log(parts)
    for entry in dataclasses.fields(own):
        if entry.name not in (*joined, *_OWN):
            tensors = [part[entry.name] for part in parts]
            known = all(tensor is not None for tensor in tensors)
            joined[entry.name] = torch.cat(tensors).to(device) if known else None
    return dataclasses.replace(own, **joined)


def _mean_log(parts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each entry of the logs, each process's by its env steps."""
    means = {}
    for name in dict.fromkeys(name for part in parts for name in part["log"]):
        known = [(part["log"][name], part["env_steps"]) for part in parts if name in part["log"]]
        means[name] = sum(value * steps for value, steps in known) / max(1, sum(steps for _, steps in known))
    return means


def _plain(result: EvaluationResult) -> dict[str, Any]:
    return {entry.name: getattr(result, entry.name) for entry in dataclasses.fields(result)}
