"""The seam between the runner and a simulator: every engine yields RSL-RL's ``VecEnv`` (>= 3.0)."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeGuard

import torch
from tensordict import TensorDict

from foundation.core.errors import UserError


class VecEnv(Protocol):
    """RSL-RL's vectorised environment, and what this project needs beside it.

    Resets are automatic inside :meth:`step`. An environment of one's own needs the attributes and ``get_observations``
    and ``step``; ``foundation.engines.checked_env`` supplies the rest where it is missing. What an environment may
    have on top is in :class:`EnvCapabilities`, each field an attribute of the same name.
    """

    num_envs: int
    num_actions: int
    max_episode_length: int
    """Longest episode [env steps]."""
    episode_length_buf: torch.Tensor
    """Steps into the current episodes; assigning moves their time limits. Shape: (num_envs,)."""
    device: str | torch.device
    """Where observations, rewards and dones are."""
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
            ``extras["episode_metrics"]`` (optional): name -> (num_envs,), valid where done; ``success``, when there,
            replaces "ended by time-out".
        """
        ...

    def reset(self, seed: int | None = None) -> TensorDict:
        """Begin a new episode in every environment and return the observation groups.

        Args:
            seed: The same seed gives the same episodes; None goes on with the environment's random numbers.
        """
        ...

    def close(self) -> None:
        """Release what the environment holds; a second call does nothing."""
        ...


class SavesState(VecEnv, Protocol):
    """An environment whose episodes in progress a resumed run goes on with."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides what happens next."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        ...


def saves_state(env: VecEnv) -> TypeGuard[SavesState]:
    """Say whether an environment can save its episodes in progress; a wrapper's methods may be the inner one's."""
    # isinstance() with a runtime-checkable protocol would not see what a wrapper delegates (Python 3.12).
    return callable(getattr(env, "state_dict", None)) and callable(getattr(env, "load_state_dict", None))


@dataclass(frozen=True)
class EnvCapabilities:
    """What an environment declares beside :class:`VecEnv`, by attributes of the same names."""

    step_dt: float | None = None
    """Simulated time of one env step [s]; ``--real-time`` and videos need it."""
    position_fields: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Observation group -> (first of three columns with the position error [m], its frame: ``world`` or ``body``)."""
    rotation_fields: Mapping[str, int] = field(default_factory=dict)
    """Observation group -> first of nine columns with the rotation matrix, body to world, row by row."""
    metric_units: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    """Name in ``extras["episode_metrics"]`` -> (factor, unit) by which people are shown it, as ``(100.0, "cm")``."""
    position_unit: tuple[float, str] = (1.0, "m")
    """(factor, unit) by which people are shown a position, as ``(100.0, "cm")``."""
    variant_kind: str = ""
    """What the environments differ in, such as ``vehicle``: evaluations are broken down by it. "": in nothing."""
    variant_names: Sequence[str] = ()
    """Names of the variants."""
    variant_index: torch.Tensor | None = None
    """Which variant each environment is. Shape: (num_envs,)."""
    solved_return: float | None = None
    """Mean return from which on the task counts as solved; the teacher's check measures by it."""
    action_choices: tuple[int, ...] | None = None
    """Choices of each action where they are indices, from 0 on, as floats; None where actions are continuous."""
    action_range: tuple[tuple[float, float], ...] | None = None
    """Lowest and highest of each continuous action; None where nobody says, and random ones are from [-1, 1]."""
    one_per_process: bool = False
    """No second environment may exist beside it in this process, as with Isaac Lab."""
    can_render: bool = False
    """``render()`` returns an image, uint8 of shape (height, width, 3)."""
    can_save_state: bool = False
    """``state_dict()`` and ``load_state_dict(state)`` carry the episodes in progress over to a resumed run."""

    @classmethod
    def of(cls, env: VecEnv) -> EnvCapabilities:
        """Read what an environment, or the one inside its wrappers, declares."""
        inner = getattr(env, "unwrapped", env)

        def declared(name: str) -> Any:
            value = getattr(env, name, None)
            return getattr(inner, name, None) if value is None else value

        dt = declared("step_dt")
        solved = declared("solved_return")
        choices = declared("action_choices")
        bounds = declared("action_range")
        return cls(
            step_dt=None if dt is None else float(dt),
            position_fields=dict(declared("position_fields") or {}),
            rotation_fields=dict(declared("rotation_fields") or {}),
            metric_units=dict(declared("metric_units") or {}),
            position_unit=declared("position_unit") or (1.0, "m"),
            variant_kind=declared("variant_kind") or "",
            variant_names=tuple(declared("variant_names") or ()),
            variant_index=declared("variant_index"),
            solved_return=None if solved is None else float(solved),
            action_choices=None if choices is None else tuple(int(count) for count in choices),
            action_range=None if bounds is None else tuple((float(low), float(high)) for low, high in bounds),
            one_per_process=bool(declared("one_per_process")),
            can_render=callable(declared("render")),
            can_save_state=saves_state(env),
        )


