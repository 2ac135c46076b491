"""Configuration of the Go1's velocity tasks, with Isaac Lab's names where it has them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np

from foundation.core.errors import UserError
from foundation.tasks.legs.go1_model import ACTION_SCALE, JOINTS, STANDING, VariationCfg
from foundation.tasks.legs.terrain import TerrainCfg
from foundation.tasks.mujoco.env import MujocoEnvCfg, SceneCfg


@dataclass
class RobotCfg:
    """The robot's files."""

    file: str | None = None
    """mjlab's ``go1.xml``, with its meshes beside it. None: that of the installed mjlab."""


@dataclass
class JointTargetsCfg:
    """What an action means: the target angle of each joint is ``offset + scale * action``."""

    joint_names: tuple[str, ...] = JOINTS
    """The joint of each action, in order; the model's own."""
    preserve_order: bool = True
    """Whether that is the order of the actions; it is."""
    scale: dict[str, float] = field(default_factory=lambda: _by_joint(ACTION_SCALE))
    """By joint: a quarter of the angle that its greatest torque holds [rad]."""
    offset: dict[str, float] = field(default_factory=lambda: _by_joint(STANDING))
    """By joint: its angle when the robot stands [rad]."""


@dataclass
class ActionsCfg:
    """The actions, with Isaac Lab's names, so that an exported policy says which joints it moves and how."""

    joint_pos: JointTargetsCfg = field(default_factory=JointTargetsCfg)
    """Targets of the joints' controllers."""


def _by_joint(values: np.ndarray) -> dict[str, float]:
    return {name: round(float(value), 6) for name, value in zip(JOINTS, values, strict=True)}


@dataclass
class CommandCfg:
    """Commanded velocities, drawn anew at random times."""

    lin_vel_x: tuple[float, float] = (0.0, 1.0)
    """Range of the velocity ahead [m/s]."""
    lin_vel_y: tuple[float, float] = (-0.25, 0.25)
    """Range of the velocity to the left [m/s]."""
    ang_vel_z: tuple[float, float] = (-0.6, 0.6)
    """Range of the yaw rate [rad/s]."""
    standing: float = 0.1
    """Fraction of the commands that are to stand still."""
    interval: float = 4.0
    """Mean time between two commands [s]."""


@dataclass
class PushCfg:
    """Pushes: sudden changes of the trunk's velocity at random times."""

    interval: float = 3.0
    """Mean time between two pushes [s]; 0: none."""
    velocity: float = 0.6
    """Greatest change on each horizontal axis [m/s]."""
    yaw_rate: float = 0.6
    """Greatest change of the yaw rate [rad/s]."""


@dataclass
class SensorNoiseCfg:
    """Half-width of the uniform noise of the group ``proprioception``; the other groups are exact."""

    base_ang_vel: float = 0.2
    """[rad/s]."""
    projected_gravity: float = 0.05
    """Of each component of the unit vector."""
    joint_pos: float = 0.01
    """[rad]."""
    joint_vel: float = 1.5
    """[rad/s]."""


@dataclass
class GaitCfg:
    """The trot that the reward asks for."""

    frequency: float = 2.0
    """Strides a second, of which the clock in the observations tells the phase [Hz]."""
    clearance: float = 0.08
    """Height above the ground that a swinging foot is to reach [m]."""


@dataclass
class RewardsCfg:
    """Weights of the reward's terms per second of simulated time, but for the last."""

    track_lin_vel: float = 2.0
    """Times ``exp(-e^2 / 0.25)`` of the error of the horizontal velocity [m/s]."""
    track_ang_vel: float = 0.75
    """Times ``exp(-e^2 / 0.25)`` of the error of the yaw rate [rad/s]."""
    lin_vel_z: float = -2.0
    """Times the square of the vertical velocity [m/s]."""
    ang_vel_xy: float = -0.05
    """Times the square of roll and pitch rates [rad/s]."""
    orientation: float = -2.0
    """Times the square of gravity's components along and across the trunk."""
    action_rate: float = -0.01
    """Times the square of the change of the action."""
    posture: float = -0.05
    """Times the square of the joints' angles from standing [rad]."""
    base_height: float = -20.0
    """Times the square of the trunk's height above the ground less 0.27 m [m]."""
    gait: float = 1.0
    """Times the share of feet that are on the ground, or off it, as the clock says, less one half; when moving."""
    foot_slip: float = -0.25
    """Times the square of the horizontal velocity of each foot on the ground, at most 2 m^2/s^2 for each."""
    foot_clearance: float = -0.6
    """Times what each foot that is to swing lacks of ``gait.clearance`` [m], in units of 0.1 m; when moving."""
    stand_still: float = -0.3
    """Times the sum of the joints' angles from standing [rad]; when the command is to stand."""
    floor: float = -10.0
    """Least sum of the terms above."""
    termination: float = -0.5
    """When the robot falls; not per second."""


@dataclass
class LegTerminationsCfg:
    """Limits beyond which the robot has fallen."""

    tilt: float = 0.93
    """Greatest angle between the trunk's and the world's vertical [rad]."""
    height: float = 0.13
    """Least height of the trunk above the ground [m]."""


