"""A quadrotor beside another body that moves, on the built-in simulator: what chasing and evading share."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch

from foundation.tasks.pursuit import mdp
from foundation.tasks.quadrotor import mdp as vehicle_mdp
from foundation.tasks.quadrotor.quadrotor_env import TABLE_STEPS, Judgement, QuadrotorEnv
from foundation.tasks.quadrotor.settings import TaskTensors
from foundation.tasks.quadrotor.sim.quadrotor import BODY_RATES, POSITION, QUATERNION, ROTORS, VELOCITY
from foundation.tasks.quadrotor.sim.vehicles import VehicleParams


class PursuitEnv(QuadrotorEnv):
    """Many quadrotors, each with another body beside it.

    A task draws a table of that body's starts and constants for the coming steps, and moves it.
    """

    task: ClassVar[str]
    """Which of ``mdp.TASKS`` it is."""
    other_kind: ClassVar[str]
    """How the other body is drawn: ``target`` or ``pursuer``."""
    num_constants: ClassVar[int]
    """Numbers that are drawn for the other body's motion in an episode."""
    action_fields = mdp.ACTION_FIELDS
    """Observation group -> first column of the previous action."""
    rotation_fields = mdp.ROTATION_FIELDS
    """Observation group -> first column of the rotation matrix, body to world, row by row."""
    _TENSORS = (*QuadrotorEnv._TENSORS, "_other", "_constants", "_other_table", "_constants_table", "_normal_table")

    def lay_out(self, vehicles: VehicleParams) -> TaskTensors:
        """Turn the configuration into tensors for the given vehicles, on their device."""
        cfg = self.cfg
        ones = torch.ones_like(vehicles.mass)
        limits = cfg.terminations
        init = cfg.init
        ranges = vehicle_mdp.InitialRanges(
            position=ones * init.position,
            max_angle=init.max_angle,
            max_velocity=init.max_velocity,
            max_body_rate=init.max_body_rate,
            rotor_speed=(float(init.rotor_speed[0]), float(init.rotor_speed[1])),
            at_target=init.at_target,
        )
        rows = [ones * limits.position, ones * limits.velocity, ones * limits.body_rate]
        weights = [getattr(cfg.rewards, name) for name in mdp.REWARD_TERMS]
        noise = vehicle_mdp.noise_scale(mdp.noise_columns(**vars(cfg.observation_noise.deployable)), ones.device)
        return TaskTensors(
            torch.stack(rows).repeat_interleave(3, 0),
            ranges,
            vehicle_mdp.reward_weights(*weights, dtype=ones.dtype, device=ones.device),
            {} if noise is None else {"deployable": noise},
        )

    def prepare(self) -> None:
        """Allocate the other bodies."""
        self._other = torch.zeros(6, self.num_envs, device=self.device)
        self._constants = torch.zeros(self.num_constants, self.num_envs, device=self.device)
        self._task_columns = mdp.task_columns(self.task, self.num_envs, self.device)

    # -- what a task says -----------------------------------------------------------------------------------------

    @abstractmethod
    def draw_others(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the other bodies of the episodes that begin in the coming steps.

        Returns:
            Their positions and velocities, shape (6, TABLE_STEPS, num_envs), and the constants of their motion, shape
            (num_constants, TABLE_STEPS, num_envs).
        """

    @abstractmethod
    def move(self, state: torch.Tensor) -> torch.Tensor:
        """Return the other bodies a step later; the vehicles' new packed state is ``state``. Shape: (6, num_envs)."""

    @abstractmethod
    def is_over(self, distance: torch.Tensor) -> torch.Tensor:
        """Return whether the distance to the other body ends the episode. Shape: (num_envs,)."""

    def worth(self, distance: torch.Tensor) -> torch.Tensor:
        """Return the distance that the reward counts [m]. Shape: (num_envs,)."""
        return distance

    # -- the hooks of the simulator ---------------------------------------------------------------------------------

    def draw_task_table(self) -> None:
        """Draw how the other bodies of episodes that begin in the coming steps start and move."""
        self._normal_table = self.random_normal(3)
        self._other_table, self._constants_table = self.draw_others()

    def random_uniform(self, rows: int) -> torch.Tensor:
        """Draw uniform numbers for the coming steps. Shape: (rows, TABLE_STEPS, num_envs)."""
        shape = (rows, TABLE_STEPS, self.num_envs)
        return torch.rand(shape, generator=self._generator, device=self.device, dtype=self._dtype)

    def random_normal(self, rows: int) -> torch.Tensor:
        """Draw standard normal numbers for the coming steps. Shape: (rows, TABLE_STEPS, num_envs)."""
        shape = (rows, TABLE_STEPS, self.num_envs)
        return torch.randn(shape, generator=self._generator, device=self.device, dtype=self._dtype)

    def begin_task(self, dones: torch.Tensor | None) -> None:
        """Take this step's row of the tables where episodes begin."""
        other = self._other_table[:, self.table_row]
        constants = self._constants_table[:, self.table_row]
        if dones is None:
            self._other = other.clone()
            self._constants = constants.clone()
        else:
            self._other = torch.where(dones, other, self._other)
            self._constants = torch.where(dones, constants, self._constants)

    def move_others(self, state: torch.Tensor) -> None:
        """Move the other bodies."""
        self._other = self.move(state)

    def judge(self, state: torch.Tensor, action: torch.Tensor) -> Judgement:
        """Compute reward, terminations and the distance to the other body after a step."""
        distance = (state[POSITION] - self._other[:3]).square().sum(0).sqrt()
        limits = vehicle_mdp.terminations(state[:9], self._limits)
        exceeded = torch.cat([limits, self.is_over(distance).unsqueeze(0)])
        terminated = exceeded.any(0)
        terms = vehicle_mdp.reward_terms(
            self.worth(distance), state[QUATERNION], action, self._action, terminated, self._weights
        )
        return Judgement(terms, exceeded, terminated, distance)

    def observe(self) -> dict[str, torch.Tensor]:
        """Build the observation groups of the current state."""
        s = self._state
        other = self._other
        return mdp.observations(
            s[POSITION],
            s[VELOCITY],
            s[BODY_RATES],
            s[QUATERNION],
            self._action,
            s[ROTORS],
            other[:3],
            other[3:],
            self._task_columns,
        )

    @property
    def other(self) -> torch.Tensor:
        """Position [m] and velocity [m/s] of the other bodies, world frame. Shape: (6, num_envs)."""
        return self._other

    def renderer_options(self) -> dict[str, Any]:
        """Return how the other body is drawn; the whole arena is shown."""
        return {"other_kind": self.other_kind, "share_shown": 0.9}

    def drawn_others(self, num_shown: int) -> torch.Tensor | None:
        """Return where the first other bodies are drawn. Shape: (num_shown, 3)."""
        return self._other[:3, :num_shown].T
