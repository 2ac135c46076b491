"""Configuration of the gate task, with Isaac Lab's names."""

from __future__ import annotations

from dataclasses import dataclass, field

from foundation.core.errors import UserError
from foundation.tasks.camera.camera import CameraCfg
from foundation.tasks.quadrotor.env_cfg import (
    PARTS,
    LimitsCfg,
    QuadcopterEnvCfg,
    QuadcopterInitCfg,
    SceneCfg,
    check_shared,
    limits_by_name,
    refuse_nulls,
)


@dataclass
class GateInitCfg(QuadcopterInitCfg):
    """Distribution of the vehicle's initial states, around the world's origin."""

    max_angle: float = 0.4
    """Greatest rotation about a random axis [rad]."""


@dataclass
class GateCfg:
    """The gate of an episode: upright, its place and yaw drawn anew in each."""

    distance: tuple[float, float] = (1.2, 2.0)
    """Range of its centre's distance ahead of the origin [m]."""
    side: float = 0.5
    """Greatest distance of its centre to the left or right [m]."""
    height: float = 0.3
    """Greatest distance of its centre above or below the origin [m]."""
    yaw: float = 0.4
    """Greatest angle between the way through and the world's x [rad]."""
    opening: float = 0.5
    """Side of the square opening [m]."""
    bar: float = 0.12
    """Width of the frame around it [m]."""
    depth: float = 0.08
    """Depth of the frame along the way through [m]."""
    clearance: float = 0.06
    """Half of the vehicle's width, which has to pass too [m]."""


@dataclass
class GateSurroundingsCfg:
    """What else the camera sees; none of it can be hit."""

    ground: tuple[float, float] = (-1.6, -1.0)
    """Range of the ground's height, drawn per episode, so that it does not tell the gate's [m]."""
    pillars: int = 2
    """Pillars behind the gate."""
    pillar_radius: tuple[float, float] = (0.05, 0.15)
    """Range of their radius [m]."""


@dataclass
class GateTerminationsCfg(LimitsCfg):
    """Limits on any axis of the vehicle's motion; beyond one of them an episode ends and is not bootstrapped."""

    position: float = 3.0
    """Half-width of the arena [m]."""


@dataclass
class GateRewardsCfg:
    """Weights of the reward's terms."""

    progress: float = 10.0
    """Times how much nearer to the gate's centre the vehicle came in the step [1/m]."""
    orientation: float = -0.02
    """Times the heading-like angle ``2 acos(1 - |q_z|)``, per step [1/rad]."""
    action_rate: float = -0.05
    """Times the norm of the change of the action, per step."""
    passed: float = 10.0
    """When the vehicle is through."""
    termination: float = -10.0
    """When it hits or misses the gate or passes a limit."""


@dataclass
class QuadcopterGateEnvCfg(QuadcopterEnvCfg):
    """A quadrotor flies through a gate."""

    episode_length_s: float = 4.0
    """Time in which the vehicle has to be through [s]."""
    init: GateInitCfg = field(default_factory=GateInitCfg)
    """Initial states of the vehicle."""
    gate: GateCfg = field(default_factory=GateCfg)
    """The gate."""
    surroundings: GateSurroundingsCfg = field(default_factory=GateSurroundingsCfg)
    """What else there is to see."""
    camera: CameraCfg = field(default_factory=lambda: CameraCfg(image="depth"))
    """The camera on the vehicle."""
    rewards: GateRewardsCfg = field(default_factory=GateRewardsCfg)
    """Reward weights."""
    terminations: GateTerminationsCfg = field(default_factory=GateTerminationsCfg)
    """Limits."""


@dataclass
class QuadcopterGateEnvCfg_PLAY(QuadcopterGateEnvCfg):  # noqa: N801 (Isaac Lab's name for it)
    """The same with few environments."""

    scene: SceneCfg = field(default_factory=lambda: SceneCfg(num_envs=64))


def check_gate_cfg(cfg: QuadcopterGateEnvCfg) -> None:
    """Refuse values that no flight through a gate can have."""
    parts = [part for part in PARTS if not part.startswith("observation_noise")]
    refuse_nulls(cfg, *parts, "gate", "surroundings", "camera", "viewer")
    gate = cfg.gate
    positive = {
        "gate.opening": gate.opening,
        "gate.bar": gate.bar,
        "gate.depth": gate.depth,
    }
    check_shared(cfg, {}, limits_by_name(cfg.terminations) | positive)
    low, high = gate.distance
    if not cfg.init.position < low <= high:
        raise UserError(
            f"env.gate.distance must be a range beyond env.init.position, {cfg.init.position:g}, it is {gate.distance}"
        )
    if not 0.0 <= gate.clearance < 0.5 * gate.opening:
        raise UserError(
            f"env.gate.clearance must be less than half of env.gate.opening, {gate.opening:g}, it is {gate.clearance}"
        )
    if not (isinstance(cfg.surroundings.pillars, int) and cfg.surroundings.pillars >= 0):
        raise UserError(f"env.surroundings.pillars must be 0 or more, it is {cfg.surroundings.pillars}")
