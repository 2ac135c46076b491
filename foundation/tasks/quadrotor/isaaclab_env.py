"""The point-control task in Isaac Lab (3.0): a ``DirectRLEnv`` around the same maths as the built-in simulator's.

The physics engine integrates the rigid body; rotors, forces and the task are ours. Two things make it agree with the
RK4 simulator to a fraction of a millimetre per second of flight:

* Solvers of this kind are semi-implicit: velocity first, then the pose by the new velocity. Read as a leapfrog scheme,
  which is of second order, the solver's pose is half a physics step ahead of its velocity. So poses are written half a
  step ahead and read half a step back, and a force that turns with the body is applied at its middle attitude.
* The gyroscopic torque is taken by the solver at the rates of the step's beginning; the torque that we add makes it
  that of the step's middle.
"""

# Isaac Lab has an environment of its own, so a type checker may not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any

import isaaclab.sim as sim_utils
import torch
from isaaclab.assets import AssetBaseCfg, RigidObject, RigidObjectCfg
from isaaclab.envs import DirectRLEnv, DirectRLEnvCfg
from isaaclab.scene import InteractiveSceneCfg
from isaaclab.sim import SimulationCfg
from isaaclab.utils import configclass
from isaaclab.visualizers import VisualizerCfg
from isaaclab_newton.physics import MJWarpSolverCfg, NewtonCfg
from isaaclab_physx.physics import PhysxCfg
from isaaclab_tasks.utils import PresetCfg

from foundation.tasks.quadrotor import mdp
from foundation.tasks.quadrotor.env_cfg import InitCfg, ObservationNoiseCfg, RewardsCfg, TerminationsCfg, check_cfg
from foundation.tasks.quadrotor.episode_stats import EpisodeStats
from foundation.tasks.quadrotor.perturbations import QUANTITIES, Pushes, vary_vehicles
from foundation.tasks.quadrotor.rotor_wrench import RotorWrench
from foundation.tasks.quadrotor.settings import assign_vehicles, task_tensors
from foundation.tasks.quadrotor.sim.rows import norm
from foundation.tasks.quadrotor.sim.vehicles import vehicle_names
from foundation.tasks.quadrotor.view import Part, vehicle_bodies, vehicle_poses

_USD = Path(__file__).parents[2] / "assets" / "quadrotor.usda"


@configclass
class PhysicsPresetCfg(PresetCfg):
    """Physics engines to choose from (``physics=physx``)."""

    default: NewtonCfg = NewtonCfg(
        solver_cfg=MJWarpSolverCfg(iterations=1, ls_iterations=5, disable_contacts=True, njmax=1, nconmax=1)
    )
    """Newton with the MuJoCo-Warp solver, without constraints or contacts: there is nothing to touch.

    ``njmax=0`` would halve the cost, but the solver's Euler step then never moves the body.
    """
    newton_mjwarp: NewtonCfg = default
    """The same by its usual name."""
    physx: PhysxCfg = PhysxCfg()
    """PhysX, with Isaac Sim."""


@configclass
class QuadcopterSceneCfg(InteractiveSceneCfg):
    """One quadrotor per environment, and a light."""

    robot: RigidObjectCfg = RigidObjectCfg(
        prim_path="/World/envs/env_.*/Robot", spawn=sim_utils.UsdFileCfg(usd_path=str(_USD))
    )
    """The vehicle."""
    light: AssetBaseCfg = AssetBaseCfg(prim_path="/World/Light", spawn=sim_utils.DomeLightCfg(intensity=2000.0))
    """For cameras."""


