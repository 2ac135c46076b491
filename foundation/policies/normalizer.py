"""Observation normalisation by running moments."""

from __future__ import annotations

import torch
from torch import nn

from foundation.policies.layers import Layers

MIN_STD = 0.1
"""Standard deviation [eps] below which an observation has not varied."""
OUTLIER = 10.0
"""Normalised root mean square from which an observation that hardly varied at first is rescaled."""


class ObsNormalizer(nn.Module):
    """``(x - mean) / (sqrt(var) + eps)``, the identity until it is fitted.

    The moments are merged exactly (Chan et al. 1979), so that the order and size of the batches do not matter.

    An observation that has not varied yet is not divided by its std: its ``var`` is the placeholder of an
    unfitted normaliser, whose scale is 1. Divided by ``eps`` alone, a command that is 0 in the first data and 1 later
    would come in as 100 for ever. Moments that another library has fitted (:meth:`set_moments`) are taken as they are.
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
        self.register_buffer("var", torch.full((num_obs,), self.placeholder))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("_scale", torch.ones(num_obs), persistent=False)

    @property
    def placeholder(self) -> float:
        """Variance of an observation that has not varied yet: its scale is 1."""
        return (1.0 - self.eps) ** 2

    @property
    def unvaried(self) -> torch.Tensor:
        """Whether an observation has not varied yet (standard deviation below ``eps / 10``). Shape: (num_obs,)."""
        return self.var.float() == self.placeholder

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise observations. Shape: (..., num_obs) to (..., num_obs)."""
        return (x - self.mean) * self._scale

    def list_layers(self, layers: Layers, x: str, name: str) -> str:
        """Append what it computes (see :mod:`foundation.policies.layers`)."""
        return layers.normalize(x, name, self.mean, self._scale)

    @torch.no_grad()
    def update(self, x: torch.Tensor) -> None:
        """Add observations to the moments.

        Args:
            x: Shape: (..., num_obs). Every row counts once.
        """
        self.merge(*self.moments(x))

    @torch.no_grad()
    def moments(self, x: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Return the number of observations, their mean and their variance, for :meth:`merge`.

        Args:
            x: Shape: (..., num_obs).

        Returns:
            Mean and variance are float64. Shape of each: (num_obs,).
        """
        rows = x.detach().reshape(-1, x.shape[-1]).double()
        if rows.shape[0] == 0:
            return 0, torch.zeros_like(self.mean, dtype=torch.float64), torch.zeros_like(self.var, dtype=torch.float64)
        var, mean = torch.var_mean(rows, dim=0, correction=0)
        return rows.shape[0], mean, var

    @torch.no_grad()
    def merge(self, number: int, new_mean: torch.Tensor, new_var: torch.Tensor) -> None:
        """Add the moments of further observations, which :meth:`moments` has returned, here or in another process."""
        if number == 0:
            return
        total = self.count + number
        share = number / total
        delta = new_mean - self.mean
        # The first data replaces the placeholder variance: its share is then 1.
        old_var = torch.where(self.unvaried, 0.0, self.var)
        var = (1.0 - share) * old_var + share * new_var + share * (1.0 - share) * delta.square()
        self.mean.add_((share * delta).to(self.mean.dtype))
        self.var.copy_(var)
        # A fitted variance that happens to equal the placeholder must not be taken for it.
        self.var.copy_(torch.where(self.unvaried, self.var * (1.0 + 1e-6), self.var))
        self.var.masked_fill_(var < (MIN_STD * self.eps) ** 2, self.placeholder)
        self.count.copy_(total)
        self.refresh()

    @torch.no_grad()
    def rescale_outliers(self, x: torch.Tensor) -> list[int]:
        """Rescale observations that hardly varied in the data that were fitted and vary much now.

        Only those are looked at whose std was below ``eps``, where ``eps`` decides the scale. One whose root mean
        square is now above :data:`OUTLIER` once normalised is given a std that makes it 1; its mean stays.

        Args:
            x: Later observations. Shape: (..., num_obs).

        Returns:
            The observations that were rescaled.
        """
        return self.rescale(self.watched_squares(x))

    @property
    def _watched(self) -> torch.Tensor:
        return self.unvaried | (self.var < self.eps**2)

    @torch.no_grad()
    def watched_squares(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean squared deviation of what hardly varied, 0 elsewhere. Shape: (..., num_obs) to (num_obs,)."""
        squares = torch.zeros_like(self.var, dtype=torch.float64)
        if x.numel():
            watched = self._watched
            rows = x.detach().reshape(-1, x.shape[-1])
            squares[watched] = (rows[:, watched].double() - self.mean[watched]).square().mean(0)
        return squares

    @torch.no_grad()
    def rescale(self, squares: torch.Tensor) -> list[int]:
        """Rescale what :meth:`watched_squares` shows to vary much, here or in another process; return which."""
        index = (self._watched & (squares.sqrt() * self._scale > OUTLIER)).nonzero().flatten()
        if len(index):
            self.var[index] = squares[index].to(self.var.dtype)
            self.refresh()
        return index.tolist()

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

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.refresh()
