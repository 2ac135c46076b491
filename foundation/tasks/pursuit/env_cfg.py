"""Configuration of chasing and evading, with Isaac Lab's names."""

from __future__ import annotations

from dataclasses import dataclass, field

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.env_cfg import (
    PARTS,
    LimitsCfg,
    NoiseCfg,
    QuadcopterEnvCfg,
    QuadcopterInitCfg,
    SceneCfg,
    check_shared,
    limits_by_name,
    refuse_nulls,
)


@dataclass
class ChaseTerminationsCfg(LimitsCfg):
    """Where a chase ends."""

    lost: float = 1.0
    """Distance to the target beyond which it is lost [m]."""


@dataclass
class EvadeTerminationsCfg(LimitsCfg):
    """Where an evasion ends."""

    position: float = 1.0
    """Half-width of the arena, which the vehicle must not leave (the pursuer may) [m]."""
    caught: float = 0.12
    """Distance to the pursuer below which the vehicle is caught [m]."""


@dataclass
class ChaseRewardsCfg:
    """Weights of the chase's reward, per step: ``1.5 - d - 0.1 * 2 acos(1 - |q_z|) - |a - a_prev|``."""

    alive: float = 1.5
    """For every step."""
    distance: float = -1.0
    """Times the distance to the target [1/m]."""
    orientation: float = -0.1
    """Times the heading-like angle ``2 acos(1 - |q_z|)`` [1/rad]."""
    action_rate: float = -1.0
    """Times the norm of the change of the action."""
    termination: float = -100.0
    """When a limit is passed or the target is lost."""


@dataclass
class EvadeRewardsCfg:
    """Weights of the evasion's reward, per step: ``0.5 + min(d, 1 m) - 0.1 * 2 acos(1 - |q_z|) - 0.5 |a - a_prev|``."""

    alive: float = 0.5
    """For every step."""
    distance: float = 1.0
    """Times the distance to the pursuer, up to ``distance_cap`` [1/m]."""
    orientation: float = -0.1
    """Times the heading-like angle ``2 acos(1 - |q_z|)`` [1/rad]."""
    action_rate: float = -0.5
    """Times the norm of the change of the action."""
    termination: float = -100.0
    """When a limit is passed or the vehicle is caught."""


@dataclass
class LissajousCfg:
    """Targets on Lissajous curves: ``A sin(2 pi f t + phase)`` on each axis, all three drawn per axis and episode."""

    amplitude: tuple[float, float] = (0.2, 0.7)
    """Range of A [m]."""
    frequency: tuple[float, float] = (0.05, 0.25)
    """Range of f [Hz]."""


@dataclass
class LangevinCfg:
    """Targets that are pushed at random (see ``mdp.langevin``); they start in the stationary distribution."""

    share: float = 0.5
    """Fraction of the episodes whose target moves so; the others' is on a Lissajous curve."""
    speed: float = 0.35
    """Standard deviation of each velocity [m/s]."""
    frequency: float = 0.2
    """Frequency of the spring to the centre [Hz]; a position deviates by speed / (2 pi frequency)."""
    damping: float = 1.0
    """[1/s]."""


@dataclass
class TargetCfg:
    """How the target of a chase moves."""

    lissajous: LissajousCfg = field(default_factory=LissajousCfg)
    """Smooth and periodic."""
    langevin: LangevinCfg = field(default_factory=LangevinCfg)
    """Random."""


@dataclass
class PursuerCfg:
    """How the pursuer moves: a point mass whose speed is drawn per episode (see ``mdp.pursue``)."""

    start: tuple[float, float] = (0.5, 0.9)
    """Range of its initial distance to the vehicle, in a random direction [m]; it starts at rest."""
    speed: tuple[float, float] = (0.5, 1.0)
    """Range of its greatest speed [m/s]."""
    acceleration: float = 3.0
    """Its greatest acceleration [m/s^2]."""
    response: float = 0.1
    """Time in which it would reach its desired velocity if acceleration were unbounded [s]."""
    lead: float = 0.2
    """How far ahead it aims [s]."""


@dataclass
class PursuitNoiseCfg(NoiseCfg):
    """Gaussian observation noise by component; 0 draws nothing."""

    relative_position: float = 0.0
    """[m]."""
    relative_velocity: float = 0.0
    """[m/s]."""


@dataclass
class PursuitObservationNoiseCfg:
    """Noise of the group that students read; the teacher's ``policy`` group is always exact."""

    deployable: PursuitNoiseCfg = field(default_factory=PursuitNoiseCfg)
    """Noise of the ``deployable`` group."""


