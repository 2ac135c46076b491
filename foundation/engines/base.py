"""The interface between runners and simulators: every engine makes RSL-RL's ``VecEnv`` (>= 3.0)."""

from __future__ import annotations

import argparse
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, TypeGuard, TypeVar

import torch
from tensordict import TensorDict

from foundation.config.derived_cfg import DerivedGroup
from foundation.config.env_state import KEY, EnvState
from foundation.core.errors import UserError
from foundation.core.text import quoted
from foundation.deploy.description import Field

T = TypeVar("T")


class VecEnv(Protocol):
    """RSL-RL's vectorised environment, with the additions that this project needs.

    Resets are automatic inside :meth:`step`. A user's own environment needs the attributes, ``get_observations``
    and ``step``; ``foundation.engines.checked_env`` supplies the rest. Optional attributes are the fields of
    :class:`EnvCapabilities`.
    """

    num_envs: int
    num_actions: int
    max_episode_length: int
    """Maximum episode length [env steps]."""
    episode_length_buf: torch.Tensor
    """Steps into the current episodes; assigning moves their time limits. Shape: (num_envs,)."""
    device: str | torch.device
    """Device of observations, rewards and dones."""
    cfg: Any
    """The config that it was made from."""

    def get_observations(self) -> TensorDict:
        """Return the current observation groups, each ``(num_envs, group_size)``, without drawing noise again."""
        ...

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Advance every environment.

        Args:
            actions: Shape: (num_envs, num_actions).

        Returns:
            Observations (post-reset where done), rewards (num_envs,), dones (num_envs,), extras.
            ``extras["time_outs"]`` (optional): bool (num_envs,); without it, success is unknown.
            ``extras["log"]`` (optional): scalars for TensorBoard.
            ``extras["episode_metrics"]`` (optional): name -> (num_envs,), valid where done; a metric ``success``
            replaces "ended by time-out".
        """
        ...

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment and return the observation groups.

        Args:
            seed: Seed of the random numbers; None continues the environment's sequence.
        """
        ...

    def close(self) -> None:
        """Release what the environment holds; a second call does nothing."""
        ...


