"""Configuration of the built-in quadrotor's tasks, and of point control, with Isaac Lab's names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.sim.vehicles import vehicle_names


@dataclass
class SceneCfg:
    """How many environments."""

    num_envs: int = 512
    """Parallel environments."""


@dataclass
class SimCfg:
    """The physics."""

    dt: float = 0.01
    """Time step of the RK4 integrator [s]."""
    device: str = "cpu"
    """Torch device of the simulation."""


@dataclass
class QuadcopterInitCfg:
    """Distribution of a vehicle's initial states."""

    position: float = 0.25
    """Half-width of the box that it starts in [m]."""
    max_angle: float = 0.5
    """Greatest rotation about a random axis [rad]."""
    max_velocity: float = 0.0
    """Bound of each component [m/s]."""
    max_body_rate: float = 0.0
    """Bound of each component [rad/s]."""
    rotor_speed: tuple[float, float] = (0.6, 0.85)
    """Range of the initial rotor speeds, of 1 at full speed; the Crazyflie hovers at 0.806."""
    at_target: float = 0.0
    """Fraction of the episodes that start level, at rest and in the middle of the box."""


@dataclass
class LimitsCfg:
    """Limits on any axis of a vehicle's motion; beyond one of them an episode ends and is not bootstrapped."""

    position: float = 1.5
    """Half-width of the arena [m]."""
    velocity: float = 3.0
    """[m/s]."""
    body_rate: float = 35.0
    """[rad/s]."""


@dataclass
class InitCfg:
    """Distribution of initial states."""

    position: float = 0.5
    """Half-width of the box around the target [m] (without a vehicle set)."""
    position_arms: float = 10.0
    """Half-width of the box in arm lengths, used instead when ``vehicles`` is given."""
    max_angle: float = 1.5707963267948966
    """Greatest rotation about a random axis [rad]."""
    max_velocity: float = 0.0
    """Bound of each component [m/s]. 0: at thrust-to-weight 1.47 a falling start cannot always be caught."""
    max_body_rate: float = 0.0
    """Bound of each component [rad/s]."""
    rotor_speed: tuple[float, float] = (0.0, 0.5)
    """Range of the initial rotor speeds, of 1 at full speed."""
    at_target: float = 0.1
    """Fraction of the episodes that start level, at rest and at the target."""


@dataclass
class TerminationsCfg:
    """Limits on any axis; beyond one of them an episode ends and is not bootstrapped."""

    position: float = 1.0
    """Distance to the target [m] (without a vehicle set)."""
    position_arms: float = 20.0
    """The same in arm lengths, used instead when ``vehicles`` is given."""
    velocity: float = 2.0
    """[m/s] (without a vehicle set)."""
    velocity_vehicles: float = 10.0
    """[m/s], used instead when ``vehicles`` is given, as rl-tools has it: large vehicles begin metres away."""
    body_rate: float = 35.0
    """[rad/s]."""


@dataclass
class RewardsCfg:
    """Weights of the reward's terms, per step."""

    alive: float = 1.5
    """For every step."""
    position: float = -1.0
    """Times the distance to the target [1/m]."""
    orientation: float = -0.1
    """Times the heading-like angle ``2 acos(1 - |q_z|)`` [1/rad]."""
    action_rate: float = -1.0
    """Times the norm of the change of the action."""
    termination: float = -100.0
    """When a limit is passed."""


@dataclass
class NoiseCfg:
    """Gaussian observation noise by component; 0 draws nothing."""

    position: float = 0.0
    """[m]."""
    orientation: float = 0.0
    """Of the entries of the rotation matrix."""
    velocity: float = 0.0
    """[m/s]."""
    body_rates: float = 0.0
    """[rad/s]."""


@dataclass
class ObservationNoiseCfg:
    """Noise of the groups that students read; the teacher's ``policy`` group is always exact."""

    deployable: NoiseCfg = field(default_factory=NoiseCfg)
    """Noise of the ``deployable`` group."""
    l2f: NoiseCfg = field(default_factory=NoiseCfg)
    """Noise of the ``l2f`` group."""


@dataclass
class ViewerCfg:
    """What :meth:`render` draws."""

    num_envs: int = 9
    """Vehicles shown, in a grid."""
    resolution: tuple[int, int] = (960, 720)
    """Width and height [px]."""


@dataclass
class QuadcopterEnvCfg:
    """What the tasks of the built-in quadrotor have in common."""

    scene: SceneCfg = field(default_factory=SceneCfg)
    """Environments."""
    sim: SimCfg = field(default_factory=SimCfg)
    """Physics."""
    decimation: int = 1
    """Physics steps per action."""
    episode_length_s: float = 5.0
    """Length of an episode [s]."""
    seed: int | None = 42
    """Seed of the environment's own generator, which nothing else draws from. None: a random one."""
    vehicles: str | list[str] | None = None
    """Vehicle files in l2f's JSON form: a file, a folder, ``sampled:<n>[:<seed>]``, or a list of such; environment i
    flies vehicle ``i % number``. None: the Crazyflie. A place of fixed size, such as an arena, keeps it."""
    viewer: ViewerCfg = field(default_factory=ViewerCfg)
    """Drawing."""

    def count_variants(self) -> int:
        """Return how many vehicles there are; 0 for the Crazyflie alone."""
        return len(vehicle_names(self.vehicles))

    def variants_key(self) -> str:
        """Return the name of the field that takes one file per vehicle, such as those of many teachers."""
        return "vehicles"