@dataclass
class PursuitEnvCfg(QuadcopterEnvCfg):
    """A quadrotor in an arena, and another body that moves."""

    init: QuadcopterInitCfg = field(default_factory=QuadcopterInitCfg)
    """Initial states of the vehicle, around the target (chasing) or the arena's centre (evading)."""
    observation_noise: PursuitObservationNoiseCfg = field(default_factory=PursuitObservationNoiseCfg)
    """Observation noise (default none)."""


@dataclass
class QuadcopterChaseEnvCfg(PursuitEnvCfg):
    """A quadrotor follows a moving target."""

    rewards: ChaseRewardsCfg = field(default_factory=ChaseRewardsCfg)
    """Reward weights."""
    terminations: ChaseTerminationsCfg = field(default_factory=ChaseTerminationsCfg)
    """Limits."""
    target: TargetCfg = field(default_factory=TargetCfg)
    """The target's motion."""
    success_distance: float = 0.2
    """Mean distance to the target over the last second, below which a whole episode is a success [m]."""


@dataclass
class QuadcopterChaseEnvCfg_PLAY(QuadcopterChaseEnvCfg):  # noqa: N801 (Isaac Lab's name for it)
    """The same with few environments."""

    scene: SceneCfg = field(default_factory=lambda: SceneCfg(num_envs=64))


@dataclass
class QuadcopterEvadeEnvCfg(PursuitEnvCfg):
    """A quadrotor stays away from a pursuer, within the arena."""

    rewards: EvadeRewardsCfg = field(default_factory=EvadeRewardsCfg)
    """Reward weights."""
    distance_cap: float = 1.0
    """Distance to the pursuer beyond which more is worth nothing [m]."""
    terminations: EvadeTerminationsCfg = field(default_factory=EvadeTerminationsCfg)
    """Limits."""
    pursuer: PursuerCfg = field(default_factory=PursuerCfg)
    """The pursuer's motion."""


@dataclass
class QuadcopterEvadeEnvCfg_PLAY(QuadcopterEvadeEnvCfg):  # noqa: N801 (Isaac Lab's name for it)
    """The same with few environments."""

    scene: SceneCfg = field(default_factory=lambda: SceneCfg(num_envs=64))


def check_chase_cfg(cfg: QuadcopterChaseEnvCfg) -> None:
    """Refuse values that no chase can have."""
    refuse_nulls(cfg, *PARTS, "target", "target.lissajous", "target.langevin", "viewer")
    target = cfg.target
    positive = {
        "terminations.lost": cfg.terminations.lost,
        "success_distance": cfg.success_distance,
        "target.langevin.frequency": target.langevin.frequency,
    }
    check_shared(cfg, {"deployable": cfg.observation_noise.deployable}, limits_by_name(cfg.terminations) | positive)
    _check_range("target.lissajous.amplitude", target.lissajous.amplitude)
    _check_range("target.lissajous.frequency", target.lissajous.frequency)
    for name in ("speed", "damping"):
        _check_not_negative(f"target.langevin.{name}", getattr(target.langevin, name))
    if not 0 <= target.langevin.share <= 1:
        raise UserError(f"env.target.langevin.share must be within [0, 1], it is {target.langevin.share}")


def check_evade_cfg(cfg: QuadcopterEvadeEnvCfg) -> None:
    """Refuse values that no evasion can have."""
    refuse_nulls(cfg, *PARTS, "pursuer", "viewer")
    pursuer = cfg.pursuer
    positive = {
        "terminations.caught": cfg.terminations.caught,
        "distance_cap": cfg.distance_cap,
        "pursuer.acceleration": pursuer.acceleration,
        "pursuer.response": pursuer.response,
    }
    check_shared(cfg, {"deployable": cfg.observation_noise.deployable}, limits_by_name(cfg.terminations) | positive)
    _check_range("pursuer.start", pursuer.start)
    _check_range("pursuer.speed", pursuer.speed)
    _check_not_negative("pursuer.lead", pursuer.lead)
    if not pursuer.start[0] > cfg.terminations.caught:
        raise UserError(
            f"env.pursuer.start must begin above env.terminations.caught ({cfg.terminations.caught} m), it is "
            f"{pursuer.start}"
        )


def _check_range(name: str, limits: tuple[float, float]) -> None:
    """Refuse what is not a range of numbers that are not negative."""
    if len(limits) != 2 or not 0 <= limits[0] <= limits[1]:
        raise UserError(f"env.{name} must be a range [low, high] with 0 <= low <= high, it is {limits}")


def _check_not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise UserError(f"env.{name} must not be negative, it is {value}")