class SavesState(VecEnv, Protocol):
    """An environment that can save its episodes in progress, so that a resumed run continues them."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides what happens next."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        ...


class KeepsCurriculum(VecEnv, Protocol):
    """An environment that changes with the env steps of training, and whose checkpoints remember how far it was."""

    def env_state(self) -> EnvState:
        """Return how far its curriculum has come."""
        ...

    def load_env_state(self, state: EnvState) -> None:
        """Go on from there, with a new episode in every environment."""
        ...


class Perturbable(VecEnv, Protocol):
    """An environment whose simulation can be varied, to measure how robust a policy is."""

    perturbations: Mapping[str, tuple[str, float, Sequence[float]]]
    """What can be varied: name -> (unit, nominal value, values to measure at)."""

    def perturb(self, values: Mapping[str, float]) -> None:
        """Vary the simulation from the next ``reset`` on; quantities that are not named return to nominal.

        Args:
            values: Names of ``perturbations`` and the values that they take. Where the length of a step changes,
                ``max_episode_length`` follows, and rewards are scaled so that returns stay comparable.
        """
        ...


class Viewable(VecEnv, Protocol):
    """An environment whose bodies can be drawn (``play.py --viewer``).

    A method ``push(velocity)`` is optional: it changes the velocity of each environment's vehicle at once [m/s, world
    frame]. Shape: (num_envs, 3).
    """

    view_bodies: Mapping[str, Sequence[tuple[str, Sequence[float], Sequence[float], str]]]
    """Body -> its shapes, each (kind, size, position, colour). Positions are in the body's frame [m], colours are
    ``#rrggbb``. Kinds and their sizes [m]: ``box`` (three edges), ``sphere`` (radius,), ``cylinder`` (radius, height
    along z), ``line`` (three coordinates of its end, thickness)."""

    def view_poses(self) -> Mapping[str, torch.Tensor]:
        """Return where the bodies are: position [m] and quaternion w, x, y, z, each (num_envs, 7)."""
        ...


class Quantity(NamedTuple):
    """Something that can be varied."""

    unit: str
    nominal: float
    values: tuple[float, ...]
    """Values to measure at, without the nominal one."""


def is_perturbable(env: VecEnv) -> TypeGuard[Perturbable]:
    """Return whether the simulation of an environment can be varied."""
    return callable(getattr(env, "perturb", None)) and bool(EnvCapabilities.of(env).perturbations)


def is_viewable(env: VecEnv) -> TypeGuard[Viewable]:
    """Return whether the bodies of an environment can be drawn."""
    return callable(getattr(env, "view_poses", None)) and bool(getattr(env, "view_bodies", None))


def saves_state(env: VecEnv) -> TypeGuard[SavesState]:
    """Return whether an environment, or the one inside its wrapper, can save its episodes in progress."""
    # isinstance() with a runtime-checkable protocol would not see what a wrapper delegates (Python 3.12).
    return callable(getattr(env, "state_dict", None)) and callable(getattr(env, "load_state_dict", None))


def keeps_curriculum(env: VecEnv) -> TypeGuard[KeepsCurriculum]:
    """Return whether an environment, or the one inside its wrapper, has a curriculum that checkpoints carry."""
    return callable(getattr(env, "env_state", None)) and callable(getattr(env, "load_env_state", None))


@contextmanager
def curriculum_kept(env: VecEnv) -> Iterator[None]:
    """Leave the curriculum of an environment as it was, whatever acts in it meanwhile; new episodes begin then."""
    state = env.env_state() if keeps_curriculum(env) else None
    yield
    if state is not None and keeps_curriculum(env):
        env.load_env_state(state)


def env_state_entry(env: VecEnv) -> dict[str, dict[str, int | list[int]]]:
    """Return the entry of a checkpoint for the curriculum of an environment; none where it has no curriculum."""
    return {KEY: env.env_state().to_plain()} if keeps_curriculum(env) else {}


@dataclass(frozen=True)
class EnvCapabilities:
    """Optional attributes of an environment, beside :class:`VecEnv`."""

    step_dt: float | None = None
    """Simulated time of one env step [s]; required by ``--real-time`` and videos."""
    position_fields: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Observation group -> (first of three columns with the position error [m], its frame: ``world`` or ``body``)."""
    rotation_fields: Mapping[str, int] = field(default_factory=dict)
    """Observation group -> first of nine columns with the rotation matrix, body to world, row by row."""
    action_fields: Mapping[str, int] = field(default_factory=dict)
    """Observation group -> first of the columns with the policy's previous action, clipped to ``action_range``
    ([-1, 1] if that is unknown)."""
    metric_units: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    """Name in ``extras["episode_metrics"]`` -> (factor, unit) for display, such as ``(100.0, "cm")``."""
    position_unit: tuple[float, str] = (1.0, "m")
    """(factor, unit) for displaying positions, such as ``(100.0, "cm")``."""
    variant_kind: str = ""
    """The property in which environments differ, such as ``vehicle``; evaluations are broken down by it. "": none."""
    variant_names: Sequence[str] = ()
    """Names of the variants."""
    variant_index: torch.Tensor | None = None
    """Index of each environment's variant. Shape: (num_envs,)."""
    solved_return: float | None = None
    """Mean return at which the task counts as solved; the check of the teacher compares with it."""
    perturbations: Mapping[str, Quantity] = field(default_factory=dict)
    """What its method ``perturb`` can vary: name -> (unit, nominal value, values to measure at)."""
    action_choices: tuple[int, ...] | None = None
    """Number of choices of each discrete action (indices from 0, as floats); None for continuous actions."""
    action_range: tuple[tuple[float, float], ...] | None = None
    """(lowest, highest) value of each continuous action. None: unknown; random actions are then within [-1, 1]."""
    observation_terms: Mapping[str, tuple[Field, ...]] = field(default_factory=dict)
    """Observation group -> its columns by name: ``{"policy": {"base_lin_vel": 3, "base_ang_vel": 3}}``, or fields."""
    joint_names: Sequence[str] = ()
    """Joint that each action drives, in order. Empty: the environment's managers know them, or nobody."""
    joint_terms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Term of the observations, ``joint_pos`` or ``policy.joint_pos`` -> the joint or body of each of its columns,
    where its own name does not show that it has a number for each joint."""
    derived_groups: Mapping[str, DerivedGroup] = field(default_factory=dict)
    """Groups that were made of the environment's own (``distill.obs``), by name."""
    one_per_process: bool = False
    """No second environment may exist beside it in this process, as with Isaac Lab."""
    can_render: bool = False
    """``render()`` returns an image, uint8 of shape (height, width, 3)."""
    can_save_state: bool = False
    """``state_dict()`` and ``load_state_dict(state)`` carry the episodes in progress over to a resumed run."""

    @classmethod
    def of(cls, env: VecEnv) -> EnvCapabilities:
        """Read the attributes of an environment, or of the one inside its wrappers.

        Raises:
            UserError: If an attribute is not of its field's type; names the class and the attribute.
        """
        inner = getattr(env, "unwrapped", env)

        def declared(name: str) -> Any:
            value = getattr(env, name, None)
            return getattr(inner, name, None) if value is None else value

        def read(name: str, convert: Callable[[Any], T], expected: str, absent: T) -> T:
            value = declared(name)
            if value is None:
                return absent
            try:
                return convert(value)
            except (TypeError, ValueError, AttributeError, OverflowError, RuntimeError):
                raise UserError(f"{type(inner).__name__}.{name} must be {expected}, got {quoted(value)}") from None

        return cls(
            step_dt=read("step_dt", _positive, "a positive number [s]", None),
            position_fields=read(
                "position_fields", _positions, "a mapping: group -> (first column, 'world' or 'body')", {}
            ),
            rotation_fields=read("rotation_fields", _columns, "a mapping: group -> first column", {}),
            action_fields=read("action_fields", _columns, "a mapping: group -> first column", {}),
            metric_units=read("metric_units", _units, "a mapping: metric -> (factor, unit)", {}),
            position_unit=read("position_unit", _unit, "(factor, unit), such as (100.0, 'cm')", (1.0, "m")),
            variant_kind=read("variant_kind", _text, "a word, such as 'vehicle'", ""),
            variant_names=read("variant_names", _texts, "a list of names", ()),
            variant_index=read("variant_index", _index, "integers, one for each environment", None),
            solved_return=read("solved_return", _finite, "a finite number", None),
            perturbations=read(
                "perturbations", _quantities, "a mapping: name -> (unit, nominal value, [values to measure at])", {}
            ),
            action_choices=read("action_choices", _counts, "a list of numbers of choices, each at least 1", None),
            action_range=read("action_range", _bounds, "a list of (lowest, highest), lowest <= highest", None),
            observation_terms=read(
                "observation_terms", _terms, "a mapping: group -> {term: number of columns, ...} or fields", {}
            ),
            joint_names=read("joint_names", _texts, "a list of names", ()),
            joint_terms=read("joint_terms", _joint_terms, "a mapping: term -> [joint or body of each column]", {}),
            derived_groups=read("derived_groups", dict, "a mapping: group -> DerivedGroup", {}),
            one_per_process=bool(declared("one_per_process")),
            can_render=callable(declared("render")),
            can_save_state=saves_state(env),
        )


