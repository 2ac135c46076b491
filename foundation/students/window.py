"""Memory of the last k observations: what the history and the convolution student share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foundation.students.base import NetworkCfg, Student


@dataclass
class WindowCfg(NetworkCfg):
    """A student that sees the last few observations at once."""


class WindowStudent(Student):
    """Remembers the last ``length - 1`` normalised observations; before an episode's start they are zero (the mean).

    A subclass makes ``window_features``.
    """

    def __init__(self, cfg: NetworkCfg, num_obs: int, num_actions: int, num_features: int, length: int) -> None:
        """Create the heads; ``length`` is the number of observations seen at once."""
        super().__init__(cfg, num_obs, num_actions, num_features)
        self.length = length
        self.state_size = (length - 1) * num_obs

    def window_features(self, window: torch.Tensor) -> torch.Tensor:
        """Map observations, oldest first, to features. Shape: (..., length, num_obs) to (..., num_features)."""
        raise TypeError(f"{type(self).__name__} does not define window_features")

    def features_step(self, obs: torch.Tensor, state: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map normalised observations to the last hidden layer, one step. Shape: (num_envs, num_features)."""
        flat = obs if state is None else torch.cat([state, obs], dim=-1)
        features = self.window_features(flat.unflatten(-1, (self.length, self.num_obs)))
        return features, flat[:, self.num_obs :] if self.state_size else None

    def features_sequence(
        self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map normalised observations to the last hidden layer. Shape: (num_steps, num_envs, num_features)."""
        steps, back = obs.shape[0], self.length - 1
        if state is not None:
            past = state.unflatten(-1, (back, self.num_obs)).transpose(0, 1)
            obs = torch.cat([past, obs])
        windows = obs.unfold(0, self.length, 1).transpose(-1, -2)  # (num_steps, num_envs, length, num_obs)
        if resets is not None and back:
            time = torch.arange(steps, device=obs.device).unsqueeze(1)
            begun = torch.where(resets.bool(), time, -back).cummax(0).values  # when the running episode began
            source = time.unsqueeze(-1) + torch.arange(-back, 1, device=obs.device)
            windows = windows * (source >= begun.unsqueeze(-1)).unsqueeze(-1).to(obs.dtype)
        new_state = windows[-1, :, 1:].flatten(1) if self.state_size else None
        return self.window_features(windows), new_state
