"""Observation normalisation by running moments."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class ObsNormalizer(nn.Module):
    """``(x - mean) / (sqrt(var) + eps)``, the identity until it is fitted.

    The moments are merged exactly (Chan et al. 1979), so that the order and size of the batches do not matter.
    """

    mean: torch.Tensor
    var: torch.Tensor
    count: torch.Tensor
    _scale: torch.Tensor

    def __init__(self, num_obs: int, eps: float = 1e-2) -> None:
        """Create an identity.

        Args:
            num_obs: Number of observations.
            eps: Added to the standard deviation, as RSL-RL does (1e-2).
        """
        super().__init__()
        self.eps = eps
        self.register_buffer("mean", torch.zeros(num_obs))
        # sqrt(var) + eps is 1 before the first data, which makes an unfitted normaliser the identity.
        self.register_buffer("var", torch.full((num_obs,), (1.0 - eps) ** 2))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("_scale", torch.ones(num_obs), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise observations. Shape: (..., num_obs) to (..., num_obs)."""
        return (x - self.mean) * self._scale

    @torch.no_grad()
    def update(self, x: torch.Tensor) -> None:
        """Add observations to the moments.

        Args:
            x: Shape: (..., num_obs). Every row counts once.
        """
        rows = x.detach().reshape(-1, x.shape[-1]).double()
        if rows.shape[0] == 0:
            return
        new_var, new_mean = torch.var_mean(rows, dim=0, correction=0)
        total = self.count + rows.shape[0]
        share = rows.shape[0] / total
        delta = new_mean - self.mean
        # The first data replaces the placeholder variance: its share is then 1.
        var = (1.0 - share) * self.var + share * new_var + share * (1.0 - share) * delta.square()
        self.mean.add_((share * delta).to(self.mean.dtype))
        self.var.copy_(var)
        self.count.copy_(total)
        self.refresh()

    def set_moments(self, mean: torch.Tensor, std: torch.Tensor, count: float = 1.0) -> None:
        """Take moments that another library has fitted. Shape of both: (num_obs,)."""
        with torch.no_grad():
            self.mean.copy_(mean.reshape(-1))
            self.var.copy_(std.reshape(-1).square())
            self.count.fill_(count)
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Recompute what ``forward`` uses; call it after writing to ``mean`` or ``var`` by hand."""
        fitted = (self.var.clamp_min(0.0).sqrt() + self.eps).reciprocal()
        self._scale.copy_(torch.where(self.count > 0, fitted, torch.ones_like(fitted)))

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()