def _finite(value: Any) -> float:
    """Read a finite number; a text such as "1.0" is an error."""
    if isinstance(value, str | bytes | bool) or not math.isfinite(number := float(value)):
        raise ValueError(value)
    return number


def _positive(value: Any) -> float:
    if not (number := _finite(value)) > 0:
        raise ValueError(value)
    return number


def _whole(value: Any, least: int) -> int:
    if isinstance(value, bool) or (number := operator.index(value)) < least:
        raise ValueError(value)
    return number


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _texts(value: str | Iterable[Any]) -> tuple[str, ...]:
    if isinstance(value, str):  # a sequence of its letters
        raise TypeError(value)
    return tuple(_text(name) for name in value)


def _unit(value: Iterable[Any]) -> tuple[float, str]:
    factor, unit = value
    return _finite(factor), _text(unit)


def _units(value: Mapping[Any, Any]) -> dict[str, tuple[float, str]]:
    return {_text(name): _unit(unit) for name, unit in value.items()}


def _columns(value: Mapping[Any, Any]) -> dict[str, int]:
    return {_text(group): _whole(column, 0) for group, column in value.items()}


def _positions(value: Mapping[Any, Any]) -> dict[str, tuple[int, str]]:
    found = {}
    for group, (column, frame) in value.items():
        if frame not in ("world", "body"):
            raise ValueError(frame)
        found[_text(group)] = (_whole(column, 0), frame)
    return found


def _quantities(value: Mapping[Any, Any]) -> dict[str, Quantity]:
    found = {}
    for name, (unit, nominal, values) in value.items():
        levels = tuple(_finite(level) for level in values)
        if not levels:
            raise ValueError(name)
        found[_text(name)] = Quantity(_text(unit), _finite(nominal), levels)
    return found


def _terms(value: Mapping[Any, Any]) -> dict[str, tuple[Field, ...]]:
    found: dict[str, tuple[Field, ...]] = {}
    for group, terms in value.items():
        listed = terms
        if isinstance(terms, Mapping):
            listed = [Field(name=_text(name), size=_whole(size, 1)) for name, size in terms.items()]
        if not all(isinstance(term, Field) for term in listed):
            raise TypeError(terms)
        found[_text(group)] = tuple(listed)
    return found


def _joint_terms(value: Mapping[Any, Any]) -> dict[str, tuple[str, ...]]:
    return {_text(term): _texts(names) for term, names in value.items()}


def _counts(value: Iterable[Any]) -> tuple[int, ...]:
    return tuple(_whole(count, 1) for count in value)


def _bounds(value: Iterable[Any]) -> tuple[tuple[float, float], ...]:
    bounds = tuple((float(low), float(high)) for low, high in value)
    if not all(low <= high for low, high in bounds):
        raise ValueError(bounds)
    return bounds


