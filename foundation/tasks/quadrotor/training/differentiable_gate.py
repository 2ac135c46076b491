"""The gate task as a differentiable rollout, for training by backpropagation through the simulator."""

from __future__ import annotations

import torch

from foundation.tasks.gate import mdp
from foundation.tasks.gate.gate_env import QuadcopterGateEnv
from foundation.tasks.quadrotor.mdp import terminations
from foundation.tasks.quadrotor.sim.quadrotor import (
    BODY_RATES,
    POSITION,
    QUATERNION,
    ROTORS,
    VELOCITY,
    clamp_straight_through,
)
from foundation.tasks.quadrotor.sim.rotation import rotation_rows


class DifferentiableGate:
    """Steps the vehicles of an environment with gradients from a smooth reward to the actions.

    The task's own reward has no gradient towards the opening, so that the vehicle is rewarded for the velocity of
    :func:`foundation.tasks.gate.mdp.guidance`, which leads through. Initial states, gates and vehicles are those of
    ``env``, whose generator it draws from; the environment itself is not stepped. An episode that is through, passes a
    limit or its length begins anew, which cuts the graph.
    """

    num_obs = mdp.POLICY_SIZE
    num_actions = 4

    def __init__(
        self,
        env: QuadcopterGateEnv,
        speed: float = 1.3,
        heading: float = 0.3,
        action_rate: float = 0.3,
        overdrive: float = 1.0,
        softness: float = 0.02,
        tail: float = 20.0,
        beyond: float = 0.2,
    ):
        """Wrap an environment.

        Args:
            env: What to fly.
            speed: On the way through [m/s].
            heading: Weight of the vehicle's turn away from the world's x, so that the gate stays in view.
            action_rate: Weight of the norm of the change of the action.
            overdrive: Weight of the squared excess of an action over [-1, 1], which the vehicle does not feel.
            softness: Where norms are softened, so that they have gradients at zero.
            tail: Weight of the guess at what follows the horizon, in steps.
            beyond: Distance behind the gate at which an episode begins anew [m].
        """
        self.env = env
        self.num_envs = env.num_envs
        self.speed = speed
        self.heading = heading
        self.action_rate = action_rate
        self.overdrive = overdrive
        self.softness = softness
        self.tail = tail
        self.beyond = beyond
        self.reset()

    def reset(self) -> None:
        """Begin every episode, at staggered times of their length."""
        self.env.reset()
        self._state = self.env.state
        self._action = self.env.previous_action
        self._gate = self.env.gate
        n = self.num_envs
        device = self.env.device
        self._age = torch.arange(n, device=device) * self.env.max_episode_length // n
        self._age = self._age[torch.randperm(n, generator=self.env.generator, device=device)]

    def detach(self) -> None:
        """Cut the graph between the past and the future."""
        self._state, self._action = self._state.detach(), self._action.detach()

    def observe(self) -> torch.Tensor:
        """Build the ``policy`` observation. Shape: (num_envs, 29)."""
        return mdp.observations(self._state, self._action, self._gate)["policy"]

    def _velocity_error(self, place: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """Return how far a velocity is from the one that leads through [m/s]; both in the gate's axes.

        The guidance is a set point: the graph does not lead through the steep change of it near the gate.
        """
        return self._norm(velocity - mdp.guidance(place.detach(), self.speed))

    def _norm(self, vector: torch.Tensor) -> torch.Tensor:
        return (vector.square().sum(0) + self.softness**2).sqrt()

    def _in_gate(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return position and velocity in the gate's axes."""
        yaw = self._gate[mdp.YAW]
        return mdp.to_gate(state[POSITION] - self._gate[mdp.CENTRE], yaw), mdp.to_gate(state[VELOCITY], yaw)

    def terminal_value(self) -> torch.Tensor:
        """Guess the reward beyond the horizon, for a while: the error of the velocity, tilt and spin. (num_envs,)."""
        place, velocity = self._in_gate(self._state)
        up = rotation_rows(self._state[QUATERNION], (8,))[0]
        spin = (self._state[BODY_RATES].square().sum(0) + 1e-2).sqrt()
        error = self._velocity_error(place, velocity)
        return -self.tail * (error + 0.2 * (1.0 - up) + 0.01 * spin)

    def step(self, actions: torch.Tensor) -> torch.Tensor:
        """Advance, keeping the graph.

        Args:
            actions: Not yet clamped; the clamp passes gradients straight through. Shape: (num_envs, 4).

        Returns:
            Smooth reward less the penalties. Shape: (num_envs,).
        """
        raw = actions.T
        action = clamp_straight_through(raw)
        state = self.env.integrate(self._state, action)
        place, velocity = self._in_gate(state)
        turn = (state[QUATERNION][3].square() + self.softness**2).sqrt()
        change = self._norm(action - self._action)
        excess = (raw.abs() - 1.0).clamp(min=0.0).square().sum(0)
        reward = 1.0 - self._velocity_error(place, velocity) - self.heading * turn - self.action_rate * change
        self._restart(state, action, place.detach()[0])
        return reward - self.overdrive * excess

    def _restart(self, state: torch.Tensor, action: torch.Tensor, along: torch.Tensor) -> None:
        """Begin the episodes anew that are through, or passed a limit or their length."""
        self._age = self._age + 1
        over = (self._age >= self.env.max_episode_length) | (along > self.beyond)
        done = terminations(state.detach()[:9], self.env.limits).any(0) | over
        initial = self.env.take_initial_states()
        self.env.begin_task(done)
        self._gate = self.env.gate
        self._state = torch.where(done, initial, state)
        self._action = torch.where(done, initial[ROTORS] * 2.0 - 1.0, action)
        self._age = self._age * ~done
