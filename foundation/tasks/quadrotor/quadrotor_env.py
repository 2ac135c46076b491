"""Batched quadrotors in torch as RSL-RL's ``VecEnv``: what every task on the built-in simulator shares.

A task says in a subclass what is observed, what a step is worth and what else moves; vehicles, physics, the table of
initial states, episodes, statistics and saving are here.

``step`` copies nothing from the device to the host and has no Python loop over environments. Resets draw from the
environment's own generator: a table of initial states is drawn every ``TABLE_STEPS`` steps, and an environment that
ends takes its own entry of that step, so that no random number depends on which environments ended.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from tensordict import TensorDict

from foundation.accel.uniform import uniform
from foundation.core.errors import UserError
from foundation.tasks.camera.camera import Camera, CameraCfg, check_camera_cfg
from foundation.tasks.camera.scene import Scene
from foundation.tasks.quadrotor import mdp
from foundation.tasks.quadrotor.episode_stats import EpisodeStats, LogNames
from foundation.tasks.quadrotor.perturbations import QUANTITIES, Pushes, control_interval, reward_scale, vary_vehicles
from foundation.tasks.quadrotor.settings import TaskTensors, assign_vehicles, is_disturbed
from foundation.tasks.quadrotor.sim.quadrotor import POSITION, QUATERNION, ROTORS, VELOCITY, QuadrotorDynamics
from foundation.tasks.quadrotor.sim.vehicles import VehicleParams, vehicle_names
from foundation.tasks.quadrotor.view import Part, vehicle_bodies, vehicle_poses

if TYPE_CHECKING:
    import numpy as np

    from foundation.tasks.quadrotor.sim.drawing import FleetRenderer

TABLE_STEPS = 16
"""Steps for which random numbers are drawn at once."""


class Judgement(NamedTuple):
    """What a task says of one step."""

    terms: torch.Tensor
    """Weighted terms of the reward, whose sum is the reward. Shape: (num_terms, num_envs)."""
    exceeded: torch.Tensor
    """Which limit was passed. Shape: (num_limits, num_envs)."""
    terminated: torch.Tensor
    """Whether any was. Shape: (num_envs,)."""
    distance: torch.Tensor
    """What the metric of an episode is the mean of [m]. Shape: (num_envs,)."""


class QuadrotorEnv(ABC):
    """Many quadrotors, one in each environment."""

    num_actions = 4
    metric_units = mdp.METRIC_UNITS
    """Metric of an episode -> (factor, unit) in which it is shown."""
    position_unit = mdp.POSITION_UNIT
    variant_kind = "vehicle"
    perturbations = QUANTITIES
    """What :meth:`perturb` can vary: name -> (unit, nominal value, values to measure at)."""
    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}  # noqa: RUF012 (gymnasium's convention)
    log_names: ClassVar[LogNames]
    """Names of the reward's terms, of the limits and of the metric."""

    def __init__(self, cfg: Any, render_mode: str | None = None):
        """Build the environments and reset them with ``cfg.seed``.

        Args:
            cfg: The task's configuration, already checked: ``scene``, ``sim``, ``decimation``, ``episode_length_s``,
                ``seed``, ``vehicles`` and ``viewer``, beside what the task itself reads; with ``camera``, a
                ``CameraCfg``, the vehicles can have cameras.
            render_mode: Kept for gymnasium.
        """
        if not hasattr(self, "log_names"):
            raise UserError(
                f"{type(self).__name__} has no log_names: set LogNames(reward terms, limits, metric) in the class"
            )
        self.cfg = cfg
        self.render_mode = render_mode
        self.num_envs = cfg.scene.num_envs
        self.device = torch.device(cfg.sim.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device '{self.device}' was asked for, but torch sees no CUDA device: use --device cpu")
        self._dtype = torch.float32
        self._nominal_vehicles, self.vehicle_index = assign_vehicles(cfg.vehicles, self.num_envs, self.device)
        self.variant_index = self.vehicle_index
        self.variant_names = vehicle_names(cfg.vehicles)
        self._disturbed = is_disturbed(self._nominal_vehicles)
        self._limits, self._ranges, self._nominal_weights, self._noise = self.lay_out(self._nominal_vehicles)
        self._renderer: FleetRenderer | None = None
        self._generator = torch.Generator(self.device)
        n = self.num_envs
        d = self.device
        self.episode_length_buf = torch.zeros(n, dtype=torch.long, device=d)
        self._set_physics({})
        self._state = torch.zeros(13 + 4, n, device=d)
        self._action = torch.zeros(4, n, device=d)
        self._disturbance: tuple[torch.Tensor, torch.Tensor] | None = None
        self._forces = torch.zeros(6, n, device=d)
        self.camera = self._mount_camera()
        self.prepare()
        self.reset(cfg.seed)

    def _mount_camera(self) -> Camera | None:
        """Make the cameras that the configuration asks for, in a task whose configuration has ``camera``."""
        if not hasattr(self.cfg, "camera"):
            return None
        cfg: CameraCfg = self.cfg.camera
        check_camera_cfg(cfg)
        if cfg.image == "none":
            return None
        if type(self).scene is QuadrotorEnv.scene:
            raise UserError(
                f"env.camera.image={cfg.image}: {type(self).__name__} has nothing to be seen: give the class a method "
                "scene() that returns a foundation.tasks.camera.scene.Scene, or set env.camera.image=none"
            )
        return Camera(cfg, self.num_envs, self.device)

    # -- physics ----------------------------------------------------------------------------------------------------

    def perturb(self, values: Mapping[str, float]) -> None:
        """Vary the simulation from the next :meth:`reset` on; what is not named is nominal again.

        Args:
            values: Names of :attr:`perturbations` and the values that they take.

        Raises:
            UserError: If the step is compiled, with the nominal parameters in it.
        """
        if getattr(self.cfg, "compile", False):
            raise UserError("env.compile=true: the compiled step has the nominal vehicles in it; leave it out")
        self._set_physics(values)

    def _set_physics(self, values: Mapping[str, float]) -> None:
        """Fold the vehicles, the time step and the reward's weights for a perturbation of the simulation."""
        cfg = self.cfg
        self.vehicles = vary_vehicles(self._nominal_vehicles, values)
        self.dt, self.decimation = control_interval(cfg.sim.dt, cfg.decimation, values)
        self.step_dt = self.dt * self.decimation
        self.max_episode_length = max(1, round(cfg.episode_length_s / self.step_dt))
        scale = reward_scale(self.log_names.rewards, self.step_dt / (cfg.sim.dt * cfg.decimation))
        self._weights = self._nominal_weights * torch.tensor(scale, device=self.device).unsqueeze(1)
        window = max(1, round(1.0 / self.step_dt))
        self._stats = EpisodeStats(self.num_envs, window, cfg.episode_length_s, self.device, self.log_names)
        self._pushes = Pushes.of(values, self.step_dt, self.num_envs, self.device)
        self.make_dynamics()

    def make_dynamics(self) -> None:
        """Make what integrates ``self.vehicles`` by time steps of ``self.dt``."""
        self.dynamics = QuadrotorDynamics(self.vehicles, self.dt)

    # -- what a task says -----------------------------------------------------------------------------------------

    @abstractmethod
    def lay_out(self, vehicles: VehicleParams) -> TaskTensors:
        """Turn the configuration into tensors for the given vehicles, on their device."""

    def prepare(self) -> None:
        """Allocate what the task needs beyond the vehicles, before the first reset."""
        return

    @abstractmethod
    def judge(self, state: torch.Tensor, action: torch.Tensor) -> Judgement:
        """Judge a step.

        Args:
            state: Packed state after the step, before any reset. Shape: (17, num_envs).
            action: The one applied, clamped; ``previous_action`` is the one before it. Shape: (4, num_envs).
        """

    @abstractmethod
    def observe(self) -> dict[str, torch.Tensor]:
        """Build the exact observation groups of the current state, each (num_envs, size)."""

    @property
    @abstractmethod
    def solved_return(self) -> float:
        """The mean return at which the task counts as solved."""

    def draw_task_table(self) -> None:
        """Draw the task's own random numbers of the next ``TABLE_STEPS`` steps; may change the initial states."""
        return

    def begin_task(self, dones: torch.Tensor | None) -> None:
        """Begin the task's own part of new episodes, once the vehicles are in place.

        Args:
            dones: Where; None: everywhere. Shape: (num_envs,).
        """
        return

    def move_others(self, state: torch.Tensor) -> None:
        """Move by one step what moves beside the vehicles, whose new packed state is ``state`` (17, num_envs)."""
        return

    def scene(self) -> Scene:
        """Return what stands around the vehicles in the current state, for cameras and drawings."""
        return Scene()

    def task_metrics(self, metrics: dict[str, torch.Tensor], time_outs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return further metrics of episodes, each (num_envs,), such as ``success``, from those that are known."""
        return {}

    @property
    def table_row(self) -> int:
        """Row of the tables that this step uses."""
        return self._table_row - 1

    @property
    def unwrapped(self) -> QuadrotorEnv:
        """This environment."""
        return self

    # -- resets ---------------------------------------------------------------------------------------------------

    def initial_states(self, drawn: torch.Tensor) -> torch.Tensor:
        """Turn uniform random numbers (numbers per state, ..., num_envs) into initial states (17, ..., num_envs)."""
        return mdp.initial_states(drawn, self._ranges)

    def _draw_table(self) -> None:
        """Draw the initial states of the next ``TABLE_STEPS`` steps."""
        shape = (TABLE_STEPS, self.num_envs)
        self._table = self.initial_states(uniform((mdp.num_uniform(self._ranges), *shape), self._generator))
        self._table_row = 0
        if self._disturbed:
            normal = torch.randn(6, *shape, generator=self._generator, device=self.device, dtype=self._dtype)
            v = self.vehicles
            force = v.force_mean + v.force_std * normal[:3]
            torque = v.torque_mean + v.torque_std * normal[3:]
            self._force_table = torch.cat([force, torque])
        self.draw_task_table()

    def _take_initial(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take this step's row of the table: states (17, num_envs) and, where disturbed, forces (6, num_envs)."""
        if self._table_row == TABLE_STEPS:
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
            if self._pushes is not None:
                self._pushes.restart(seed)
            if seed is not None:
                self._generator.manual_seed(seed)
                if self.camera is not None:
                    self.camera.seed(seed)
            elif not hasattr(self, "_table"):
                self._generator.seed()
            self._draw_table()
            state, forces = self._take_initial()
            self._state = state.clone()
            if forces is not None:
                self._forces = forces.clone()
                self._disturbance = self.dynamics.disturb(self._forces[:3], self._forces[3:])
            self._action = self._state[ROTORS] * 2.0 - 1.0
            self.begin_task(None)
            self.episode_length_buf = torch.zeros_like(self.episode_length_buf)
            self._stats.clear()
            self._observations = self.with_noise(self.observe() | self._see(None))
            return self._observations

    # -- stepping -------------------------------------------------------------------------------------------------

    def integrate(self, state: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """Integrate the physics over one action; pure and differentiable.

        Args:
            state: Packed state. Shape: (17, num_envs).
            actions: In [-1, 1]. Shape: (4, num_envs).

        Returns:
            The next state, before any reset. Shape: (17, num_envs).
        """
        for _ in range(self.decimation):
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
        state = self._state
        if self._pushes is not None:
            state = self._pushes(state, self.episode_length_buf)
        state = self.integrate(state, action)
        self.move_others(state)
        judged = self.judge(state, action)
        reward = judged.terms.sum(0)
        self.episode_length_buf = self.episode_length_buf + 1
        time_outs = (self.episode_length_buf >= self.max_episode_length) & ~judged.terminated
        dones = judged.terminated | time_outs
        metrics = self._stats.add(judged.terms, judged.distance, judged.exceeded, time_outs, dones)
        metrics |= self.task_metrics(metrics, time_outs)
        self._begin_episodes(state, action, dones)
        self._observations = self.with_noise(self.observe() | self._see(dones))
        extras = {"time_outs": time_outs, "log": self._stats.log, "episode_metrics": metrics}
        return self._observations, reward, dones.to(torch.long), extras

    def _begin_episodes(self, state: torch.Tensor, action: torch.Tensor, dones: torch.Tensor) -> None:
        """Put the environments that ended into new initial states."""
        initial, forces = self._take_initial()
        self._state = torch.where(dones, initial, state)
        self._action = torch.where(dones, initial[ROTORS] * 2.0 - 1.0, action)
        self.episode_length_buf = self.episode_length_buf * ~dones
        if forces is not None:
            self._forces = torch.where(dones, forces, self._forces)
            self._disturbance = self.dynamics.disturb(self._forces[:3], self._forces[3:])
        self.begin_task(dones)

    def _see(self, began: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Return the group ``camera``, (num_envs, channels, height, width), where there is a camera.

        Args:
            began: Where an episode has just begun; None: everywhere. Shape: (num_envs,).
        """
        if self.camera is None:
            return {}
        state = self._state
        return {"camera": self.camera.observe(state[POSITION], state[QUATERNION], self.scene(), began)}

    def with_noise(self, groups: dict[str, torch.Tensor]) -> TensorDict:
        """Add the noise of the groups that have one."""
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
        """The packed simulator state (see ``foundation.tasks.quadrotor.sim.quadrotor``). Shape: (17, num_envs)."""
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

    def take_initial(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Take them with their forces and torques, (6, num_envs), or None where no vehicle is pushed."""
        return self._take_initial()

    def seed(self, seed: int = -1) -> int:
        """Restart the generator; used by gymnasium-style callers."""
        self._generator.manual_seed(seed)
        return seed

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides what happens next, as copies, on the CPU."""
        tensors = {name: getattr(self, name).detach().cpu().clone() for name in self._TENSORS}
        numbers = {"table_row": self._table_row, "num_envs": self.num_envs}
        groups = {name: value.cpu().clone() for name, value in self._observations.items()}
        if self._disturbed:
            tensors["_force_table"] = self._force_table.cpu().clone()
        generator = self._generator.get_state()
        saved = {"tensors": tensors, "stats": self._stats.state_dict(), "observations": groups, "generator": generator}
        if self.camera is not None:
            saved["camera"] = self.camera.state_dict()
        return saved | numbers

    _TENSORS = ("_state", "_action", "_forces", "_table", "episode_length_buf")

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on exactly where :meth:`state_dict` was taken."""
        if saved["num_envs"] != self.num_envs:
            raise UserError(
                f"the saved environment state has {saved['num_envs']} environments, this one has {self.num_envs}: "
                f"use --num_envs {saved['num_envs']}"
            )
        own = self.state_dict()
        for kind in ("tensors", "observations"):
            for name, value in own[kind].items():
                found = saved[kind].get(name)
                if found is None or found.shape != value.shape or found.dtype != value.dtype:
                    size = "none" if found is None else list(found.shape)
                    raise UserError(f"the saved environment state has another '{name}': {size}")
        for name in own["tensors"]:
            setattr(self, name, saved["tensors"][name].to(self.device).clone())
        self._observations = TensorDict(
            {name: saved["observations"][name].to(self.device).clone() for name in own["observations"]},
            batch_size=[self.num_envs],
            device=self.device,
        )
        self._generator.set_state(saved["generator"].cpu())
        self._stats.load_state_dict(saved["stats"])
        if self.camera is not None:
            self.camera.load_state_dict(saved["camera"])
        self._table_row = max(0, int(saved["table_row"]))
        if self._disturbed:
            self._disturbance = self.dynamics.disturb(self._forces[:3], self._forces[3:])

    def renderer_options(self) -> dict[str, Any]:
        """Return further arguments of ``FleetRenderer``."""
        return {}

    def drawn_others(self, num_shown: int) -> torch.Tensor | None:
        """Return where what moves beside the first vehicles is drawn, (num_shown, 3), or None where nothing does."""
        return None

    def render(self) -> np.ndarray:
        """Draw the first vehicles. Shape: (height, width, 3), uint8."""
        from foundation.tasks.quadrotor.sim.drawing import FleetRenderer

        if self._renderer is None:
            camera = self.camera
            self._renderer = FleetRenderer(
                num_shown=min(self.cfg.viewer.num_envs, self.num_envs),
                extent=self._limits[0].cpu().numpy(),
                arm_length=self.vehicles.arm_length.cpu().numpy(),
                resolution=self.cfg.viewer.resolution,
                image_title="" if camera is None else f"{camera.cfg.image}, {camera.cfg.width} x {camera.cfg.height}",
                **self.renderer_options(),
            )
        shown = self._renderer.num_shown
        seconds = self.episode_length_buf[:shown].cpu().numpy() * self.step_dt
        others = self.drawn_others(shown)
        return self._renderer.draw(
            self._state[:, :shown].T.cpu().numpy(),
            seconds,
            None if others is None else others.cpu().numpy(),
            self._drawn_solids(shown),
            None if self.camera is None else self.camera.picture(self._observations["camera"][:shown]),
        )

    def _drawn_solids(self, num_shown: int) -> dict[str, np.ndarray]:
        """Return the solids around the first vehicles, by kind, each (num_shown, num_solids, numbers of a solid)."""
        scene = self.scene().select(slice(0, num_shown))
        kinds = {"sphere": scene.spheres, "pillar": scene.pillars, "frame": scene.frames}
        return {kind: part.permute(2, 0, 1).cpu().numpy() for kind, part in kinds.items() if part is not None}

    @property
    def view_bodies(self) -> dict[str, list[Part]]:
        """What ``play.py --viewer`` draws: the vehicle, and its target or what else moves."""
        return vehicle_bodies(self.vehicles, self._limits)

    def view_poses(self) -> dict[str, torch.Tensor]:
        """Return where vehicles and targets are, each (num_envs, 7)."""
        return vehicle_poses(self._state[POSITION], self._state[QUATERNION], self.drawn_others(self.num_envs))

    def push(self, velocity: torch.Tensor) -> None:
        """Change the velocities of the vehicles at once [m/s, world frame]. Shape: (num_envs, 3)."""
        self._state = self._state.clone()
        self._state[VELOCITY] += velocity.T

    def close(self) -> None:
        """Let go of the renderer."""
        self._renderer = None
