"""Sums over episodes and their means when episodes end: for ``extras["log"]`` and ``extras["episode_metrics"]``."""

from __future__ import annotations

import torch

from foundation.tasks.quadrotor import mdp

LOG_NAMES = (
    *(f"Episode_Reward/{name}" for name in mdp.REWARD_TERMS),
    *(f"Episode_Termination/{name}" for name in (*mdp.TERMINATION_TERMS, "time_out")),
    "Metrics/position_error",
    "Metrics/episode_length",
)


class EpisodeStats:
    """Keeps the running sums of every environment; nothing is copied to the host."""

    def __init__(self, num_envs: int, window: int, episode_length_s: float, device: torch.device | str):
        """Allocate.

        Args:
            num_envs: Number of environments.
            window: Steps of the last second of an episode.
            episode_length_s: Length that summed rewards are divided by [s].
            device: Device of the sums.
        """
        self.window = window
        self._seconds = episode_length_s
        self.sums = torch.zeros(len(mdp.REWARD_TERMS) + 2, num_envs, device=device)
        self._distances = torch.zeros(window, num_envs, device=device)
        """The distance's running sum, one row per step of the last second."""
        self.latest = torch.zeros(len(LOG_NAMES), device=device)
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
        return dict(zip(LOG_NAMES, self.latest.unbind(), strict=True))

    @property
    def second_ago(self) -> torch.Tensor:
        """The distances' running sums of a second ago. Shape: (num_envs,)."""
        return self._distances[self._row]

    def replace(self, sums: torch.Tensor, latest: torch.Tensor, total: torch.Tensor) -> None:
        """Take the results of a step that was computed elsewhere (``compiled_step``).

        Args:
            sums: Shape: (7, num_envs).
            latest: In the order of :data:`LOG_NAMES`. Shape: (11,).
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
            terms: Weighted terms of the reward. Shape: (5, num_envs).
            distance: To the target [m]. Shape: (num_envs,).
            exceeded: Which limit was passed. Shape: (3, num_envs).
            time_outs: Shape: (num_envs,).
            dones: Shape: (num_envs,).

        Returns:
            ``position_error``: mean distance over the last second of the episode so far [m]. Shape: (num_envs,).
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
        return {"position_error": error}