@configclass
class QuadcopterPointCtrlIsaacEnvCfg(DirectRLEnvCfg):
    """A quadrotor flies to a point and stays."""

    decimation: int = 5
    """Physics steps per action. One step of 0.01 s stays within a millimetre per second of flight too, at a fifth of
    the cost: ``env.sim.dt=0.01 env.decimation=1``."""
    episode_length_s: float = 5.0
    """Length of an episode [s]."""
    action_space: int = 4
    """Motor commands in [-1, 1]."""
    observation_space: int = mdp.POLICY_SIZE
    """The ``policy`` group."""
    state_space: int = 0
    """No separate critic group."""
    sim: SimulationCfg = SimulationCfg(
        dt=0.002,
        render_interval=5,
        physics=PhysicsPresetCfg(),  # pyright: ignore[reportArgumentType]  (resolved when the task is loaded)
        default_visualizer_cfg=VisualizerCfg(eye=(1.6, -1.6, 0.9), lookat=(0.0, 0.0, 0.0)),
    )
    """Physics."""
    scene: InteractiveSceneCfg = QuadcopterSceneCfg(num_envs=512, env_spacing=1.0)
    """Environments."""
    vehicles: str | list[str] | None = None
    """Vehicle files in l2f's JSON form: a file, a folder, ``sampled:<n>[:<seed>]``, or a list of such; environment i
    flies vehicle ``i % number``. None: the Crazyflie."""
    init: InitCfg = field(default_factory=InitCfg)
    """Initial states."""
    rewards: RewardsCfg = field(default_factory=RewardsCfg)
    """Reward weights."""
    terminations: TerminationsCfg = field(default_factory=TerminationsCfg)
    """Limits."""
    observation_noise: ObservationNoiseCfg = field(default_factory=ObservationNoiseCfg)
    """Observation noise of the groups that students read (default none)."""

    def count_variants(self) -> int:
        """Return how many vehicles there are; 0 for the Crazyflie alone."""
        return len(vehicle_names(self.vehicles))

    def variants_key(self) -> str:
        """Return the name of the field that takes one file per vehicle, such as those of many teachers."""
        return "vehicles"


@configclass
class QuadcopterPointCtrlIsaacEnvCfg_PLAY(QuadcopterPointCtrlIsaacEnvCfg):  # noqa: N801 (Isaac Lab's name for it)
    """The same with few environments."""

    scene: InteractiveSceneCfg = QuadcopterSceneCfg(num_envs=64, env_spacing=1.0)
    """Environments."""