def _index(value: torch.Tensor) -> torch.Tensor:
    if value.ndim != 1 or value.is_floating_point():
        raise ValueError(value)
    return value


@dataclass
class VideoRequest:
    """Clips that an engine records while the environment runs."""

    folder: Path
    length: int = 200
    """Frames in a clip [env steps]."""
    interval: int = 2000
    """Env steps between the starts of two clips; 0 records one clip from the first step."""
    first_step: int = 0
    """Env steps before the run was resumed: clips are timed and named by the steps of the whole run."""


AGENT_ENTRY_POINT = "rsl_rl_cfg_entry_point"
"""Key under which a task registers its agent's config, as in Isaac Lab."""


@dataclass
class LaunchRequest:
    """Request to launch an engine: the task, the device and the command line."""

    task: str
    agent_entry_point: str = AGENT_ENTRY_POINT
    device: str = "cpu"
    headless: bool = True
    video: bool = False
    args: argparse.Namespace = field(default_factory=argparse.Namespace)
    """The parsed command line, for the launcher's own flags."""
    needs_agent: bool = False
    """Whether the command needs the agent's config; other commands also run tasks that register none."""


class EnvCfg(Protocol):
    """The config of an environment: an object or a mapping of the task's own, with fields that its engine knows.

    Other code changes it by :meth:`Engine.set_common` and by overrides only, and reads it by name
    (``foundation.config.validate.read``).
    """


def count_variants(env_cfg: EnvCfg) -> int:
    """Return the number of variants that a config asks for: 1 unless its class has a method ``count_variants``."""
    count = getattr(env_cfg, "count_variants", None)
    return 1 if count is None else max(1, int(count()))


def variants_key(env_cfg: EnvCfg) -> str | None:
    """Return the name of the config's list of files, one per variant: that of its method ``variants_key``, or None."""
    declared = getattr(env_cfg, "variants_key", None)
    return None if declared is None else str(declared())


class AgentCfg(Protocol):
    """The config of an agent: an object or a mapping, as the task registered it."""


Configure = Callable[[EnvCfg, AgentCfg], None]
"""Applies overrides and flags to ``(env_cfg, agent_cfg)`` in place."""

MakeEvalEnv = Callable[[int], VecEnv]
"""Builds an evaluation environment with a number of parallel environments."""


class MissingPackage(str):
    """A missing package, for which an engine cannot run a task that it knows; the error shows this reason alone."""


class Engine(ABC):
    """One simulator.

    A session is ``with engine.launch(request, configure) as (env_cfg, agent_cfg): env = engine.make_env(...)``.
    """

    name: ClassVar[str]
    envs_per_process: ClassVar[int | None] = None
    """Largest number of environments in a process; None for no limit."""
    selectors: ClassVar[tuple[str, ...]] = ()
    """Names of overrides, ``name=value``, that choose among a task's presets; passed on as ``args.presets``."""

    @classmethod
    @abstractmethod
    def why_not(cls, task: str) -> str | None:
        """Return why this engine cannot run ``task`` here, or None if it can. Starts nothing."""

    @classmethod
    def task_names(cls) -> list[str]:
        """List the tasks known without starting a simulator."""
        return []

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add the launcher's own flags; most engines have none."""
        return

    @abstractmethod
    def launch(self, request: LaunchRequest, configure: Configure) -> AbstractContextManager[tuple[Any, Any]]:
        """Start the simulator and yield the configured ``(env_cfg, agent_cfg)``."""

    def load_configs(self, request: LaunchRequest) -> tuple[Any, Any]:
        """Load the task's ``(env_cfg, agent_cfg)`` without overrides and without starting the simulator.

        Raises:
            UserError: If the simulator must run before they can be read.
        """
        raise UserError(f"engine '{self.name}' knows its tasks' configurations only once its simulator runs")

    @abstractmethod
    def set_common(self, env_cfg: EnvCfg, *, num_envs: int | None, seed: int | None, device: str | None) -> None:
        """Set the flags that every command has; None leaves the config's value."""

    def num_envs(self, env_cfg: EnvCfg) -> int | None:
        """Return the number of parallel environments in the config; None if it has no such field."""
        found = getattr(getattr(env_cfg, "scene", None), "num_envs", None)
        return None if found is None else int(found)

    def set_log_dir(self, env_cfg: EnvCfg, path: Path) -> None:
        """Set the run's folder in the environment's config, if that has a field ``log_dir``."""
        if hasattr(env_cfg, "log_dir"):
            setattr(env_cfg, "log_dir", str(path))  # noqa: B010  # a protocol without fields has none to assign

    @abstractmethod
    def make_env(self, env_cfg: EnvCfg, agent_cfg: AgentCfg, *, video: VideoRequest | None = None) -> VecEnv:
        """Build the environment of the launched task. Actions are clipped to ``agent_cfg.clip_actions`` if set."""