@dataclass
class QuadcopterPointCtrlEnvCfg(QuadcopterEnvCfg):
    """A quadrotor flies to a point and stays."""

    init: InitCfg = field(default_factory=InitCfg)
    """Initial states."""
    rewards: RewardsCfg = field(default_factory=RewardsCfg)
    """Reward weights."""
    terminations: TerminationsCfg = field(default_factory=TerminationsCfg)
    """Limits."""
    observation_noise: ObservationNoiseCfg = field(default_factory=ObservationNoiseCfg)
    """Observation noise (default none)."""
    compile: bool = False
    """Compile a whole step with ``torch.compile``: three times faster for few environments, but half a minute passes
    before the first (on the CPU it needs a C++ compiler). The same numbers to float32 rounding."""


@dataclass
class QuadcopterPointCtrlEnvCfg_PLAY(QuadcopterPointCtrlEnvCfg):  # noqa: N801 (Isaac Lab's name for it)
    """The same with few environments; observation noise stays off."""

    scene: SceneCfg = field(default_factory=lambda: SceneCfg(num_envs=64))


def check_cfg(cfg: Any) -> None:
    """Refuse values that no simulation can have, in the configuration of any engine."""
    refuse_nulls(cfg, *PARTS, "observation_noise.l2f")
    limits = ("position", "position_arms", "velocity", "velocity_vehicles", "body_rate")
    check_shared(
        cfg,
        {"deployable": cfg.observation_noise.deployable, "l2f": cfg.observation_noise.l2f},
        {f"terminations.{name}": getattr(cfg.terminations, name) for name in limits},
    )


def _need(cfg: Any, *groups: str) -> None:
    """Refuse a config from which ``env.scene=null`` has taken what the task is made of."""
    for group in groups:
        if getattr(cfg, group) is None:
            raise UserError(f"env.{group}=null: the task needs it; set single values of it, env.{group}.<name>=VALUE")


_MAX_STEPS = 2**31
"""Longest episode: its end comes, and counters hold it [env steps]."""


def _check_length(cfg: Any) -> None:
    steps = cfg.episode_length_s / (cfg.sim.dt * cfg.decimation)
    if not steps <= _MAX_STEPS:
        raise UserError(
            f"env.episode_length_s must be at most {_MAX_STEPS} steps of {cfg.sim.dt * cfg.decimation:g} s, "
            f"it is {cfg.episode_length_s}"
        )


def check_shared(cfg: Any, noises: Mapping[str, NoiseCfg], further: Mapping[str, float]) -> None:
    """Refuse values that no simulation of quadrotors can have.

    Args:
        cfg: The configuration of any of its tasks.
        noises: Observation group -> its noise.
        further: Further values that must be positive, by their name below ``env``.
    """
    _need(cfg, "scene", "sim", "init")
    positive = {
        "scene.num_envs": cfg.scene.num_envs,
        "sim.dt": cfg.sim.dt,
        "decimation": cfg.decimation,
        "episode_length_s": cfg.episode_length_s,
        **further,
    }
    for name, value in positive.items():
        if not value > 0:
            raise UserError(f"env.{name} must be positive, it is {value}")
    _check_length(cfg)
    shown = getattr(getattr(cfg, "viewer", None), "num_envs", 1)
    if shown < 1:
        raise UserError(f"env.viewer.num_envs must be positive, it is {shown}")
    low, high = cfg.init.rotor_speed
    if not 0 <= low <= high <= 1:
        raise UserError(f"env.init.rotor_speed must be a range within [0, 1], it is {cfg.init.rotor_speed}")
    if not 0 <= cfg.init.at_target <= 1:
        raise UserError(f"env.init.at_target must be within [0, 1], it is {cfg.init.at_target}")
    for group, noise in noises.items():
        for component, value in vars(noise).items():
            if not value >= 0:
                raise UserError(f"env.observation_noise.{group}.{component} must not be negative, it is {value}")


def limits_by_name(limits: LimitsCfg) -> dict[str, float]:
    """Return the limits on the vehicle's motion, by their names below ``env``."""
    return {f"terminations.{name}": getattr(limits, name) for name in ("position", "velocity", "body_rate")}


def refuse_nulls(cfg: Any, *names: str) -> None:
    """Refuse parts of the configuration that are null, which no step could do without.

    Args:
        cfg: The configuration.
        names: Dotted names below ``env``; a part after the parts that it is in.
    """
    for name in names:
        part = cfg
        for step in name.split("."):
            part = getattr(part, step)
        if part is None:
            raise UserError(f"env.{name}=null: this task needs it; set single values of it, env.{name}.<name>=VALUE")


PARTS = ("scene", "sim", "rewards", "terminations", "init", "observation_noise", "observation_noise.deployable")
"""What every quadrotor task needs of its configuration."""
