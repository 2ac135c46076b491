"""The point-control task on the built-in simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import TensorDict

from foundation.accel.compiled import CompiledFunction
from foundation.core.errors import UserError
from foundation.tasks.quadrotor import mdp
from foundation.tasks.quadrotor.compiled_step import PureStep, StepResult, StepState, step_settings, unflatten
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg, check_cfg
from foundation.tasks.quadrotor.episode_stats import POINT_CTRL
from foundation.tasks.quadrotor.quadrotor_env import TABLE_STEPS, Judgement, QuadrotorEnv
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
    traced_groups = ("policy", "l2f")
    traced_metrics = ("position_error",)

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
        self.pure_step: PureStep | None = None
        """The step as a function of tensors, where it is compiled."""
        if self.cfg.compile:
            self._refuse_own_methods()
            settings = step_settings(self.cfg, self.dynamics, self._limits, self._weights, self.max_episode_length)
            self.pure_step = PureStep(settings)
            self._advance = CompiledFunction(self.pure_step.flat, self.device)
            self._compiled_states = CompiledFunction(self._flat_states, self.device)

    def _flat_states(self, drawn: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor]:
        """Turn random numbers into initial states, from tensors alone, which is what is compiled."""
        return (mdp.initial_states(drawn, self._ranges._replace(position=position)),)

    def initial_states(self, drawn: torch.Tensor) -> torch.Tensor:
        """Turn uniform random numbers into initial states (see ``QuadrotorEnv.initial_states``)."""
        # What is compiled reads memory as a table of these sizes has it.
        is_table = drawn.shape[1:] == (TABLE_STEPS, self.num_envs) and drawn.is_contiguous()
        if self.pure_step is None or not is_table:
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
        if self.pure_step is None:
            return super().step(actions)
        # The compiled function reads memory as it was laid out at first, and callers may hand over what they like.
        actions = actions.to(self.device, self._dtype).reshape(self.num_envs, self.num_actions).contiguous()
        after, out = unflatten(self._advance(actions, *self.step_inputs()))
        self.take_state((out.total_distance, *after))
        obs = self.take_observations({"policy": out.policy, "l2f": out.l2f})
        return obs, out.reward, out.dones, {"log": self._stats.log, **_extras(out)}

    # -- the step as a function of tensors (see ``engines.traced.TracedEnv``) ----------------------------------------

    @property
    def is_traced(self) -> bool:
        """Whether the step can be compiled with what acts in it."""
        own_step = type(self).step is not QuadcopterPointCtrlEnv.step
        return self.pure_step is not None and not own_step and not self._noise and self.camera is None

    def step_inputs(self) -> tuple[torch.Tensor, ...]:
        """Begin a step, and return what :meth:`trace_step` takes beside the actions."""
        assert self.pure_step is not None
        initial, forces = self._take_initial()
        stats = self._stats
        length = self.episode_length_buf.to(self.device, torch.long).reshape(self.num_envs).contiguous()
        pushed = None if forces is None else self._forces
        before = StepState(self._state, self._action, length, stats.sums, stats.latest, pushed)
        return self.pure_step.inputs(before, initial, forces, stats.second_ago)

    def trace_step(
        self, actions: torch.Tensor, inputs: Sequence[torch.Tensor]
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, dict[str, Any], tuple[torch.Tensor, ...]]:
        """Advance, changing nothing: observation groups, rewards, dones, extras and the state."""
        assert self.pure_step is not None
        after, out = self.pure_step(actions, *inputs)
        kept = tuple(part for part in after if part is not None)
        return {"policy": out.policy, "l2f": out.l2f}, out.reward, out.dones, _extras(out), (out.total_distance, *kept)

    def groups(self, obs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return all observation groups of those that :meth:`trace_step` returns."""
        return {"policy": obs["policy"], "deployable": obs["policy"][:, : mdp.DEPLOYABLE_SIZE], "l2f": obs["l2f"]}

    def take_state(self, after: Sequence[torch.Tensor | None]) -> None:
        """Go on from the state that :meth:`trace_step` has returned."""
        total, *parts = after
        state = StepState(*parts)  # pyright: ignore[reportArgumentType] (all but the forces are there)
        self._state = state.state
        self._action = state.action
        self.episode_length_buf = state.length
        self._stats.replace(state.sums, state.log, total)  # pyright: ignore[reportArgumentType]
        if state.forces is not None:
            self._forces = state.forces

    def take_observations(self, obs: Mapping[str, torch.Tensor]) -> TensorDict:
        """Go on from the groups that :meth:`trace_step` has returned, and return all."""
        self._observations = self.with_noise(self.groups(obs))
        return self._observations

    @property
    def episode_log(self) -> dict[str, torch.Tensor]:
        """What the last step's extras have under ``log``."""
        return self._stats.log


def _extras(out: StepResult) -> dict[str, Any]:
    return {"time_outs": out.time_outs, "episode_metrics": {"position_error": out.position_error}}
