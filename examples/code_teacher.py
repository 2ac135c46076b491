"""Teachers that are code: controllers of CartPole, distilled like any policy (docs/howto/own_teacher.md)."""

import torch
from tensordict import TensorDict

GAINS = torch.tensor([0.5, 1.0, 20.0, 4.0])
"""Of position [m], velocity [m/s], angle [rad] and angular velocity [rad/s]."""


def balance(obs: torch.Tensor) -> torch.Tensor:
    """Push towards the side that the pole falls to. Shapes: (num_envs, 4) -> (num_envs, 1), 0 is left, 1 is right."""
    return (obs @ GAINS.to(obs.device) > 0.0).float().unsqueeze(-1)


def balance_groups(obs: TensorDict) -> torch.Tensor:
    """Do the same of the observation groups, by their names."""
    return balance(obs["policy"])


class Pid:
    """A PID controller of the pole's angle that remembers the angle's integral [rad s] and counteracts drift."""

    state_size = 1

    def __call__(self, obs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the pushes, and the integral for the next step. Shape of the state: (num_envs, 1)."""
        x, dx, angle, rate = obs.unsqueeze(-1).unbind(1)
        integral = state + 0.02 * angle
        force = 20.0 * angle + 4.0 * rate + 2.0 * integral + 0.5 * x + dx
        return (force > 0.0).float(), integral
