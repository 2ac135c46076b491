"""Elastic weight consolidation (Kirkpatrick et al. 2017): a penalty on changing weights that an old task needs."""

from __future__ import annotations

import torch
from torch.distributions import Normal

from foundation.core.errors import UserError
from foundation.policies.distribution import sample_gaussian
from foundation.policies.output import PolicyOutput
from foundation.ppo.ppo import gaussian_of
from foundation.ppo.replay import Replay
from foundation.students.base import Student


class Consolidation:
    """The quadratic penalty around the weights that the actor has now.

    Args:
        actor: Its weights at the moment are those of the old task.
        fisher: Diagonal of the Fisher information of each weight, by its name.
    """

    def __init__(self, actor: Student, fisher: dict[str, torch.Tensor]):
        self.actor = actor
        self.fisher = fisher
        self.anchor = {name: value.detach().clone() for name, value in actor.named_parameters()}

    def penalty(self) -> torch.Tensor:
        """Return half the sum of the squared changes, each weighted by its Fisher information (eq. 3)."""
        parts = [
            (self.fisher[name] * (value - self.anchor[name]).square()).sum()
            for name, value in self.actor.named_parameters()
            if name in self.fisher
        ]
        return 0.5 * torch.stack(parts).sum()


def fisher_diagonal(actor: Student, replay: Replay, num_samples: int, seed: int) -> dict[str, torch.Tensor]:
    """Estimate the diagonal of the Fisher information of the action distribution on an old task's states.

    It is the mean square of the gradient of the logarithm of the density, of one action drawn on each state.

    Args:
        actor: Without memory.
        replay: Its states.
        num_samples: How many of them.
        seed: Of the actions.

    Raises:
        UserError: If the actor has memory: a state is then more than an observation.
    """
    if actor.state_size:
        raise UserError("finetune.ewc needs an actor without memory: retain it by kl_coef or by replay")
    parameters = {name: value for name, value in actor.named_parameters() if value.requires_grad}
    squares = {name: torch.zeros_like(value) for name, value in parameters.items()}
    device = next(iter(parameters.values())).device
    generator = torch.Generator(device).manual_seed(seed)
    obs: list[torch.Tensor] = []
    while sum(len(part) for part in obs) < num_samples:
        obs.append(replay.draw().obs)
    for row in torch.cat(obs)[:num_samples]:
        output: PolicyOutput = actor.step(row.unsqueeze(0), None)[0]
        mean, std = gaussian_of(output)
        drawn = sample_gaussian(mean.detach(), std.detach(), generator)
        density = Normal(mean, std, validate_args=False).log_prob(drawn).sum()
        grads = torch.autograd.grad(density, list(parameters.values()), allow_unused=True)
        for name, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                squares[name] += grad.square()
    return {name: square / num_samples for name, square in squares.items()}
