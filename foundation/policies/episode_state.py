"""The memory of a policy: one tensor, env first, zero where an episode begins."""

from __future__ import annotations

import torch
from torch import nn


class EpisodeState(nn.Module):
    """What every policy does with its memory; a policy whose episodes begin otherwise overrides ``initial_state``."""

    state_size: int = 0
    """Numbers that are remembered per env; 0 for a policy without memory."""

    def initial_state(self, num_envs: int, device: torch.device | str | None = None) -> torch.Tensor | None:
        """Return the state at an episode's start: zeros. Shape: (num_envs, state_size), None without memory."""
        if not self.state_size:
            return None
        own = next((parameter.device for parameter in self.parameters()), None)
        return torch.zeros(num_envs, self.state_size, device=device or own)

    def reset_state(self, state: torch.Tensor | None, dones: torch.Tensor) -> torch.Tensor | None:
        """Return the state with the envs in ``dones`` at an episode's start. Shape: (num_envs, state_size)."""
        if state is None:
            return None
        initial = self.initial_state(state.shape[0], state.device)
        assert initial is not None
        return torch.where(dones.bool().unsqueeze(-1), initial, state)
