"""The quadrotor's tasks as differentiable rollouts, for training by backpropagation through the simulator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, TypeVar

import torch

from foundation.tasks.quadrotor import mdp
from foundation.tasks.quadrotor.quadrotor_env import QuadrotorEnv
from foundation.tasks.quadrotor.sim.quadrotor import (
    BODY_RATES,
    POSITION,
    QUATERNION,
    ROTORS,
    VELOCITY,
    clamp_straight_through,
)
from foundation.tasks.quadrotor.sim.rotation import rotation_rows
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

EnvT = TypeVar("EnvT", bound=QuadrotorEnv)


class DifferentiableQuadrotor(ABC, Generic[EnvT]):
    """Steps the vehicles of an environment with gradients from a smooth reward to the actions.

    Initial states, limits and vehicles are those of ``env``, whose generator draws them; the environment itself is not
    stepped. An episode that exceeds a limit or its length begins anew, which cuts the graph of gradients there.
    """

    num_obs: ClassVar[int]
    num_actions = 4

    def __init__(self, env: EnvT, overdrive: float, episode_steps: int):
        """Wrap an environment.

        Args:
            env: Environment whose vehicles are stepped.
            overdrive: Weight of the squared excess of an action over [-1, 1], which the vehicle does not feel.
            episode_steps: Length of an episode.
        """
        self.env = env
        self.num_envs = env.num_envs
        self.overdrive = overdrive
        self.episode_steps = episode_steps
        self.reset()

    def reset(self) -> None:
        """Begin every episode, at staggered times of their length."""
        self.env.reset()
        self._state = self.env.state
        self._action = self.env.previous_action
        n = self.num_envs
        device = self.env.device
        self._age = torch.arange(n, device=device) * self.episode_steps // n
        self._age = self._age[torch.randperm(n, generator=self.env.generator, device=device)]

    def detach(self) -> None:
        """Cut the graph of gradients between the steps so far and the following ones."""
        self._state, self._action = self._state.detach(), self._action.detach()

    @abstractmethod
    def observe(self) -> torch.Tensor:
        """Build the ``policy`` observation. Shape: (num_envs, num_obs)."""

    @abstractmethod
    def terminal_value(self) -> torch.Tensor:
        """Guess the reward of the steps beyond the horizon, in closed form. Shape: (num_envs,)."""

    @abstractmethod
    def reward(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return the smooth reward of having come to ``state`` (17, num_envs) by ``action`` (4, num_envs)."""

    def step(self, actions: torch.Tensor) -> torch.Tensor:
        """Advance by one action, keeping the graph of gradients.

        Args:
            actions: Not yet clamped; the clamp passes gradients straight through. Shape: (num_envs, 4).

        Returns:
            Smooth reward minus the penalties. Shape: (num_envs,).
        """
        raw = actions.T
        action = clamp_straight_through(raw)
        state = self.env.integrate(self._state, action)
        excess = (raw.abs() - 1.0).clamp(min=0.0)
        reward = self.reward(state, action) - self.overdrive * excess.square().sum(0)
        self._restart(state, action)
        return reward

    def is_over(self, state: torch.Tensor) -> torch.Tensor:
        """Return which episodes end in ``state`` (17, num_envs), but for their length. Shape: (num_envs,)."""
        return mdp.terminations(state[:9], self.env.limits).any(0)

    def begin_task(self, done: torch.Tensor) -> None:
        """Draw what else an episode of the task has, where ``done``. Shape: (num_envs,)."""

    def _restart(self, state: torch.Tensor, action: torch.Tensor) -> None:
        """Begin the episodes anew that are over."""
        self._age = self._age + 1
        done = self.is_over(state.detach()) | (self._age >= self.episode_steps)
        initial = self.env.take_initial_states()
        self.begin_task(done)
        self._state = torch.where(done, initial, state)
        self._action = torch.where(done, initial[ROTORS] * 2.0 - 1.0, action)
        self._age = self._age * ~done


class DifferentiablePointCtrl(DifferentiableQuadrotor[QuadcopterPointCtrlEnv]):
    """Point control, rewarded by its own reward made smooth, with the weights of ``env``.

    The constant force on a vehicle is drawn by :meth:`reset` alone, not in every episode (``FleetRollout`` draws it
    per episode).
    """

    num_obs = mdp.POLICY_SIZE

    def __init__(
        self,
        env: QuadcopterPointCtrlEnv,
        barrier: float = 20.0,
        overdrive: float = 1.0,
        softness: float = 0.005,
        tail: float = 30.0,
        episode_steps: int = 250,
        motor_noise: float = 0.0,
        noise_seed: int = 0,
    ):
        """Wrap an environment.

        Args:
            env: Environment whose vehicles are stepped.
            barrier: Weight of the squared excess of position and velocity over 80 % of their limits, in units of the
                limit. Termination itself has no gradient.
            overdrive: Weight of the squared excess of an action over [-1, 1], which the vehicle does not feel.
            softness: See :func:`foundation.tasks.quadrotor.mdp.smooth_reward`.
            tail: Number of steps beyond the horizon that :meth:`terminal_value` stands for.
            episode_steps: Length of an episode; shorter than the task's, so that recovering from a start is practised
                more often.
            motor_noise: Standard deviation of the noise on the observed motor speeds. It keeps a policy from relying
                on what a vehicle without motor-speed sensors cannot know.
            noise_seed: Seed of that noise.
        """
        self.barrier = barrier
        self.softness = softness
        self.tail = tail
        self.motor_noise = motor_noise
        self._noise_generator = torch.Generator(env.device).manual_seed(noise_seed)
        super().__init__(env, overdrive, episode_steps)

    def observe(self) -> torch.Tensor:
        """Build the ``policy`` observation. Shape: (num_envs, 26)."""
        s = self._state
        groups = mdp.observations(s[POSITION], s[VELOCITY], s[BODY_RATES], s[QUATERNION], self._action, s[ROTORS])
        policy = groups["policy"]
        if self.motor_noise == 0.0:
            return policy
        known = policy[:, : mdp.DEPLOYABLE_SIZE]
        motors = policy[:, mdp.DEPLOYABLE_SIZE :]
        noise = torch.randn(motors.shape, generator=self._noise_generator, device=motors.device)
        return torch.cat([known, motors + self.motor_noise * noise], dim=1)

    def terminal_value(self) -> torch.Tensor:
        """Estimate the reward of the ``tail`` steps beyond the horizon, in closed form. Shape: (num_envs,).

        Without it, a short horizon rewards no action that closes a small distance only later.
        """
        s = self._state
        # The distance that the vehicle would have in 0.3 s without acceleration, and small costs of tilt and rotation,
        # which lead away from there.
        ahead = s[POSITION] + 0.3 * s[VELOCITY]
        distance = (ahead.square().sum(0) + self.softness**2).sqrt()
        up = rotation_rows(s[QUATERNION], (8,))[0]
        spin = (s[BODY_RATES].square().sum(0) + 1e-2).sqrt()
        return self.tail * self.env.reward_weights[1] * (distance + 0.1 * (1.0 - up) + 0.002 * spin)

    def reward(self, state: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        """Return the task's reward, smooth, minus the penalty of coming near a limit. Shape: (num_envs,)."""
        reward = mdp.smooth_reward(
            state[POSITION], state[QUATERNION], action, self._action, self.env.reward_weights, self.softness
        )
        nearness = (state[:6].abs() / self.env.limits[:6] - 0.8).clamp(min=0.0)
        return reward - self.barrier * nearness.square().sum(0)