@dataclass
class Go1FlatEnvCfg(MujocoEnvCfg):
    """The Go1 follows commanded velocities on a plane."""

    episode_length_s: float = 10.0
    """Length of an episode [s]."""
    robot: RobotCfg = field(default_factory=RobotCfg)
    """The robot's files."""
    terrain: TerrainCfg = field(default_factory=TerrainCfg)
    """The ground."""
    variation: VariationCfg = field(default_factory=VariationCfg)
    """How robots differ from episode to episode."""
    actions: ActionsCfg = field(default_factory=ActionsCfg)
    """The actions."""
    command: CommandCfg = field(default_factory=CommandCfg)
    """Commanded velocities."""
    push: PushCfg = field(default_factory=PushCfg)
    """Pushes."""
    observation_noise: SensorNoiseCfg = field(default_factory=SensorNoiseCfg)
    """Noise of the student's sensors."""
    gait: GaitCfg = field(default_factory=GaitCfg)
    """The trot."""
    rewards: RewardsCfg = field(default_factory=RewardsCfg)
    """Reward weights."""
    terminations: LegTerminationsCfg = field(default_factory=LegTerminationsCfg)
    """Limits."""


@dataclass
class Go1FlatEnvCfg_PLAY(Go1FlatEnvCfg):  # noqa: N801 (Isaac Lab's name for it)
    """The same with few environments."""

    scene: SceneCfg = field(default_factory=lambda: SceneCfg(num_envs=32))


@dataclass
class Go1RoughEnvCfg(Go1FlatEnvCfg):
    """The same on rough ground, whose heights the teacher is told."""

    terrain: TerrainCfg = field(default_factory=lambda: TerrainCfg(height=0.1))


@dataclass
class Go1RoughEnvCfg_PLAY(Go1RoughEnvCfg):  # noqa: N801
    """The same with few environments."""

    scene: SceneCfg = field(default_factory=lambda: SceneCfg(num_envs=32))


PARTS = (
    "robot",
    "actions",
    "terrain",
    "variation",
    "command",
    "push",
    "observation_noise",
    "gait",
    "rewards",
    "terminations",
)


def check_legs_cfg(cfg: Go1FlatEnvCfg) -> None:
    """Refuse values that no such task can have."""
    for part in PARTS:
        if getattr(cfg, part) is None:
            raise UserError(f"env.{part}=null: the task needs it; set single values of it, env.{part}.NAME=VALUE")
    ranges = {
        "command.lin_vel_x": cfg.command.lin_vel_x,
        "command.lin_vel_y": cfg.command.lin_vel_y,
        "command.ang_vel_z": cfg.command.ang_vel_z,
        "variation.friction": cfg.variation.friction,
        "variation.added_mass": cfg.variation.added_mass,
        "variation.motor_strength": cfg.variation.motor_strength,
    }
    for name, value in ranges.items():
        if len(value) != 2 or not value[0] <= value[1]:
            raise UserError(f"env.{name} must be [lowest, highest], it is {list(value)}")
    above = {
        "variation.friction": (cfg.variation.friction[0], 0.0),
        "variation.added_mass": (cfg.variation.added_mass[0], -5.0),
        "variation.motor_strength": (cfg.variation.motor_strength[0], 0.0),
        "gait.frequency": (cfg.gait.frequency, 0.0),
        "command.interval": (cfg.command.interval, 0.0),
    }
    for name, (value, bound) in above.items():
        if not bound < value < float("inf"):
            raise UserError(f"env.{name} must be above {bound:g}, it is {value:g}")
    least = {"push.interval": cfg.push.interval, "terrain.height": cfg.terrain.height}
    least |= {f"observation_noise.{f.name}": getattr(cfg.observation_noise, f.name) for f in fields(SensorNoiseCfg)}
    for name, value in least.items():
        if not 0.0 <= value < float("inf"):
            raise UserError(f"env.{name} must not be negative, it is {value:g}")
    if cfg.variation.num_models < 1:
        raise UserError(f"env.variation.num_models must be at least 1, it is {cfg.variation.num_models}")
    _check_actions(cfg.actions.joint_pos)
    _check_terrain(cfg)


def _check_actions(actions: JointTargetsCfg | None) -> None:
    if actions is None:
        raise UserError("env.actions.joint_pos=null: the task needs it")
    if tuple(actions.joint_names) != JOINTS or actions.preserve_order is not True:
        raise UserError(f"env.actions.joint_pos.joint_names must be the model's, in its order: {', '.join(JOINTS)}")
    for name in ("scale", "offset"):
        if set(getattr(actions, name)) != set(JOINTS):
            raise UserError(f"env.actions.joint_pos.{name} must have one number for each of {', '.join(JOINTS)}")


def _check_terrain(cfg: Go1FlatEnvCfg) -> None:
    terrain = cfg.terrain
    if terrain.height == 0.0:
        return
    if not 0.0 < terrain.resolution <= terrain.spacing <= 0.25 * terrain.size:
        raise UserError(
            "env.terrain needs 0 < resolution <= spacing <= size / 4, they are "
            f"{terrain.resolution:g}, {terrain.spacing:g} and {terrain.size:g}"
        )
    if not 0.0 <= terrain.start <= 0.5 * terrain.size - 1.0:
        raise UserError(f"env.terrain.start must be within size / 2 - 1, it is {terrain.start:g}")
    if cfg.viewer.num_envs > 1:
        raise UserError("env.viewer.num_envs must be 1 on rough ground, where none can be moved beside another")
