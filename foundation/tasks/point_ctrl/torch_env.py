"""The point-control task on the built-in simulator: RSL-RL's ``VecEnv`` in batched torch.

``step`` copies nothing from the device to the host and has no Python loop over environments. Resets draw from the
environment's own generator: a table of initial states is drawn every ``_TABLE_STEPS`` steps, and an environment that
ends takes its own entry of that step, so that no random number depends on who ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tensordict import TensorDict

from foundation.errors import UserError
from foundation.sim.quadrotor import BODY_RATES, POSITION, QUATERNION, ROTORS, VELOCITY, QuadrotorDynamics
from foundation.sim.vehicles import crazyflie, load_vehicles
from foundation.tasks.point_ctrl import mdp
from foundation.tasks.point_ctrl.env_cfg import NoiseCfg, QuadcopterPointCtrlEnvCfg

if TYPE_CHECKING:
    import numpy as np

    from foundation.sim.drawing import FleetRenderer

__all__ = ["QuadcopterPointCtrlEnv", "QuadcopterPointCtrlEnvCfg"]

_TABLE_STEPS = 16


class QuadcopterPointCtrlEnv:
    """Many quadrotors, each flying to its target."""

    num_actions = 4
    position_fields = mdp.POSITION_FIELDS
    """Observation group -> (first column of the position error, its frame: ``body`` or ``world``)."""
    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012 (gymnasium's convention)

    def __init__(self, cfg: QuadcopterPointCtrlEnvCfg | None = None, render_mode: str | None = None):
        """Build the environments and reset them with ``cfg.seed``."""
        self.cfg = cfg = cfg or QuadcopterPointCtrlEnvCfg()
        _check_cfg(cfg)
        self.render_mode = render_mode
        self.num_envs = cfg.scene.num_envs
        self.device = torch.device(cfg.sim.device)
        self.step_dt = cfg.sim.dt * cfg.decimation
        self.max_episode_length = max(1, round(cfg.episode_length_s / self.step_dt))
        self._dtype = torch.float32
        self._build_vehicles()
        self._build_mdp()
        self._renderer: FleetRenderer | None = None
        self._generator = torch.Generator(self.device)
        n, d = self.num_envs, self.device
        self.episode_length_buf = torch.zeros(n, dtype=torch.long, device=d)
        self._window = max(1, round(1.0 / self.step_dt))
        """Steps of the last second of an episode."""
        self._sums = torch.zeros(len(mdp.REWARD_TERMS) + 2, n, device=d)
        """Per environment and episode: reward terms, distance, steps."""
        self._distance_sums = torch.zeros(self._window, n, device=d)
        """The distance's running sum, one row per step of the last second."""
        self._log = torch.zeros(len(self._log_names), device=d)
        self._state = torch.zeros(13 + 4, n, device=d)
        self._action = torch.zeros(4, n, device=d)
        self._disturbance: tuple[torch.Tensor, torch.Tensor] | None = None
        self._forces = torch.zeros(6, n, device=d)
        self._advance = torch.compile(self._advance_eager) if cfg.compile else self._advance_eager
        self.reset(cfg.seed)

    def _build_vehicles(self) -> None:
        """Give every environment its vehicle."""
        cfg = self.cfg
        fleet = crazyflie() if cfg.vehicles is None else load_vehicles(cfg.vehicles)
        if fleet.num_rotors != self.num_actions:
            raise UserError(f"env.vehicles: this task flies vehicles with 4 rotors, not {fleet.num_rotors}")
        self.num_vehicles = fleet.num_vehicles
        self.vehicle_index = torch.arange(self.num_envs) % fleet.num_vehicles
        """Which vehicle each environment flies. Shape: (num_envs,)."""
        self.vehicles = fleet.select(self.vehicle_index).to(self.device, self._dtype)
        self.vehicle_index = self.vehicle_index.to(self.device)
        self.dynamics = QuadrotorDynamics(self.vehicles, cfg.sim.dt)
        v = self.vehicles
        self._disturbed = any(bool((x != 0).any()) for x in (v.force_mean, v.force_std, v.torque_mean, v.torque_std))

    def _build_mdp(self) -> None:
        """Lay out limits, ranges, weights and noise as tensors."""
        cfg, limits = self.cfg, self.cfg.terminations
        arms = self.vehicles.arm_length if cfg.vehicles is not None else None
        ones = torch.ones(self.num_envs, device=self.device)
        reach = ones * limits.position if arms is None else arms * limits.position_arms
        rows = [reach, ones * limits.velocity, ones * limits.body_rate]
        self._limits = torch.stack(rows).repeat_interleave(3, 0)
        init = cfg.init
        self._ranges = mdp.InitialRanges(
            position=ones * init.position if arms is None else arms * init.position_arms,
            max_angle=init.max_angle,
            max_velocity=init.max_velocity,
            max_body_rate=init.max_body_rate,
            rotor_speed=(float(init.rotor_speed[0]), float(init.rotor_speed[1])),
            at_target=init.at_target,
        )
        self._weights = mdp.reward_weights(**vars(cfg.rewards), dtype=self._dtype, device=self.device)
        noise = cfg.observation_noise
        self._noise = {
            group: scale
            for group, part in (("deployable", noise.deployable), ("l2f", noise.l2f))
            if (scale := mdp.noise_scale(**vars(part), device=self.device)) is not None
        }
        self._log_names = [f"Episode_Reward/{name}" for name in mdp.REWARD_TERMS]
        self._log_names += [f"Episode_Termination/{name}" for name in (*mdp.TERMINATION_TERMS, "time_out")]
        self._log_names += ["Metrics/position_error", "Metrics/episode_length"]

    @property
    def unwrapped(self) -> QuadcopterPointCtrlEnv:
        """This environment."""
        return self

    # -- resets ---------------------------------------------------------------------------------------------------

    def _draw_table(self) -> None:
        """Draw the initial states of the next ``_TABLE_STEPS`` steps."""
        shape = (_TABLE_STEPS, self.num_envs)
        uniform = torch.rand(
            mdp.num_uniform(self._ranges), *shape, generator=self._generator, device=self.device, dtype=self._dtype
        )
        self._table = mdp.initial_states(uniform, self._ranges)
        self._table_row = 0
        if self._disturbed:
            normal = torch.randn(6, *shape, generator=self._generator, device=self.device, dtype=self._dtype)
            v = self.vehicles
            force = v.force_mean + v.force_std * normal[:3]
            torque = v.torque_mean + v.torque_std * normal[3:]
            self._force_table = torch.cat([force, torque])

    def _take_initial(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take this step's row of the table: states (17, num_envs) and, where disturbed, forces (6, num_envs)."""
        if self._table_row == _TABLE_STEPS:
            self._draw_table()
        row = self._table_row
        self._table_row += 1
        return self._table[:, row], self._force_table[:, row] if self._disturbed else None

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment.

        Args:
            seed: Restart the environment's generator with it; the same seed gives the same numbers from here on.

        Returns:
            Observation groups.
        """
        with torch.no_grad():
            if seed is not None:
                self._generator.manual_seed(seed)
            elif not hasattr(self, "_table"):
                self._generator.seed()
            self._draw_table()
            state, forces = self._take_initial()
            self._state = state.clone()
            if forces is not None:
                self._forces = forces.clone()
                self._disturbance = self.dynamics.disturb(self._forces[:3], self._forces[3:])
            self._action = self._state[ROTORS] * 2.0 - 1.0
            self.episode_length_buf = torch.zeros_like(self.episode_length_buf)
            for buffer in (self._sums, self._distance_sums, self._log):
                buffer.zero_()
            self._window_row = 0
            self._observations = self._observe()
            return self._observations

    # -- stepping -------------------------------------------------------------------------------------------------

    def _advance_eager(self, state: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Integrate over one action. Shapes: (17, num_envs), (4, num_envs)."""
        for _ in range(self.cfg.decimation):
            state = self.dynamics.step(state, actions, self._disturbance)
        return state

    @torch.no_grad()
    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance every environment; those that end begin a new episode at once.

        A NaN among the actions is carried into the state and the reward of its environment, for the caller to see.

        Args:
            actions: Motor commands, clamped to [-1, 1]. Shape: (num_envs, 4).

        Returns:
            Observation groups, fresh tensors (``deployable`` may share memory with ``policy``); rewards (num_envs,);
            dones (num_envs,), 1 where an episode ended; extras with ``time_outs``, ``log`` and ``episode_metrics``.
        """
        action = actions.to(self.device, self._dtype).clamp(-1.0, 1.0).T.contiguous()
        state = self._advance(self._state, action)
        exceeded = mdp.terminations(state[:9], self._limits)
        terminated = exceeded.any(0)
        terms = mdp.reward_terms(state[POSITION], state[QUATERNION], action, self._action, terminated, self._weights)
        reward = terms.sum(0)
        self.episode_length_buf = self.episode_length_buf + 1
        time_outs = (self.episode_length_buf >= self.max_episode_length) & ~terminated
        dones = terminated | time_outs
        metrics = self._account(state, terms, exceeded, time_outs, dones)
        self._begin_episodes(state, action, dones)
        self._observations = self._observe()
        extras = {
            "time_outs": time_outs,
            "log": dict(zip(self._log_names, self._log.unbind(), strict=True)),
            "episode_metrics": metrics,
        }
        return self._observations, reward, dones.to(torch.long), extras

    def _account(
        self,
        state: torch.Tensor,
        terms: torch.Tensor,
        exceeded: torch.Tensor,
        time_outs: torch.Tensor,
        dones: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Sum up the episodes, and average over those that ended; where none did, the last averages stand."""
        distance = terms[1:2] / self._weights[1] if self.cfg.rewards.position else _norm(state[POSITION])
        self._sums += torch.cat([terms, distance, torch.ones_like(distance)])
        total, steps = self._sums[-2], self._sums[-1]
        row = self._distance_sums[self._window_row]
        self._window_row = (self._window_row + 1) % self._window
        before = torch.where(steps > self._window, row, 0.0)
        error = (total - before) / steps.clamp(max=self._window)
        row.copy_(total)
        done = dones.to(self._dtype)
        count = done.sum()
        rows = torch.cat(
            [self._sums[:-2] / self.cfg.episode_length_s, exceeded, time_outs.unsqueeze(0), torch.stack([error, steps])]
        )
        self._log = torch.where(count > 0, (rows @ done) / count.clamp(min=1.0), self._log)
        self._sums.masked_fill_(dones, 0.0)
        return {"position_error": error}

    def _begin_episodes(self, state: torch.Tensor, action: torch.Tensor, dones: torch.Tensor) -> None:
        """Put the environments that ended into new initial states."""
        initial, forces = self._take_initial()
        self._state = torch.where(dones, initial, state)
        self._action = torch.where(dones, initial[ROTORS] * 2.0 - 1.0, action)
        self.episode_length_buf = self.episode_length_buf * ~dones
        if forces is not None:
            self._forces = torch.where(dones, forces, self._forces)
            self._disturbance = self.dynamics.disturb(self._forces[:3], self._forces[3:])

    def _observe(self) -> TensorDict:
        """Build the observation groups of the current state."""
        s = self._state
        groups = mdp.observations(s[POSITION], s[VELOCITY], s[BODY_RATES], s[QUATERNION], self._action, s[ROTORS])
        for group, scale in self._noise.items():
            clean = groups[group]
            noise = torch.randn(clean.shape, generator=self._generator, device=self.device, dtype=self._dtype)
            groups[group] = torch.addcmul(clean, scale, noise)
        return TensorDict(groups, batch_size=[self.num_envs], device=self.device)

    def get_observations(self) -> TensorDict:
        """Return the observation groups of the last step or reset (noise is not drawn again)."""
        return self._observations

    # -- the rest of an environment's life --------------------------------------------------------------------------

    @property
    def state(self) -> torch.Tensor:
        """The packed simulator state (see ``foundation.sim.quadrotor``). Shape: (17, num_envs)."""
        return self._state

    @property
    def previous_action(self) -> torch.Tensor:
        """Last applied action. Shape: (4, num_envs)."""
        return self._action

    @property
    def limits(self) -> torch.Tensor:
        """Termination limits of position, velocity and body rates, per axis. Shape: (9, num_envs)."""
        return self._limits

    @property
    def reward_weights(self) -> torch.Tensor:
        """Weights in the order of ``mdp.REWARD_TERMS``. Shape: (5, 1)."""
        return self._weights

    @property
    def generator(self) -> torch.Generator:
        """The environment's own source of random numbers."""
        return self._generator

    def take_initial_states(self) -> torch.Tensor:
        """Take one fresh initial state per environment from the generator. Shape: (17, num_envs)."""
        return self._take_initial()[0]

    def seed(self, seed: int = -1) -> int:
        """Restart the generator; used by gymnasium-style callers."""
        self._generator.manual_seed(seed)
        return seed

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides what happens next, as copies, on the CPU."""
        tensors = {name: getattr(self, name).detach().cpu().clone() for name in self._TENSORS}
        numbers = {"table_row": self._table_row, "window_row": self._window_row, "num_envs": self.num_envs}
        groups = {name: value.cpu().clone() for name, value in self._observations.items()}
        if self._disturbed:
            tensors["_force_table"] = self._force_table.cpu().clone()
        return {"tensors": tensors, "observations": groups, "generator": self._generator.get_state(), **numbers}

    _TENSORS = (
        "_state", "_action", "_forces", "_table", "_sums", "_distance_sums", "_log", "episode_length_buf"
    )  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        if saved["num_envs"] != self.num_envs:
            raise UserError(
                f"the saved environment state has {saved['num_envs']} environments, this one has {self.num_envs}: "
                f"use --num_envs {saved['num_envs']}"
            )
        for name, value in saved["tensors"].items():
            setattr(self, name, value.to(self.device).clone())
        self._observations = TensorDict(
            {name: value.to(self.device).clone() for name, value in saved["observations"].items()},
            batch_size=[self.num_envs],
            device=self.device,
        )
        self._generator.set_state(saved["generator"].cpu())
        self._table_row, self._window_row = int(saved["table_row"]), int(saved["window_row"])
        if self._disturbed:
            self._disturbance = self.dynamics.disturb(self._forces[:3], self._forces[3:])

    def render(self) -> np.ndarray:
        """Draw the first vehicles. Shape: (height, width, 3), uint8."""
        from foundation.sim.drawing import FleetRenderer

        if self._renderer is None:
            self._renderer = FleetRenderer(
                num_shown=min(self.cfg.viewer.num_envs, self.num_envs),
                extent=self._limits[0].cpu().numpy(),
                arm_length=self.vehicles.arm_length.cpu().numpy(),
                resolution=self.cfg.viewer.resolution,
            )
        shown = self._renderer.num_shown
        seconds = self.episode_length_buf[:shown].cpu().numpy() * self.step_dt
        return self._renderer.draw(self._state[:, :shown].T.cpu().numpy(), seconds)

    def close(self) -> None:
        """Let go of the renderer."""
        self._renderer = None


def _norm(x: torch.Tensor) -> torch.Tensor:
    """Euclidean norm over components. Shape: (3, num_envs) -> (1, num_envs)."""
    return x.square().sum(0, keepdim=True).sqrt()


def _check_cfg(cfg: QuadcopterPointCtrlEnvCfg) -> None:
    """Refuse values that no simulation can have."""
    positive = {
        "env.scene.num_envs": cfg.scene.num_envs,
        "env.sim.dt": cfg.sim.dt,
        "env.decimation": cfg.decimation,
        "env.episode_length_s": cfg.episode_length_s,
        "env.terminations.position": cfg.terminations.position,
        "env.terminations.position_arms": cfg.terminations.position_arms,
        "env.terminations.velocity": cfg.terminations.velocity,
        "env.terminations.body_rate": cfg.terminations.body_rate,
    }
    for name, value in positive.items():
        if not value > 0:
            raise UserError(f"{name} must be positive, it is {value}")
    low, high = cfg.init.rotor_speed
    if not 0 <= low <= high <= 1:
        raise UserError(f"env.init.rotor_speed must be a range within [0, 1], it is {cfg.init.rotor_speed}")
    if not 0 <= cfg.init.at_target <= 1:
        raise UserError(f"env.init.at_target must be within [0, 1], it is {cfg.init.at_target}")
    noises: dict[str, NoiseCfg] = {"deployable": cfg.observation_noise.deployable, "l2f": cfg.observation_noise.l2f}
    for group, noise in noises.items():
        for component, value in vars(noise).items():
            if not value >= 0:
                raise UserError(f"env.observation_noise.{group}.{component} must not be negative, it is {value}")
    device = str(cfg.sim.device)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device '{device}' was asked for, but torch sees no CUDA device here: use --device cpu")