@dataclass
class VideoRequest:
    """Ask an engine to record clips while the environment runs."""

    folder: Path
    length: int = 200
    """Frames in a clip [env steps]."""
    interval: int = 2000
    """Env steps between the starts of two clips; 0 records one clip from the first step."""
    first_step: int = 0
    """Env steps that a resumed run has behind it: clips are named, and begin, by the steps of the whole run."""


AGENT_ENTRY_POINT = "rsl_rl_cfg_entry_point"
"""Where a task registers its agent's config, as Isaac Lab names it."""


@dataclass
class LaunchRequest:
    """What a command knows before a simulator is up."""

    task: str
    agent_entry_point: str = AGENT_ENTRY_POINT
    device: str = "cpu"
    headless: bool = True
    video: bool = False
    args: argparse.Namespace = field(default_factory=argparse.Namespace)
    """The parsed command line, for the launcher's own flags."""
    needs_agent: bool = False
    """Whether the command trains by the agent's config; the others do without where a task registers none."""


class EnvCfg(Protocol):
    """The config of an environment: an object or a mapping of the task's own, whose fields its engine knows.

    Everything else sets it by :meth:`Engine.set_common` and by overrides, and reads it by name
    (``foundation.config.validate.read``).
    """


def count_variants(env_cfg: EnvCfg) -> int:
    """Return how many variants a config asks for; its class says so in a method ``count_variants`` of its own."""
    count = getattr(env_cfg, "count_variants", None)
    return 1 if count is None else max(1, int(count()))


class AgentCfg(Protocol):
    """The config of an agent: an object or a mapping, as the task registered it."""


Configure = Callable[[EnvCfg, AgentCfg], None]
"""Applies overrides and flags to ``(env_cfg, agent_cfg)`` in place."""

MakeEvalEnv = Callable[[int], VecEnv]
"""Builds an evaluation environment of the wanted number of environments."""


class MissingPackage(str):
    """Why an engine cannot run a task that it knows: a package is missing. Nothing but this is then told."""


class Engine(ABC):
    """One simulator.

    A session is ``with engine.launch(request, configure) as (env_cfg, agent_cfg): env = engine.make_env(...)``.
    """

    name: ClassVar[str]
    envs_per_process: ClassVar[int | None] = None
    """How many environments a process may hold; None for as many as memory allows."""
    selectors: ClassVar[tuple[str, ...]] = ()
    """Names whose ``name=value`` chooses among a task's presets; commands pass the tokens as ``args.presets``."""

    @classmethod
    @abstractmethod
    def why_not(cls, task: str) -> str | None:
        """Say why this engine cannot run ``task`` here, or None if it can. Starts nothing."""

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
        """Load the task's ``(env_cfg, agent_cfg)`` as they are without any override, starting nothing.

        Raises:
            UserError: Where the simulator has to run before they can be read.
        """
        raise UserError(f"engine '{self.name}' knows its tasks' configurations only once its simulator runs")

    @abstractmethod
    def set_common(self, env_cfg: EnvCfg, *, num_envs: int | None, seed: int | None, device: str | None) -> None:
        """Set what every command can ask for; None leaves the config's value."""

    def num_envs(self, env_cfg: EnvCfg) -> int | None:
        """Return how many environments the config asks for; None where it does not say."""
        found = getattr(getattr(env_cfg, "scene", None), "num_envs", None)
        return None if found is None else int(found)

    def set_log_dir(self, env_cfg: EnvCfg, path: Path) -> None:
        """Tell the environment where the run writes, if its configuration has a place for it (``log_dir``)."""
        if hasattr(env_cfg, "log_dir"):
            setattr(env_cfg, "log_dir", str(path))  # noqa: B010  # a protocol without fields has none to assign

    @abstractmethod
    def make_env(self, env_cfg: EnvCfg, agent_cfg: AgentCfg, *, video: VideoRequest | None = None) -> VecEnv:
        """Build the environment of the launched task. Actions are clipped to ``agent_cfg.clip_actions`` if set."""
