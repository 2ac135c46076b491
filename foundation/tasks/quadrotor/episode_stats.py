"""Sums over episodes and their means when episodes end: for ``extras["log"]`` and ``extras["episode_metrics"]``."""

from __future__ import annotations

from typing import NamedTuple

import torch

from foundation.tasks.quadrotor import mdp


class LogNames(NamedTuple):
    """Names of what a task logs of its episodes."""

    rewards: tuple[str, ...]
    """The reward's terms."""
    limits: tuple[str, ...]
    """The limits that end an episode."""
    metric: str
    """Mean distance over the last second of an episode."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The keys of ``extras["log"]``."""
        return (
            *(f"Episode_Reward/{name}" for name in self.rewards),
            *(f"Episode_Termination/{name}" for name in (*self.limits, "time_out")),
            f"Metrics/{self.metric}",
            "Metrics/episode_length",
        )


POINT_CTRL = LogNames(mdp.REWARD_TERMS, mdp.TERMINATION_TERMS, "position_error")
"""The names of the point-control task."""


class EpisodeStats:
    """Keeps the running sums of every environment; nothing is copied to the host."""

    def __init__(
        self,
        num_envs: int,
        window: int,
        episode_length_s: float,
        device: torch.device | str,
        names: LogNames = POINT_CTRL,
    ):
        """Allocate.

        Args:
            num_envs: Number of environments.
            window: Steps of the last second of an episode.
            episode_length_s: Length that summed rewards are divided by [s].
            device: Device of the sums.
            names: Names of the terms, which say how many there are.
        """
        self.names = names
        self._tags = names.tags
        self.window = window
        self._seconds = episode_length_s
        self.sums = torch.zeros(len(names.rewards) + 2, num_envs, device=device)
        self._distances = torch.zeros(window, num_envs, device=device)
        """The distance's running sum, one row per step of the last second."""
        self.latest = torch.zeros(len(self._tags), device=device)
        self._row = 0

    def clear(self) -> None:
        """Forget everything."""
        for buffer in (self.sums, self._distances, self.latest):
            buffer.zero_()
        self._row = 0

    def state_dict(self) -> dict[str, torch.Tensor | int]:
        """Return everything, as copies on the CPU."""
        tensors = {"sums": self.sums, "distances": self._distances, "log": self.latest}
        return {**{name: value.cpu().clone() for name, value in tensors.items()}, "row": self._row}

    def load_state_dict(self, saved: dict[str, torch.Tensor | int]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        for buffer, name in ((self.sums, "sums"), (self._distances, "distances"), (self.latest, "log")):
            buffer.copy_(torch.as_tensor(saved[name]))
        self._row = int(saved["row"]) % len(self._distances)

    @property
    def log(self) -> dict[str, torch.Tensor]:
        """Means over the episodes that ended in the last step that ended any."""
        return dict(zip(self._tags, self.latest.unbind(), strict=True))

    @property
    def second_ago(self) -> torch.Tensor:
        """The distances' running sums of a second ago. Shape: (num_envs,)."""
        return self._distances[self._row]

    def replace(self, sums: torch.Tensor, latest: torch.Tensor, total: torch.Tensor) -> None:
        """Take the results of a step that was computed elsewhere (``compiled_step``).

        Args:
            sums: The terms, the distance and the steps. Shape: (num_terms + 2, num_envs).
            latest: In the order of ``LogNames.tags``. Shape: (num_tags,).
            total: The distances' running sums after the step. Shape: (num_envs,).
        """
        self.sums = sums
        self.latest = latest
        self._distances[self._row].copy_(total)
        self._row = (self._row + 1) % self.window

    def add(
        self,
        terms: torch.Tensor,
        distance: torch.Tensor,
        exceeded: torch.Tensor,
        time_outs: torch.Tensor,
        dones: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Count one step.

        Args:
            terms: Weighted terms of the reward. Shape: (num_terms, num_envs).
            distance: What the metric is the mean of [m]. Shape: (num_envs,).
            exceeded: Which limit was passed. Shape: (num_limits, num_envs).
            time_outs: Shape: (num_envs,).
            dones: Shape: (num_envs,).

        Returns:
            The metric: mean distance over the last second of the episode so far [m]. Shape: (num_envs,).
        """
        self.sums += torch.cat([terms, distance.unsqueeze(0), torch.ones_like(distance).unsqueeze(0)])
        total = self.sums[-2]
        steps = self.sums[-1]
        row = self._distances[self._row]
        self._row = (self._row + 1) % self.window
        error = (total - torch.where(steps > self.window, row, 0.0)) / steps.clamp(max=self.window)
        row.copy_(total)
        done = dones.to(total.dtype)
        ends = torch.cat([exceeded, time_outs.unsqueeze(0)]).to(total.dtype)
        rows = torch.cat([self.sums[:-2] / self._seconds, ends, torch.stack([error, steps])])
        count = done.sum()
        self.latest = torch.where(count > 0, (rows @ done) / count.clamp(min=1.0), self.latest)
        self.sums.masked_fill_(dones.bool(), 0.0)  # not a product: a NaN would outlive its episode
        return {self.names.metric: error}
