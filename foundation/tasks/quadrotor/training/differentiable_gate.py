"""The gate task as a differentiable rollout, for training by backpropagation through the simulator."""

from __future__ import annotations

import torch

from foundation.tasks.gate import mdp
from foundation.tasks.gate.gate_env import QuadcopterGateEnv
from foundation.tasks.quadrotor.sim.quadrotor import BODY_RATES, POSITION, QUATERNION, VELOCITY
from foundation.tasks.quadrotor.sim.rotation import rotation_rows
from foundation.tasks.quadrotor.training.differentiable import DifferentiableQuadrotor


class DifferentiableGate(DifferentiableQuadrotor[QuadcopterGateEnv]):
    """The flight through a gate, rewarded for the velocity of :func:`foundation.tasks.gate.mdp.guidance`.

    The task's own reward has no gradient towards the opening; that velocity leads through it. An episode that is
    through begins anew, too.
    """

    num_obs = mdp.POLICY_SIZE

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
        self.speed = speed
        self.heading = heading
        self.action_rate = action_rate
        self.softness = softness
        self.tail = tail
        self.beyond = beyond
        super().__init__(env, overdrive, env.max_episode_length)

    def reset(self) -> None:
        """Begin every episode, at staggered times of their length."""
        super().reset()
        self._gate = self.env.gate

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

    def reward(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return the reward for the velocity, less what turning and changing the action costs. Shape: (num_envs,)."""
        place, velocity = self._in_gate(state)
        turn = (state[QUATERNION][3].square() + self.softness**2).sqrt()
        change = self._norm(action - self._action)
        return 1.0 - self._velocity_error(place, velocity) - self.heading * turn - self.action_rate * change

    def is_over(self, state: torch.Tensor) -> torch.Tensor:
        """Return which episodes are through or passed a limit. Shape: (num_envs,)."""
        place, _ = self._in_gate(state)
        return super().is_over(state) | (place[0] > self.beyond)

    def begin_task(self, done: torch.Tensor) -> None:
        """Place the gates of the episodes that begin. Shape of ``done``: (num_envs,)."""
        self.env.begin_task(done)
        self._gate = self.env.gate