class QuadcopterPointCtrlIsaacEnv(DirectRLEnv):
    """Many quadrotors, each flying to the centre of its environment."""

    cfg: QuadcopterPointCtrlIsaacEnvCfg
    position_fields = mdp.POSITION_FIELDS
    """Observation group -> (first column of the position error, its frame: ``body`` or ``world``)."""
    action_fields = mdp.ACTION_FIELDS
    rotation_fields = mdp.ROTATION_FIELDS
    """Observation group -> first column of the rotation matrix, body to world, row by row."""
    metric_units = mdp.METRIC_UNITS
    """Metric of an episode -> (factor, unit) in which it is shown."""
    position_unit = mdp.POSITION_UNIT
    variant_kind = "vehicle"
    perturbations = {name: QUANTITIES[name] for name in ("mass", "inertia", "gravity", "push")}  # noqa: RUF012
    """What :meth:`perturb` can vary: name -> (unit, nominal value, values to measure at)."""

    def __init__(self, cfg: QuadcopterPointCtrlIsaacEnvCfg, render_mode: str | None = None, **kwargs: object):
        """Build the scene and give every environment its vehicle."""
        check_cfg(cfg)
        super().__init__(cfg, render_mode, **kwargs)
        self._robot: RigidObject = self.scene["robot"]
        n = self.num_envs
        device = self.device
        self.vehicles, self.vehicle_index = assign_vehicles(cfg.vehicles, n, device)
        self.variant_index = self.vehicle_index
        self.variant_names = vehicle_names(cfg.vehicles)
        self._nominal_vehicles = self.vehicles
        self._pushes: Pushes | None = None
        self._rotors = RotorWrench(self.vehicles, cfg.sim.dt)
        self._set_body()
        self._limits, self._ranges, self._weights, self._noise = task_tensors(cfg, self.vehicles)
        window = max(1, round(1.0 / self.step_dt))
        self._stats = EpisodeStats(n, window, cfg.episode_length_s, device)
        # Pose and motion at the end of the last step (or of the reset), components first.
        self._position, self._velocity, self._body_rates = (torch.zeros(3, n, device=device) for _ in range(3))
        self._quaternion = torch.zeros(4, n, device=device)
        self._speeds, self._action, self._previous = (torch.zeros(4, n, device=device) for _ in range(3))
        self._outer_force, self._outer_torque = (torch.zeros(3, n, device=device) for _ in range(2))

    def _set_body(self) -> None:
        """Write each vehicle's mass and inertia into the simulator."""
        v = self.vehicles
        n = self.num_envs
        self._inertia = v.inertia
        self._inverse_inertia = torch.linalg.inv(v.inertia.permute(2, 0, 1)).permute(1, 2, 0).contiguous()
        self._robot.set_masses_index(masses=v.mass.view(n, 1).contiguous())
        self._robot.set_inertias_index(inertias=v.inertia.permute(2, 0, 1).reshape(n, 1, 9).contiguous())
        gravity = torch.tensor(self.cfg.sim.gravity, device=self.device).unsqueeze(1)
        self._weight_change = v.mass * (v.gravity - gravity)
        """Force that turns the simulator's gravity into the vehicle's own [N]. Shape: (3, num_envs)."""

    def perturb(self, values: Mapping[str, float]) -> None:
        """Vary the simulation from the next :meth:`reset` on; what is not named is nominal again.

        Args:
            values: Names of :attr:`perturbations` and the values that they take.
        """
        self.vehicles = vary_vehicles(self._nominal_vehicles, values)
        self._pushes = Pushes.of(values, self.step_dt, self.num_envs, self.device)
        self._set_body()

    # -- what a viewer shows ----------------------------------------------------------------------------------------

    @property
    def view_bodies(self) -> dict[str, list[Part]]:
        """What ``play.py --viewer`` draws: the vehicle and its target."""
        return vehicle_bodies(self.vehicles, self._limits)

    def view_poses(self) -> dict[str, torch.Tensor]:
        """Return where vehicles and targets are, each (num_envs, 7), from the centres of their environments."""
        return vehicle_poses(self._position, self._quaternion, None)

    def push(self, velocity: torch.Tensor) -> None:
        """Change the velocities of the vehicles at once [m/s, world frame]. Shape: (num_envs, 3)."""
        data = self._robot.data
        linear = data.root_lin_vel_w.torch + velocity
        moving = torch.cat([linear, data.root_ang_vel_w.torch], -1).contiguous()
        self._robot.write_root_velocity_to_sim_index(root_velocity=moving)

    # -- stepping -------------------------------------------------------------------------------------------------

    def _pre_physics_step(self, actions: torch.Tensor) -> None:
        if self._pushes is not None:
            self.push(self._pushes.changes(self.episode_length_buf).T)
        self._previous = self._action
        self._action = actions.to(torch.float32).clamp(-1.0, 1.0).T.contiguous()

    def _apply_action(self) -> None:
        """Apply the mean wrench of the coming physics step; the solver's attitude is that of its middle."""
        self._speeds, (force, torque) = self._rotors.step(self._speeds, self._action)
        data = self._robot.data
        attitude = data.root_quat_w.torch
        force = force + _rotate_back(attitude, (self._outer_force + self._weight_change).T).T
        torque = torque + self._outer_torque
        rates = data.root_ang_vel_b.torch.T
        begin = self._gyroscopic(rates)
        middle = rates + (0.5 * self.cfg.sim.dt) * _apply(self._inverse_inertia, torque - begin)
        torque = torque + begin - self._gyroscopic(middle)
        self._robot.permanent_wrench_composer.set_forces_and_torques_index(
            forces=force.T.unsqueeze(1).contiguous(), torques=torque.T.unsqueeze(1).contiguous()
        )

    def _gyroscopic(self, rates: torch.Tensor) -> torch.Tensor:
        """Compute w x J w [N m]. Shape: (3, num_envs), both in and out."""
        return torch.linalg.cross(rates, _apply(self._inertia, rates), dim=0)

    def _read_motion(self) -> None:
        """Take pose and motion from the simulator, the pose half a physics step back."""
        data = self._robot.data
        half = 0.5 * self.cfg.sim.dt
        velocity = data.root_lin_vel_w.torch
        rates = data.root_ang_vel_w.torch
        attitude = _multiply(_rotation(-half * rates), data.root_quat_w.torch)
        position = data.root_pos_w.torch - self.scene.env_origins - half * velocity
        self._position = position.T.contiguous()
        self._velocity = velocity.T.contiguous()
        self._quaternion = attitude.roll(1, -1).T.contiguous()
        self._body_rates = _rotate_back(attitude, rates).T.contiguous()

    def _get_dones(self) -> tuple[torch.Tensor, torch.Tensor]:
        self._read_motion()
        motion = torch.cat([self._position, self._velocity, self._body_rates])
        self._exceeded = mdp.terminations(motion, self._limits)
        terminated = self._exceeded.any(0)
        return terminated, (self.episode_length_buf >= self.max_episode_length) & ~terminated

    @property
    def solved_return(self) -> float:
        """The mean return at which the task counts as solved."""
        return mdp.solved_return(self.cfg.rewards.alive, self.max_episode_length)

    def _get_rewards(self) -> torch.Tensor:
        distance = norm(self._position)
        terms = mdp.reward_terms(
            distance, self._quaternion, self._action, self._previous, self.reset_terminated, self._weights
        )
        metrics = self._stats.add(terms, distance, self._exceeded, self.reset_time_outs, self.reset_buf)
        self.extras["episode_metrics"] = metrics
        self.extras["log"] = self._stats.log
        return terms.sum(0)

    def _get_observations(self) -> dict[str, Any]:
        groups = mdp.observations(
            self._position, self._velocity, self._body_rates, self._quaternion, self._action, self._speeds
        )
        for group, scale in self._noise.items():
            groups[group] = torch.addcmul(groups[group], scale, torch.randn_like(groups[group]))
        return groups

    # -- resets ---------------------------------------------------------------------------------------------------

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Begin a new episode in every environment; sums of abandoned ones are dropped."""
        self._stats.clear()
        if self._pushes is not None:
            self._pushes.restart(seed)
        return super().reset(seed, options)

    def _reset_idx(self, env_ids: Sequence[int] | torch.Tensor) -> None:
        """Draw new initial states for some environments, the pose half a physics step ahead in the simulator."""
        super()._reset_idx(env_ids)  # type: ignore[arg-type]  # Isaac Lab passes tensors
        ids = torch.as_tensor(env_ids, dtype=torch.int32, device=self.device)
        rows = ids.long()
        half = 0.5 * self.cfg.sim.dt
        ranges = self._ranges._replace(position=self._ranges.position[rows])
        uniform = torch.rand(mdp.num_uniform(ranges), len(rows), device=self.device)
        position, velocity, rates, quaternion, speeds = mdp.initial_states(uniform, ranges).split([3, 3, 3, 4, 4])
        for buffer, value in (
            (self._position, position),
            (self._velocity, velocity),
            (self._body_rates, rates),
            (self._quaternion, quaternion),
            (self._speeds, speeds),
            (self._action, 2.0 * speeds - 1.0),
        ):
            buffer[:, rows] = value
        self._draw_disturbance(rows)
        attitude = quaternion.T.roll(-1, -1)
        spin = _rotate_back(_conjugate(attitude), rates.T)
        ahead = _multiply(_rotation(half * spin), attitude)
        origin = self.scene.env_origins[rows]
        self._robot.write_root_pose_to_sim_index(
            root_pose=torch.cat([position.T + half * velocity.T + origin, ahead], -1).contiguous(), env_ids=ids
        )
        self._robot.write_root_velocity_to_sim_index(
            root_velocity=torch.cat([velocity.T, spin], -1).contiguous(), env_ids=ids
        )

    def _draw_disturbance(self, rows: torch.Tensor) -> None:
        """Draw the outer force (world frame) and torque (body frame) of the coming episodes."""
        v = self.vehicles
        normal = torch.randn(6, len(rows), device=self.device)
        self._outer_force[:, rows] = v.force_mean[rows] + v.force_std[rows] * normal[:3]
        self._outer_torque[:, rows] = v.torque_mean[rows] + v.torque_std[rows] * normal[3:]


def make_env(cfg: QuadcopterPointCtrlIsaacEnvCfg, render_mode: str | None = None) -> QuadcopterPointCtrlIsaacEnv:
    """Build the environment (called by the task's gym entry point)."""
    return QuadcopterPointCtrlIsaacEnv(cfg, render_mode)


# Quaternions below are (x, y, z, w), as Isaac Lab 3.0 has them, environments first.


def _multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Multiply quaternions. Shape: (num_envs, 4), both in and out."""
    av = a[:, :3]
    aw = a[:, 3:]
    bv = b[:, :3]
    bw = b[:, 3:]
    vector = aw * bv + bw * av + torch.linalg.cross(av, bv)
    return torch.cat([vector, aw * bw - (av * bv).sum(-1, keepdim=True)], -1)


def _rotation(vector: torch.Tensor) -> torch.Tensor:
    """Turn a rotation vector [rad] into a quaternion. Shape: (num_envs, 3) -> (num_envs, 4)."""
    half = 0.5 * torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return torch.cat([0.5 * torch.sinc(half / torch.pi) * vector, half.cos()], -1)


def _conjugate(q: torch.Tensor) -> torch.Tensor:
    return torch.cat([-q[:, :3], q[:, 3:]], -1)


def _rotate_back(q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Express world vectors in the body frame. Shapes: (num_envs, 4), (num_envs, 3) -> (num_envs, 3)."""
    vector = q[:, :3]
    scalar = q[:, 3:]
    t = 2.0 * torch.linalg.cross(vector, x)
    return x - scalar * t + torch.linalg.cross(vector, t)


def _apply(matrix: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Multiply one matrix per environment. Shapes: (3, 3, num_envs), (3, num_envs) -> (3, num_envs)."""
    return (matrix * x.unsqueeze(0)).sum(1)
