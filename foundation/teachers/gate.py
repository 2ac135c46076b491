"""A learned gate: the weight of each of several teachers in a state, by the return that it is expected to get."""

from __future__ import annotations

import torch
from torch import nn

from foundation.config.distillation_cfg import GateCfg
from foundation.policies.mlp import build_mlp
from foundation.policies.normalizer import ObsNormalizer


class TeacherGate(nn.Module):
    """Maps observations to the weights of K teachers, as the gating network of a mixture of experts does.

    The form is that of Jacobs et al. 1991, a softmax over the outputs of one network. What an output k means is fitted
    from episodes (``foundation.learning.gate``): the return of the next steps if teacher k acts, in standard
    deviations of the returns seen, so that the weights ``softmax(value_k / temperature)`` maximise the expected return
    plus ``temperature`` times the weights' entropy. At a low temperature that is the state-wise best teacher, the
    benchmark of Cheng, Kolobov and Agarwal 2020 ("Policy Improvement via Imitation of Multiple Oracles"). Until it is
    fitted all weights are equal.

    Args:
        num_obs: Number of the teachers' observations.
        num_teachers: K.
        cfg: Sizes and temperature.
    """

    def __init__(self, num_obs: int, num_teachers: int, cfg: GateCfg):
        super().__init__()
        self.num_teachers = num_teachers
        self.temperature = cfg.temperature
        self.normalizer = ObsNormalizer(num_obs)
        self.network = build_mlp(num_obs, cfg.hidden_dims, num_teachers)
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def values(self, obs: torch.Tensor) -> torch.Tensor:
        """Return what each teacher is expected to earn. Shape: (..., num_obs) to (..., num_teachers)."""
        return self.network(self.normalizer(obs))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Return the weights, which sum to one. Shape: (..., num_obs) to (..., num_teachers)."""
        return torch.softmax(self.values(obs) / self.temperature, dim=-1)
