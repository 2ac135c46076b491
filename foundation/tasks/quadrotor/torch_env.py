"""The point-control task on the built-in simulator."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDict

from foundation.accel.compiled import CompiledFunction
from foundation.core.errors import UserError
from foundation.tasks.quadrotor import mdp
from foundation.tasks.quadrotor.compiled_step import CompiledStep, StepState, step_settings
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg, check_cfg
from foundation.tasks.quadrotor.episode_stats import POINT_CTRL
from foundation.tasks.quadrotor.quadrotor_env import Judgement, QuadrotorEnv
from foundation.tasks.quadrotor.settings import TaskTensors, task_tensors
from foundation.tasks.quadrotor.sim.quadrotor import BODY_RATES, POSITION, QUATERNION, ROTORS, VELOCITY
from foundation.tasks.quadrotor.sim.rows import norm
from foundation.tasks.quadrotor.sim.vehicles import VehicleParams

__all__ = ["QuadcopterPointCtrlEnv", "QuadcopterPointCtrlEnvCfg"]


class QuadcopterPointCtrlEnv(QuadrotorEnv):
    """Many quadrotors, each flying to its target."""

    cfg: QuadcopterPointCtrlEnvCfg
    log_names = POINT_CTRL
    position_fields = mdp.POSITION_FIELDS
    """Observation group -> (first column of the position error, its frame: ``body`` or ``world``)."""
    rotation_fields = mdp.ROTATION_FIELDS
    """Observation group -> first column of the rotation matrix, body to world, row by row."""
    action_fields = mdp.ACTION_FIELDS
    """Observation group -> first column of the previous action."""

    def __init__(self, cfg: QuadcopterPointCtrlEnvCfg | None = None, render_mode: str | None = None):
        """Build the environments and reset them with ``cfg.seed``."""
        cfg = cfg or QuadcopterPointCtrlEnvCfg()
        check_cfg(cfg)
        super().__init__(cfg, render_mode)

    def lay_out(self, vehicles: VehicleParams) -> TaskTensors:
        """Turn the configuration into tensors for the given vehicles."""
        return task_tensors(self.cfg, vehicles)

    def prepare(self) -> None:
        """Compile the step where asked to."""
        self._advance: CompiledStep | None = None
        if self.cfg.compile:
            self._refuse_own_methods()
            settings = step_settings(self.cfg, self.dynamics, self._limits, self._weights, self.max_episode_length)
            self._advance = CompiledStep(settings, self.device)
            self._compiled_states = CompiledFunction(self._flat_states, self.device)

    def _flat_states(self, drawn: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor]:
        """Turn random numbers into initial states, from tensors alone, which is what is compiled."""
        return (mdp.initial_states(drawn, self._ranges._replace(position=position)),)

    def initial_states(self, drawn: torch.Tensor) -> torch.Tensor:
        """Turn uniform random numbers into initial states (see ``QuadrotorEnv.initial_states``)."""
        if self._advance is None:
            return super().initial_states(drawn)
        return self._compiled_states(drawn, self._ranges.position)[0]

    def _refuse_own_methods(self) -> None:
        """Refuse to compile a subclass whose methods the compiled step would not call."""
        names = ("judge", "observe", "integrate", "move_others", "begin_task", "task_metrics")
        own = [name for name in names if getattr(type(self), name) is not getattr(QuadcopterPointCtrlEnv, name)]
        if own:
            raise UserError(
                f"env.compile=true compiles the built-in task's step, and {type(self).__name__} has a {own[0]} of its "
                "own: leave env.compile off"
            )

    def judge(self, state: torch.Tensor, action: torch.Tensor) -> Judgement:
        """Compute reward, terminations and distance to the target after a step."""
        exceeded = mdp.terminations(state[:9], self._limits)
        terminated = exceeded.any(0)
        distance = norm(state[POSITION])
        terms = mdp.reward_terms(distance, state[QUATERNION], action, self._action, terminated, self._weights)
        return Judgement(terms, exceeded, terminated, distance)

    def observe(self) -> dict[str, torch.Tensor]:
        """Build the observation groups of the current state."""
        s = self._state
        return mdp.observations(s[POSITION], s[VELOCITY], s[BODY_RATES], s[QUATERNION], self._action, s[ROTORS])

    @property
    def solved_return(self) -> float:
        """The mean return at which the task counts as solved."""
        return mdp.solved_return(self.cfg.rewards.alive, self.max_episode_length)

    @torch.no_grad()
    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance every environment; those that end begin a new episode at once (see ``QuadrotorEnv.step``)."""
        if self._advance is None:
            return super().step(actions)
        return self._step_compiled(self._advance, actions.to(self.device, self._dtype))

    def _step_compiled(
        self, advance: CompiledStep, actions: torch.Tensor
    ) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Do what ``QuadrotorEnv.step`` does, by the compiled function."""
        # Callers may set these as they like, and the compiled function reads memory as it was laid out at first.
        actions = actions.reshape(self.num_envs, self.num_actions).contiguous()
        length = self.episode_length_buf.to(self.device, torch.long).reshape(self.num_envs).contiguous()
        initial, forces = self._take_initial()
        stats = self._stats
        pushed = None if forces is None else self._forces
        before = StepState(self._state, self._action, length, stats.sums, stats.latest, pushed)
        after, out = advance(before, actions, initial, forces, stats.second_ago)
        self._state = after.state
        self._action = after.action
        self.episode_length_buf = after.length
        stats.replace(after.sums, after.log, out.total_distance)
        if after.forces is not None:
            self._forces = after.forces
        groups = {"policy": out.policy, "deployable": out.policy[:, : mdp.DEPLOYABLE_SIZE], "l2f": out.l2f}
        self._observations = self.with_noise(groups)
        metrics = {"position_error": out.position_error}
        extras = {"time_outs": out.time_outs, "log": stats.log, "episode_metrics": metrics}
        return self._observations, out.reward, out.dones, extras
