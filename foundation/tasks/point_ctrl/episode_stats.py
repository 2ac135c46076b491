"""Sums over episodes and their means when episodes end: for ``extras["log"]`` and ``extras["episode_metrics"]``."""

from __future__ import annotations

import torch

from foundation.tasks.point_ctrl import mdp

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
        self._window, self._seconds = window, episode_length_s
        self._sums = torch.zeros(len(mdp.REWARD_TERMS) + 2, num_envs, device=device)
        self._distances = torch.zeros(window, num_envs, device=device)
        """The distance's running sum, one row per step of the last second."""
        self._log = torch.zeros(len(LOG_NAMES), device=device)
        self._row = 0

    def clear(self) -> None:
        """Forget everything."""
        for buffer in (self._sums, self._distances, self._log):
            buffer.zero_()
        self._row = 0

    def state_dict(self) -> dict[str, torch.Tensor | int]:
        """Return everything, as copies on the CPU."""
        tensors = {"sums": self._sums, "distances": self._distances, "log": self._log}
        return {**{name: value.cpu().clone() for name, value in tensors.items()}, "row": self._row}

    def load_state_dict(self, saved: dict[str, torch.Tensor | int]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        for buffer, name in ((self._sums, "sums"), (self._distances, "distances"), (self._log, "log")):
            buffer.copy_(torch.as_tensor(saved[name]))
        self._row = int(saved["row"])

    @property
    def log(self) -> dict[str, torch.Tensor]:
        """Means over the episodes that ended in the last step that ended any."""
        return dict(zip(LOG_NAMES, self._log.unbind(), strict=True))

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
        self._sums += torch.cat([terms, distance.unsqueeze(0), torch.ones_like(distance).unsqueeze(0)])
        total, steps = self._sums[-2], self._sums[-1]
        row = self._distances[self._row]
        self._row = (self._row + 1) % self._window
        error = (total - torch.where(steps > self._window, row, 0.0)) / steps.clamp(max=self._window)
        row.copy_(total)
        done = dones.to(total.dtype)
        ends = torch.cat([exceeded, time_outs.unsqueeze(0)]).to(total.dtype)
        rows = torch.cat([self._sums[:-2] / self._seconds, ends, torch.stack([error, steps])])
        count = done.sum()
        self._log = torch.where(count > 0, (rows @ done) / count.clamp(min=1.0), self._log)
        self._sums.masked_fill_(dones.bool(), 0.0)  # not a product: a NaN would outlive its episode
        return {"position_error": error}
